"""Similarity in training, compared: `python -m experiments.mnist [study ...] [--arms ARM ...]`.

Goes on where it stopped.

one-pair-tuning   the weight of each arm, by the area under the curve on images to tune on, with seeds of its own
one-pair          the paper's setting at the weight that is best for similarity, for all arms alike
one-pair-own      the same, each arm at the weight that is best for itself
digits, digits-1000, digits-100, clothes
                  training until nothing changes any more: 5,000 digits with all classes known, or so many; 55,000
                  images of Fashion-MNIST, 5,000 more to tune on. Each arm at the rate and the weight best for it
...-tuning        which these are, by accuracy on images to tune on
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from experiments.mnist import one_pair
from experiments.mnist.arms import ARMS
from experiments.mnist.images import digits
from experiments.mnist.training import STUDIES, best_setting, trained, tuned
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
    return one_pair.best_weight([seed["areas"] for seed in _tuning("one-pair-tuning", arm)])


def tune(name: str, arm: str) -> None:
    """The last accuracy at every rate and weight."""
    study = STUDIES[name]
    seeds = range(1_000, 1_000 + study.n_tuning_seeds)
    _run(f"{name}-tuning", arm, seeds, lambda seed: {"accuracies": tuned(study, arm, seed)})


def run(name: str, arm: str) -> None:
    """All seeds."""
    study = STUDIES[name]
    rate, weight = chosen(name, arm)

    def run_seed(seed: int) -> dict[str, object]:
        accuracies = trained(study, arm, rate, weight, seed, study.n_steps, study.split().test)
        return {"rate": rate, "weight": weight, "accuracies": accuracies}

    _run(name, arm, range(study.n_seeds), run_seed)


def chosen(name: str, arm: str) -> tuple[float, float]:
    """The rate and the weight that are best on images to tune on."""
    return best_setting([seed["accuracies"] for seed in _tuning(f"{name}-tuning", arm)])


def _tuning(study: str, arm: str) -> list[dict[str, Any]]:
    path = FOLDER / f"mnist-{study}-{arm}.json"
    if not path.exists():
        raise SystemExit(f"the weight of {arm} is not known: python -m experiments.mnist {study} --arms {arm}")
    return list(json.loads(path.read_text())["seeds"].values())


def _run(study: str, arm: str, seeds: range, run: Callable[[int], dict[str, object]]) -> None:
    run_seeds("mnist", f"{study}-{arm}", seeds, f"python -m experiments.mnist {study} --arms {arm}", run)


RUNS: dict[str, tuple[Callable[[str], None], tuple[str, ...]]] = {
    "one-pair-tuning": (tune_one_pair, one_pair.NAMES), "one-pair": (run_one_pair, one_pair.NAMES),
    "one-pair-own": (lambda arm: run_one_pair(arm, is_own=True), one_pair.NAMES),
    **{f"{name}-tuning": (partial(tune, name), tuple(ARMS)) for name in STUDIES},
    **{name: (partial(run, name), tuple(ARMS)) for name in STUDIES},
}  # fmt: skip
"""What runs one arm of each study, and the arms that it has."""


def main() -> None:
    """Read the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("studies", nargs="*", metavar="study", help="all if left out")
    options.add_argument("--arms", nargs="+", choices=ARMS, help="all if left out")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    for study in given.studies or RUNS:
        if study not in RUNS:
            raise SystemExit(f"study {study!r} is unknown: there are {', '.join(RUNS)}")
        run_arm, arms = RUNS[study]
        for arm in given.arms or arms:
            run_arm(arm)


if __name__ == "__main__":
    main()
