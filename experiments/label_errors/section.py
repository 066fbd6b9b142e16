"""What docs/experiments.md says of label errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.tables import Record, difference, mean, provenance, table

OURS = "kinsight, four checkpoints"
SHARES = ("0.1", "0.12", "0.2")

TEXT = """## Label errors, found

A tenth of all labels is made wrong, a convolutional network of 106,122 parameters is trained until it says nearly all
labels as given, and every way gives each label a score. Symmetric: any other class; confused: the classes that a
linear classifier takes for each other. AUROC, the share of errors found in the first 10, 12 and 20 % of the data, and
how far kinsight with four checkpoints (after 5, 10 and 20 epochs and the last; chosen on other seeds) is ahead, in
AUROC and in the share found in 10 %: paired differences, bold where 0 is not in the interval. "Our regression" is the
same leave-one-out regression on other features than gradients; baselines "of four checkpoints" are means over the same
networks. Seeds decide labels, folds, training, and which images; of MNIST, all 5,000 there are."""


def section(records: Sequence[Record]) -> Iterator[str]:
    """Planted label errors."""
    yield TEXT
    for record in records:
        seeds = list(record["seeds"].values())
        first = ways_of(record)

        def of(way: str, measure: str, seeds: Sequence[Any] = seeds) -> list[float]:
            return [seed["ways"][way][measure] for seed in seeds]

        rows = [
            [
                way, mean(of(way, "auroc")),
                *(mean(of(way, f"found_{share}"), 3) for share in SHARES),
                *(
                    "" if way.startswith("kinsight") else difference(of(OURS, measure), of(way, measure), digits)
                    for measure, digits in (("auroc", 4), ("found_0.1", 3))
                ),
            ]
            for way in sorted(first, key=lambda way: -statistics.fmean(of(way, "auroc")))
        ]  # fmt: skip
        yield f"### {record['setting']}\n\n{provenance(record)} {_memorized(seeds)}"
        yield table(["way", "AUROC", "10 %", "12 %", "20 %", "kinsight ahead, AUROC", "in 10 %"], rows)


def ways_of(record: Record) -> list[str]:
    """All ways, which every seed has.

    Raises:
        ValueError: one has others.
    """
    first, *others = record["seeds"].items()
    for seed, found in others:
        if found["ways"].keys() != first[1]["ways"].keys():
            raise ValueError(f"{record['setting']}: seed {seed} has other ways than seed {first[0]}. Run it again.")
    return list(first[1]["ways"])


def _memorized(seeds: Sequence[Any]) -> str:
    """How long the networks were trained, and how many of the labels as given they say."""
    epochs, accuracies = ([seed[name] for seed in seeds] for name in ("epochs", "accuracy"))
    told = f"{min(epochs)}" if min(epochs) == max(epochs) else f"{min(epochs)} to {max(epochs)}"
    least = math.floor(1e4 * min(accuracies)) / 100
    return f"Trained for {told} epochs, after which the networks say {least:.2f} % of the labels as given, or more."
