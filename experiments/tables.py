"""What the sections of docs/experiments.md are made of: means with intervals, paired differences, tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy.stats import t as student

Record = Mapping[str, Any]
"""What one file of experiments/results holds."""


def mean(values: Sequence[float], digits: int = 4) -> str:
    """A mean, and half its interval where there is more than one value."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.fmean(values):.{digits}f} ± {half_interval(values):.{digits}f}"


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean."""
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def difference(ours: Sequence[float], theirs: Sequence[float], digits: int = 4) -> str:
    """The mean of paired differences with its interval; bold where all of it is above 0."""
    off = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(off) < 2:
        return f"{off[0]:+.{digits}f}"
    text = f"{statistics.fmean(off):+.{digits}f} ± {half_interval(off):.{digits}f}"
    return f"**{text}**" if statistics.fmean(off) > half_interval(off) else text


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(heading) + " |", "|" + "|".join(["---"] * len(heading)) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def provenance(*records: Record) -> str:
    """Where the numbers of records come from that were made on one machine, by one command with other settings."""
    (machine,) = {tuple(record["machine"][name] for name in ("processor", "threads", "torch")) for record in records}
    runs = [run for record in records for run in record["seeds"].values()]
    commits = sorted({run[name] for run in runs for name in ("begun", "commit") if name in run})
    processor, threads, version = machine
    return (
        f"`{_command([record['command'] for record in records])}`, {_named(sorted({*map(int, _seeds(records))}))}; "
        f"commit {', '.join(commits)}; {processor}, {threads} threads, torch {version}{_duration(runs)}."
    )


def _seeds(records: Sequence[Record]) -> Iterator[str]:
    return (seed for record in records for seed in record["seeds"])


def _command(commands: Sequence[str]) -> str:
    """What the commands begin with, and how each of them ends."""
    split = [command.split() for command in commands]
    common = [words[0] for words in zip(*split, strict=False) if len(set(words)) == 1]
    return " ".join([*common, *(word for words in split for word in words[len(common) :])])


def _duration(runs: Sequence[Mapping[str, Any]]) -> str:
    """How long a seed takes, of those whose time is known."""
    known = [run["seconds"] for run in runs if "seconds" in run]
    return f"; {statistics.fmean(known) / 60:.2g} minutes a seed" if known else ""


def _named(seeds: Sequence[int]) -> str:
    """All seeds by number; a row without gaps by its ends."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
