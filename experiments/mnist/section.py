"""What docs/experiments.md says of similarity in training."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path

from experiments.figures import Axes, Curve, figure
from experiments.mnist.converged import converged
from experiments.mnist.one_pair import NAMES, STEPS, WEIGHTS, area, best_weight, steps_to
from experiments.mnist.paired import ahead, does_it_help, off, percent, seeds_of
from experiments.mnist.training import STUDIES
from experiments.tables import Record, half_interval, mean, provenance, table

FIGURE = Path(__file__).parent.parent.parent / "docs" / "one_pair.svg"

TEXT = """## Similarity in training

Does it help to make images of one class similar in the network's eyes, while it is trained? The network has 317,069
parameters; beside the loss on similarity (1 minus the mean similarity of pairs of one class) there are the sign of the
code released with the paper, which adds the similarity itself to what is made small; the same loss on features before
the last layer (1 minus the mean cosine); the logarithm of the mean norm of gradients; similarity of random pairs; two
views of one image in place of two images of a class; and the Pi-model. Seeds decide the network, the images of each
step and how they are moved: the same in every arm, so that differences are paired."""

OF_ONE_PAIR = """### One pair a step

The setting of the paper: in each step two images of one class, cross-entropy of both and what is added, Adam at 0.001,
{n_steps} steps. 5,000 digits of MNIST to learn from, 2,500 others to test with. All arms at the
weight with the largest area under the curve for similarity on 2,500 further images and five further seeds; and those
with another weight that is best for themselves once more, at that. Steps to a level: the mean of the seeds that reach
it, and how many do. Differences are bold where 0 is not in their interval."""

SHOWN, LEVELS = (20, 40, 149, 513), (0.5, 0.7, 0.9)


def section(records: Sequence[Record]) -> Iterator[str]:
    """Everything that there is of it."""
    every = {record["setting"]: record for record in records}
    by_setting = {name: record for name, record in every.items() if "-tuning-" not in name}
    if not by_setting:
        return
    yield TEXT
    one_pair = _of_one_pair(by_setting)
    if "baseline" in one_pair:
        kind = "one-pair-tuning-"
        tuned = {name.removeprefix(kind): record for name, record in every.items() if name.startswith(kind)}
        yield from _one_pair(one_pair, tuned)
    for name in STUDIES:
        yield from converged(name, every)


def figures(records: Sequence[Record]) -> Iterator[tuple[Path, str]]:
    """Where pictures of this page lie, and what they are."""
    arms = _of_one_pair({record["setting"]: record for record in records})
    if "baseline" in arms:
        yield FIGURE, _figure(_curves(arms))


def _of_one_pair(by_setting: Mapping[str, Record]) -> dict[str, Record]:
    """Records of one pair a step, by what the page calls each arm."""
    return {
        arm + kind.removeprefix("one-pair").replace("-own", ", own weight"): by_setting[f"{kind}-{arm}"]
        for kind in ("one-pair", "one-pair-own")
        for arm in NAMES
        if f"{kind}-{arm}" in by_setting
    }


def _curves(arms: Mapping[str, Record]) -> dict[str, list[list[float]]]:
    return {arm: [seed["accuracies"] for seed in seeds_of(record)] for arm, record in arms.items()}


def _one_pair(arms: dict[str, Record], tuned: Mapping[str, Record]) -> Iterator[str]:
    curves = _curves(arms)
    areas = {
        arm: {name: area(seed["accuracies"]) for name, seed in record["seeds"].items()} for arm, record in arms.items()
    }
    yield OF_ONE_PAIR.format(n_steps=STEPS[-1])
    rows = []
    for arm, found in curves.items():
        reached = [[steps_to(level, curve) for curve in found] for level in LEVELS]
        rows.append(
            [
                arm, "–" if arm == "baseline" else f"{seeds_of(arms[arm])[0]['weight']:g}",
                str(len(found)),
                *(percent([curve[STEPS.index(step)] for curve in found]) for step in SHOWN),
                mean(list(areas[arm].values())), "" if arm == "baseline" else ahead(areas[arm], areas["baseline"]),
                *(_reached(steps) for steps in reached),
            ]
        )  # fmt: skip
    heading = ["arm", "weight", "seeds", *(f"step {step}" for step in SHOWN), "area", "more area than the baseline"]
    yield table([*heading, *(f"steps to {level:.0%}" for level in LEVELS)], rows)
    yield does_it_help(
        "Area under the curve",
        {arm: off(found, areas["baseline"]) for arm, found in areas.items() if arm != "baseline"},
    )
    yield " ".join([*_at_the_edge(tuned), *_missing(arms, tuned)])
    yield f"![Accuracy over steps, one curve an arm]({FIGURE.name})"
    yield "\n".join(f"- {arm}: {provenance(record)}" for arm, record in arms.items())


def _at_the_edge(tuned: Mapping[str, Record]) -> Iterator[str]:
    """Which weights are best of those tried because no larger, or smaller, one was."""
    for arm, record in tuned.items():
        best = best_weight([seed["areas"] for seed in seeds_of(record)])
        if best in (WEIGHTS[0], WEIGHTS[-1]):
            end = "smallest" if best == WEIGHTS[0] else "largest"
            yield f"The weight that is best for {arm}, {best:g}, is the {end} that was tried."


def _missing(arms: Mapping[str, Record], tuned: Mapping[str, Record]) -> Iterator[str]:
    """What is yet to be run."""
    rest = [arm for arm in NAMES if arm not in arms]
    if rest:
        yield f"Yet to be run at the common weight: {', '.join(rest)}."
    if len(tuned) < len(NAMES) - 1:
        yield f"Yet to be tuned: {', '.join(arm for arm in NAMES[1:] if arm not in tuned)}."


def _figure(curves: dict[str, list[list[float]]]) -> str:
    shown = {
        arm: Curve(
            [statistics.fmean(at) for at in zip(*found, strict=True)],
            [half_interval(at) for at in zip(*found, strict=True)],
        )
        for arm, found in curves.items()
        if len(found) > 1
    }
    fewest, most = (choose(map(len, curves.values())) for choose in (min, max))
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    note = f"Means of {seeds} seeds; bands are their 95 % intervals."
    return figure("One pair a step: accuracy on 2,500 digits", note, STEPS, shown, Axes(STEPS[-1], 0.0, 1.0))


def _reached(steps: Sequence[float]) -> str:
    """Steps to a level, and how many seeds reach it."""
    found = [each for each in steps if not isnan(each)]
    return f"{statistics.fmean(found):.0f} ({len(found)} of {len(steps)})" if found else f"(0 of {len(steps)})"
