"""What the page says of over- and underfit: a map of all samples, shares of regimes, samples to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from kinsight.fit import MEANINGS, FitMap, Regime

SHOWN: tuple[Regime, ...] = ("contradicted", "memorized", "underfit", "ambiguous", "alone", "not learned")
"""Regimes of which samples are shown, those to look at first."""

MAX_DOTS = 1500
"""Dots of the map; of more samples, so many at even distances."""

MAX_GROUPS = 30
"""Rows of the table; of more groups, those that are learned least."""

_WIDTH, _HEIGHT, _TOP = 1000.0, 260.0, 12.0


def examples_of(fit: FitMap, n: int) -> dict[Regime, tuple[int, ...]]:
    """The first n samples of every regime that is shown, by position."""
    return {regime: tuple(fit.of(regime)[:n].tolist()) for regime in SHOWN}


def fit_fields(fit: FitMap, examples: Mapping[Regime, tuple[int, ...]], samples: Mapping[int, Any]) -> dict[str, Any]:
    """What the template reads.

    Args:
        fit: the map.
        examples: positions of samples that are shown.
        samples: as the template shows them, by position.
    """
    counts = {regime: fit.regimes.count(regime) for regime in MEANINGS}
    return {
        "summary": fit.summary(),
        "map": _map(fit),
        "regimes": [
            {
                "name": regime, "css": regime.replace(" ", "-"), "share": f"{n / len(fit):.1%}", "n": f"{n:,}",
                "meaning": MEANINGS[regime], "samples": [samples[place] for place in examples.get(regime, ())],
            }
            for regime, n in counts.items()
            if n
        ],
        "groups": _groups(fit),
    }  # fmt: skip


def _map(fit: FitMap) -> dict[str, Any] | None:
    """Dots: to the right the more samples are alike (logarithmic), upwards the more its label differs from theirs."""
    known = torch.stack([fit.counts, fit.disagreements]).isfinite().all(dim=0) & (fit.counts > 0)
    places = known.nonzero().flatten()
    if not len(places):
        return None
    chosen = places[:: math.ceil(len(places) / MAX_DOTS)]
    x, y = fit.counts[places].log10(), fit.disagreements[places]
    low, high, most = float(x.min()), float(x.max()), max(1.0, float(y.quantile(0.99)))

    def across(value: float) -> float:
        return round((value - low) / max(high - low, 1e-9) * (_WIDTH - 20) + 10, 1)

    def up(value: float) -> float:
        return round(_TOP + _HEIGHT * (1 - min(value, most) / most), 1)

    decades = range(math.floor(low), math.floor(high) + 1)
    marks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return {
        "dots": [
            {
                "x": across(math.log10(float(fit.counts[place]))), "y": up(float(fit.disagreements[place])),
                "css": fit.regimes[place].replace(" ", "-"),
            }
            for place in chosen.tolist()
        ],
        "ticks": [
            {"x": across(math.log10(mark)), "text": f"{mark:,g}"} for mark in marks if low <= math.log10(mark) <= high
        ],
        "split_x": across(math.log10(max(float(fit.splits.count or 0), 10**low))),
        "split_y": up(fit.splits.disagreement),
        "description": f"Map of {len(chosen):,} of {len(fit):,} samples: how many others are alike, and how far the "
        "sample’s label is from theirs",
    }  # fmt: skip


def _groups(fit: FitMap) -> dict[str, Any] | None:
    """A table of regimes by group."""
    if fit.groups is None or len(set(fit.groups)) < 2:
        return None
    records = sorted(fit.by_group(), key=lambda record: float(record["learned"]))
    names = [regime for regime in MEANINGS if regime in fit.regimes]
    rows = [
        {"group": str(record["group"]), "n": f"{record['n']:,}", "shares": [f"{record[name]:.1%}" for name in names]}
        for record in records[:MAX_GROUPS]
    ]
    return {"names": names, "rows": rows, "n_more": max(0, len(records) - MAX_GROUPS)}
