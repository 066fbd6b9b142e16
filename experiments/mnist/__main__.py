"""Similarity in training, compared: `python -m experiments.mnist [study ...] [--arms ARM ...]`.

Goes on where it stopped.

one-pair-tuning   the weight of each arm, by the area under the curve on images to tune on, with seeds of its own
one-pair          the paper's setting at the weight that is best for similarity, for all arms alike
one-pair-own      the same, each arm at the weight that is best for itself
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable

import torch

from experiments.mnist import one_pair
from experiments.mnist.arms import ARMS
from experiments.mnist.images import digits
from experiments.records import FOLDER, run_seeds


def tune_one_pair(arm: str) -> None:
    """Curves at every weight."""
    if arm == "baseline":
        return
    images = digits()
    _run(
        "one-pair-tuning", arm, one_pair.TUNING_SEEDS,
        lambda seed: {"areas": one_pair.areas_by_weight(arm, seed, images.train, images.validation)},
    )  # fmt: skip


def run_one_pair(arm: str, *, is_own: bool = False) -> None:
    """Curves of all seeds."""
    common = chosen_weight("similarity")
    weight = chosen_weight(arm) if is_own and arm != "baseline" else common
    if is_own and weight == common:
        return  # they are those of the other study
    images = digits()

    def run(seed: int) -> dict[str, object]:
        return {"weight": weight, "accuracies": one_pair.curve(arm, weight, seed, images.train, images.test)}

    _run("one-pair-own" if is_own else "one-pair", arm, one_pair.SEEDS, run)


def chosen_weight(arm: str) -> float:
    """The weight with the largest mean area under the curve."""
    path = FOLDER / f"mnist-one-pair-tuning-{arm}.json"
    if not path.exists():
        raise SystemExit(f"the weight of {arm} is not known: python -m experiments.mnist one-pair-tuning --arms {arm}")
    seeds = json.loads(path.read_text())["seeds"].values()
    return max(
        one_pair.WEIGHTS, key=lambda weight: statistics.fmean(seed["areas"][f"{weight:g}"] for seed in seeds)
    )  # fmt: skip


def _run(study: str, arm: str, seeds: range, run: Callable[[int], dict[str, object]]) -> None:
    run_seeds("mnist", f"{study}-{arm}", seeds, f"python -m experiments.mnist {study} --arms {arm}", run)


STUDIES: dict[str, Callable[[str], None]] = {
    "one-pair-tuning": tune_one_pair, "one-pair": run_one_pair,
    "one-pair-own": lambda arm: run_one_pair(arm, is_own=True),
}  # fmt: skip


def main() -> None:
    """Read the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("studies", nargs="*", metavar="study", help="all if left out")
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    for study in given.studies or STUDIES:
        if study not in STUDIES:
            raise SystemExit(f"study {study!r} is unknown: there are {', '.join(STUDIES)}")
        for arm in given.arms:
            STUDIES[study](arm)


if __name__ == "__main__":
    main()
