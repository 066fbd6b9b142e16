"""What the page says of stability: how far checkpoints see the same, and the samples that they see most differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any

from kinsight.agreement import Agreement
from kinsight.errors import InputError
from kinsight.explorer.pictures import chart
from kinsight.explorer.trajectory import MIN_NETWORKS, printable, trajectory
from kinsight.kernel import GradientKernel
from kinsight.normalization import Normalization
from kinsight.samples import Samples
from kinsight.stability import Stability

MEASURES = ("neighbors", "similarities", "counts", "alignments")


def most_volatile(
    stability: Stability | None, kernel: GradientKernel, samples: Samples, normalization: Normalization, n: int
) -> tuple[int, ...]:
    """The samples whose rank by soft count varies most between networks, by position; those of which it varies at all.

    Raises:
        InputError: the stability is of other samples, of another similarity than the rest of the page, or its last
            network is not the one the page is of.
    """
    if stability is None:
        return ()
    if stability.normalization != normalization:
        raise InputError(
            f"stability= is of {stability.normalization} similarity, and all else here of {normalization}: compare "
            f"with normalization={normalization!r}."
        )
    if stability.ids != samples.ids:
        raise InputError(
            f"stability= is of {len(stability.ids):,} samples, and the data has {len(samples):,}, or others by id: "
            "pass what kinsight.compare says of this very data."
        )
    stability.compared.check(kernel, samples)
    values = stability.volatility
    order = values.nan_to_num(nan=-1.0).argsort(descending=True, stable=True).tolist()
    return tuple(place for place in order[:n] if values[place] > 0)


def stability_fields(stability: Stability, places: Sequence[int], samples: Mapping[int, Any]) -> dict[str, Any]:
    """What the template reads.

    Args:
        stability: of all networks.
        places: positions of samples that are shown.
        samples: as the template shows them, by position.
    """
    last = len(stability.names) - 1
    return {
        "summary": printable(stability.summary()),
        "is_trusted": stability.trusted_from is not None,
        "figure": trajectory(stability) if len(stability.names) >= MIN_NETWORKS else "",
        "last": printable(stability.names[last]),
        "normalization": stability.normalization,
        "rows": [
            {"name": printable(name), "measures": list(_measures(stability, place, last))}
            for place, name in enumerate(stability.names[:last])
        ],
        "chart": chart(stability.volatility.tolist(), "volatilities"),
        "shown": [
            {"sample": samples[place], "volatility": f"± {float(stability.volatility[place]):.0%} of ranks"}
            for place in places
        ],
    }


def _measures(stability: Stability, first: int, second: int) -> Iterator[str]:
    """How far two networks agree, in each measure, with intervals."""
    for name in MEASURES:
        found: Agreement = getattr(stability, name)
        value, low, high = (float(each[first, second]) for each in (found.values, found.low, found.high))
        yield "–" if isnan(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"
