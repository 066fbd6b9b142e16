"""What was asked of the experiments before they were run, what was found, and whether it is met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from experiments.label_errors.section import OURS
from experiments.tables import Record, half_interval, table

Mark = tuple[str, str, str, bool]
"""Setting, what is asked, what was found, whether it is met."""

TEXT = """## Marks

Set before the experiments were run, and not moved since. Settings that are yet to be run have no line."""


def of_label_errors(records: Sequence[Record]) -> Iterator[Mark]:
    """Ahead of every baseline; intervals of paired differences above zero where noise is class-conditional."""
    for record in records:
        seeds = list(record["seeds"].values())
        areas = {way: [seed["ways"][way]["auroc"] for seed in seeds] for way in seeds[0]["ways"]}
        others = [way for way in areas if not way.startswith("kinsight")]
        ahead = {way: [a - b for a, b in zip(areas[OURS], areas[way], strict=True)] for way in others}
        least = min(others, key=lambda way: statistics.fmean(ahead[way]))
        by = statistics.fmean(ahead[least])
        name = f"{record['setting']}, {len(seeds)} seeds"
        yield name, "AUROC ahead of every baseline", f"{by:+.4f} to {least}", by > 0
        if record["setting"].endswith("confused") and len(seeds) > 1:
            level = [way for way in others if statistics.fmean(ahead[way]) <= half_interval(ahead[way])]
            found = f"{len(others) - len(level)} of {len(others)}" + (f", not {', '.join(level)}" if level else "")
            yield name, "intervals of the differences above 0", found, not level


def of_denoising(records: Sequence[Record]) -> Iterator[Mark]:
    """Noise in means within 10 % of D s, in predictions of converged networks within 15 % of |H| s; the identity."""
    for record in records:
        (seed,) = record["seeds"].values()
        name = record["setting"]
        means = seed["means_kernel_fixed"]["ratio"]
        yield name, "noise in means, 20 draws, within 10 % of D s", f"{means:.2f} ×", abs(means - 1) <= 0.1
        if name.endswith("converged"):
            left = seed["predictions"]["ratio"]
            yield name, "noise in predictions within 15 % of H s", f"{left:.2f} ×", abs(left - 1) <= 0.15
    off = max((seed["decomposition_off"] for record in records for seed in record["seeds"].values()), default=0.0)
    if records:
        yield "rotated and translated, all", "decomposition adds up to 1e-6", f"{off:.0e}", off <= 1e-6


def of_human_noise(records: Sequence[Record]) -> Iterator[Mark]:
    """The noise told within 15 % of the raters' spread; each text's, ranked better than by penultimate neighbors."""
    for record in records:
        seeds = list(record["seeds"].values())
        ratio = statistics.fmean(seed["estimated_over_raters"] for seed in seeds)
        yield (
            record["setting"],
            "noise told within 15 % of the raters' spread",
            f"{ratio:.2f} ×",
            abs(ratio - 1) <= 0.15,
        )
        ahead = [seed["rank_correlation"] - seed["rank_correlation_penultimate"] for seed in seeds]
        by, half = statistics.fmean(ahead), half_interval(ahead)
        yield record["setting"], "ranks of texts ahead of penultimate", f"{by:+.3f} ± {half:.3f}", by > half


def of_mnist(records: Sequence[Record]) -> Iterator[Mark]:
    """Digits are told right as often as is usual."""
    for record in records:
        if record["setting"] == "digits-baseline":
            last = statistics.fmean(seed["accuracies"][-1] for seed in record["seeds"].values())
            yield "digits", "5,000 images, 98.5 % right without any loss added", f"{last:.2%}", last >= 0.985


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
    rows = [[*mark[:3], "met" if mark[3] else "NOT met"] for mark in sorted(marks, key=lambda mark: mark[3])]
    yield table(["setting", "asked", "found", ""], rows)
