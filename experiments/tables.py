"""What the sections of docs/experiments.md are made of: means with intervals, paired differences, tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student

Record = Mapping[str, Any]
"""What one file of experiments/results holds."""


def mean(values: Sequence[float]) -> str:
    """A mean, and half its interval where there is more than one value."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} ± {half_interval(values):.4f}"


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean."""
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The mean of paired differences with its interval; bold where all of it is above 0."""
    off = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(off) < 2:
        return f"{off[0]:+.4f}"
    text = f"{statistics.fmean(off):+.4f} ± {half_interval(off):.4f}"
    return f"**{text}**" if statistics.fmean(off) > half_interval(off) else text


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(heading) + " |", "|" + "|".join(["---"] * len(heading)) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def provenance(record: Record) -> str:
    """Where the numbers come from."""
    commits = sorted({seed["commit"] for seed in record["seeds"].values()})
    machine = record["machine"]
    return (
        f"`{record['command']}`, {_named(sorted(map(int, record['seeds'])))}; commit {', '.join(commits)}; "
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}."
    )


def _named(seeds: Sequence[int]) -> str:
    """All seeds by number; a row without gaps by its ends."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
