"""What docs/experiments.md says of training until nothing changes any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from experiments.mnist.arms import ARMS
from experiments.mnist.paired import ahead, does_it_help, off, percent, seeds_of
from experiments.mnist.training import N_LOOKS, STUDIES, best_setting, settings
from experiments.tables import Record, provenance, table

TEXT = """### {name}

{n} images with known classes, batches of {batch} moved by up to 2 pixels and 10 degrees in every arm, {n_steps:,} steps
of Adam whose rate falls to 0; what is added looks at 16 images of each batch, or at 16 others of all images for the
last two. Rate and weight of each arm are those of the largest mean accuracy in runs of {n_tuning:,} steps on images to
tune on, with {n_seeds} of its own. Differences are paired by seed, and bold where 0 is not in their interval."""

VIEWS, KNOWN = "augmentation-pairs", "pi-model"
"""Two uses of views of one image: the second is known."""


def converged(name: str, records: Mapping[str, Record]) -> Iterator[str]:
    """What there is of a study.

    Args:
        name: of `STUDIES`.
        records: by their setting.
    """
    arms = {arm: records[f"{name}-{arm}"] for arm in ARMS if f"{name}-{arm}" in records}
    if "baseline" not in arms:
        return
    study = STUDIES[name]
    yield TEXT.format(
        name=name, n="All" if study.n_labels is None else f"{study.n_labels:,}", n_steps=study.n_steps,
        n_tuning=study.n_tuning_steps, batch=study.batch,
        n_seeds="a seed" if study.n_tuning_seeds == 1 else f"{study.n_tuning_seeds} seeds",
    )  # fmt: skip
    last, before = (
        {arm: {seed: run["accuracies"][place] for seed, run in record["seeds"].items()} for arm, record in arms.items()}
        for place in (-1, -2)
    )
    rows = []
    for arm, record in arms.items():
        first = seeds_of(record)[0]
        rows.append(
            [
                arm, f"{first['rate']:g}", "–" if arm == "baseline" else f"{first['weight']:g}", str(len(last[arm])),
                percent(list(before[arm].values())), percent(list(last[arm].values())),
                "" if arm == "baseline" else ahead(last[arm], last["baseline"]),
            ]
        )  # fmt: skip
    heading = ["arm", "rate", "weight", "seeds", f"after {1 - 1 / N_LOOKS:.0%} of the steps", "in the end"]
    yield table([*heading, "more than the baseline"], rows)
    differences = {arm: off(found, last["baseline"]) for arm, found in last.items() if arm != "baseline"}
    helps = [does_it_help("Accuracy", differences)] if differences else []
    yield " ".join([*helps, *_of_views(last), *_at_the_edge(name, records)])
    missing = [arm for arm in ARMS if arm not in arms]
    if missing:
        yield f"Yet to be run: {', '.join(missing)}."
    yield "\n".join(f"- {arm}: {provenance(record)}" for arm, record in arms.items())


def _of_views(last: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The two arms that look at views of one image, beside each other."""
    if VIEWS in last and KNOWN in last:
        yield f"{VIEWS} beside {KNOWN}: {ahead(last[VIEWS], last[KNOWN])}."


def _at_the_edge(name: str, records: Mapping[str, Record]) -> Iterator[str]:
    """Which rates and weights are best of those tried because no larger, or smaller, one was."""
    ends: dict[str, list[str]] = {}
    for arm in ARMS:
        tuned = records.get(f"{name}-tuning-{arm}")
        if tuned is None:
            continue
        found = best_setting([run["accuracies"] for run in seeds_of(tuned)])
        for what, best, tried in zip(("rate", "weight"), found, zip(*settings(arm), strict=True), strict=True):
            if len(set(tried)) > 1 and best in (min(tried), max(tried)):
                end = "smallest" if best == min(tried) else "largest"
                ends.setdefault(f"the {end} {what}", []).append(f"{arm} ({best:g})")
    for end, which in ends.items():
        yield f"Best at {end} that was tried: {', '.join(which)}."
