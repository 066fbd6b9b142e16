"""What the page says of the noise of labels: how much of it predictions keep, and whether that can be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kinsight.denoising.assumptions import Check
from kinsight.denoising.denoise import Denoising
from kinsight.explorer.pictures import chart, written


def noisiest(found: Denoising, n: int) -> tuple[int, ...]:
    """The samples whose predictions keep most of the noise of labels, by position."""
    left = found.noise_left
    known = [place for place in left.argsort(descending=True, stable=True).tolist() if math.isfinite(left[place])]
    return tuple(known[:n])


def noise_fields(found: Denoising, places: Sequence[int], samples: Mapping[int, Any]) -> dict[str, Any]:
    """What the template reads.

    Args:
        found: of all samples.
        places: positions of samples that are shown.
        samples: as the template shows them, by position.
    """
    return {
        "summary": found.summary(),
        "is_credible": found.is_credible,
        "left": chart(found.noise_left.tolist(), "shares of noise left in predictions"),
        "factors": chart(found.factors.tolist(), "denoising factors"),
        "shown": [{"sample": samples[place], "left": f"{float(found.noise_left[place]):.0%} left"} for place in places],
        "checks": [_check_fields(check) for check in found.checks],
    }


def _check_fields(check: Check) -> dict[str, Any]:
    return {
        "name": check.name,
        "value": written(check.value),
        "limit": f"{'at most' if check.is_at_most else 'at least'} {check.limit:g}",
        "is_met": check.is_met,
        "meaning": check.meaning,
    }
