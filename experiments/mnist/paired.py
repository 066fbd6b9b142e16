"""Arms beside the baseline, seed by seed: tables and sentences of docs/experiments.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from experiments.tables import Record, difference, half_interval


def seeds_of(record: Record) -> list[Record]:
    """What each seed found."""
    return list(record["seeds"].values())


def off(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[float]:
    """Differences of the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]


def ahead(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    """Their mean, with its interval."""
    found = off(ours, theirs)
    return difference(found, [0.0] * len(found))


def does_it_help(what: str, differences: Mapping[str, Sequence[float]]) -> str:
    """Which arms have more than the baseline, and which less, as far as intervals say.

    Args:
        what: that is compared.
        differences: of every arm, by seed.
    """
    sides: dict[str, list[str]] = {"More": [], "Less": [], "No difference shown in": []}
    for arm, each in differences.items():
        is_shown = len(each) > 1 and abs(statistics.fmean(each)) > half_interval(each)
        side = "No difference shown in" if not is_shown else "More" if statistics.fmean(each) > 0 else "Less"
        sides[side].append(arm)
    found = [f"{side}: {'; '.join(arms)}." for side, arms in sides.items() if arms]
    return f"{what}, beside the baseline. {' '.join(found)}"


def percent(values: Sequence[float]) -> str:
    """A mean of shares, with half of its interval, in percent."""
    half = f" ± {100 * half_interval(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{half} %"
