"""What the sections of docs/experiments.md are made of: means with intervals, paired differences, tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
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
    return float(student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


def difference(ours: Sequence[float], theirs: Sequence[float], digits: int = 4) -> str:
    """The mean of paired differences with its interval; bold where 0 is not in it."""
    off = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(off) < 2:
        return f"{off[0]:+.{digits}f}" if off else "–"
    text = f"{statistics.fmean(off):+.{digits}f} ± {half_interval(off):.{digits}f}"
    return f"**{text}**" if abs(statistics.fmean(off)) > half_interval(off) else text


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(heading) + " |", "|" + "|".join(["---"] * len(heading)) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number_of(n: int, what: str) -> str:
    """So many of something, in words: 1 seed, 5 seeds."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def provenance(*records: Record) -> str:
    """Where the numbers of records come from; a line for all that were made on the same machines, of the same seeds."""
    together: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        together.setdefault((_machines(record), tuple(record["seeds"])), []).append(record)
    return "\n\n".join(_provenance(each, machines) for (machines, _), each in together.items())


def _machines(record: Record) -> str:
    """What seeds were run on; those of early records stand there once for all."""
    found = [seed.get("machine") or record["machine"] for seed in record["seeds"].values()]
    told = {f"{each['processor']}, {number_of(each['threads'], 'thread')}, torch {each['torch']}" for each in found}
    return "; ".join(sorted(told))


def _provenance(records: Sequence[Record], machines: str) -> str:
    runs = [run for record in records for run in record["seeds"].values()]
    commits = sorted({commit for run in runs for commit in (run["commit"], *run.get("commits", ()))})
    return (
        f"`{_command([record['command'] for record in records])}`, {_named(sorted({*map(int, _seeds(records))}))}; "
        f"commit {', '.join(commits)}; {machines}{_duration(runs)}."
    )


def _seeds(records: Sequence[Record]) -> Iterator[str]:
    return (seed for record in records for seed in record["seeds"])


def _command(commands: Sequence[str]) -> str:
    """What the commands begin with, and how each of them ends."""
    split = [command.split() for command in commands]
    pairs = takewhile(lambda words: len(set(words)) == 1, zip(*split, strict=False))
    common = [words[0] for words in pairs]
    return " ".join([*common, *(word for words in split for word in words[len(common) :])])


def _duration(runs: Sequence[Mapping[str, Any]]) -> str:
    """How long a seed takes, where that is known of all."""
    known = [run["seconds"] for run in runs if "seconds" in run]
    if not known or len(known) < len(runs):
        return ""
    seconds = statistics.fmean(known)
    return f"; {seconds:.0f} seconds a seed" if seconds < 100 else f"; {seconds / 60:.0f} minutes a seed"


def _named(seeds: Sequence[int]) -> str:
    """All seeds by number; a row without gaps by its ends."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
