"""What was asked of the experiments before they were run, what was found, and whether it is met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from experiments.label_errors.section import OURS, SHARES, ways_of
from experiments.label_errors.settings import SETTINGS
from experiments.mnist.arms import ARMS
from experiments.mnist.training import STUDIES
from experiments.tables import Record, half_interval, number_of, table

Mark = tuple[str, str, str, str]
"""Setting, what is asked, what was found, whether it is met."""

MISSED = "NOT met"

N_CORES = 2
"""Of the machines that experiments were run on, one process of one thread on each."""

TEXT = """## Marks

Set before the experiments were run, and not moved since; "so far" where seeds that were asked for are yet to be run.
Settings of which none was run have no line."""


def verdict(is_met: bool, *, is_complete: bool = True) -> str:
    """In words."""
    return ("met" if is_met else MISSED) + ("" if is_complete else ", so far")


def of_label_errors(records: Sequence[Record]) -> Iterator[Mark]:
    """Ahead of every baseline; intervals of paired differences above zero where noise is class-conditional."""
    for record in records:
        seeds, n_asked = list(record["seeds"].values()), SETTINGS[record["setting"]].n_seeds
        others = [way for way in ways_of(record) if not way.startswith("kinsight")]
        name, is_complete = f"{record['setting']}, {len(seeds)} of {number_of(n_asked, 'seed')}", len(seeds) >= n_asked

        def ahead(measure: str, way: str, seeds: Sequence[Record] = seeds) -> list[float]:
            return [seed["ways"][OURS][measure] - seed["ways"][way][measure] for seed in seeds]

        for measure in ("auroc", *(f"found_{share}" for share in SHARES)):
            by, least = min((statistics.fmean(ahead(measure, way)), way) for way in others)
            asked = (
                "AUROC" if measure == "auroc" else f"errors in the first {float(measure.removeprefix('found_')):.0%}"
            )
            told = verdict(by > 0, is_complete=is_complete)
            yield name, f"{asked} ahead of every baseline", f"{by:+.4f} to {least}", told
        if record["setting"].endswith("confused") and n_asked > 1 and len(seeds) > 1:
            areas = {way: ahead("auroc", way) for way in others}
            level = [way for way, by in areas.items() if statistics.fmean(by) <= half_interval(by)]
            found = f"{len(others) - len(level)} of {len(others)}" + (f", not {', '.join(level)}" if level else "")
            told = verdict(not level, is_complete=is_complete)
            yield name, "intervals of the differences in AUROC above 0", found, told


def of_denoising(records: Sequence[Record]) -> Iterator[Mark]:
    """Noise in means within 10 % of D s, in predictions of converged networks within 15 % of |H| s; the identity."""
    for record in records:
        (seed,) = record["seeds"].values()
        name = record["setting"]
        means = seed["means_kernel_fixed"]["ratio"]
        yield (
            name,
            "noise in means, 20 draws, within 10 % of D s",
            f"{means:.2f} ×",
            verdict(abs(means - 1) <= 0.1),
        )
        if name.endswith("converged"):
            left = seed["predictions"]["ratio"]
            yield (
                name,
                "noise in predictions within 15 % of H s",
                f"{left:.2f} ×",
                verdict(abs(left - 1) <= 0.15),
            )
    off = max((seed["decomposition_off"] for record in records for seed in record["seeds"].values()), default=0.0)
    if records:
        yield "rotated and translated, all", "decomposition adds up to 1e-6", f"{off:.0e}", verdict(off <= 1e-6)


def of_human_noise(records: Sequence[Record]) -> Iterator[Mark]:
    """The noise told within 15 % of the raters' spread; each text's, ranked better than by penultimate neighbors."""
    for record in records:
        seeds = list(record["seeds"].values())
        ratio = statistics.fmean(seed["estimated_over_raters"] for seed in seeds)
        yield (
            record["setting"],
            "noise told within 15 % of the raters' spread",
            f"{ratio:.2f} ×",
            verdict(abs(ratio - 1) <= 0.15),
        )
        ahead = [seed["rank_correlation"] - seed["rank_correlation_penultimate"] for seed in seeds]
        by, half = statistics.fmean(ahead), half_interval(ahead)
        yield (
            record["setting"],
            "ranks of texts ahead of penultimate",
            f"{by:+.3f} ± {half:.3f}",
            verdict(by > half),
        )


def of_mnist(records: Sequence[Record]) -> Iterator[Mark]:
    """Digits are told right as often as is usual."""
    for record in records:
        if record["setting"] == "digits-baseline":
            last = statistics.fmean(seed["accuracies"][-1] for seed in record["seeds"].values())
            yield (
                "digits",
                "5,000 images, 98.5 % right without any loss added",
                f"{last:.2%}",
                verdict(last >= 0.985),
            )
    by_setting = {record["setting"]: record for record in records}
    for name, study in STUDIES.items():
        arms, tuning = (
            [list(by_setting[f"{each}-{arm}"]["seeds"].values()) for arm in ARMS if f"{each}-{arm}" in by_setting]
            for each in (name, f"{name}-tuning")
        )
        if arms:
            is_complete = len(arms) == len(ARMS) and all(len(seeds) >= study.n_seeds for seeds in arms)
            run, tuned = _hours(arms), _hours(tuning)
            told = verdict(run + tuned < 2, is_complete=is_complete)
            yield name, "in less than 2 hours, all arms and seeds", f"{run:.1f} hours, and {tuned:.1f} to tune", told


def _hours(arms: Sequence[Sequence[Record]]) -> float:
    """What one waits for all seeds of all arms, on all cores."""
    seconds: float = sum(seed["seconds"] for seeds in arms for seed in seeds)
    return seconds / N_CORES / 3600


QUESTIONS: Mapping[str, Callable[[Sequence[Record]], Iterator[Mark]]] = {
    "label_errors": of_label_errors, "denoising": of_denoising, "human_noise": of_human_noise, "mnist": of_mnist,
}  # fmt: skip


def section(records: Sequence[Record]) -> Iterator[str]:
    """The table of all marks; those that are missed first."""
    marks = [
        mark
        for question, of_question in QUESTIONS.items()
        for mark in of_question([record for record in records if record["question"] == question])
    ]
    yield TEXT
    yield table(["setting", "asked", "found", ""], sorted(marks, key=lambda mark: not mark[3].startswith(MISSED)))
