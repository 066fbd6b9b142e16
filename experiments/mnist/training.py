"""Training until nothing changes any more, with all classes known or few."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from experiments.mnist.arms import ARMS, Source, network
from experiments.mnist.images import Images, Split, clothes, digits, few, moved
from experiments.mnist.one_pair import accuracy

N_SEEN = 16
"""Images of a step that what is added looks at: all arms alike."""

RATES = (1e-3, 3e-3)
WEIGHTS = {"pi-model": (1.0, 10.0, 100.0), "gradient-norm": (0.01, 0.03, 0.1)}
"""That are tried; for other arms `USUAL_WEIGHTS`."""

USUAL_WEIGHTS = (0.03, 0.1, 0.3)
N_LOOKS = 5
"""Times that accuracy is looked at, evenly over a run."""


@dataclass(frozen=True)
class Study:
    """A data set, how many of its classes are known, and how long is trained.

    Args:
        split: reads the images.
        n_steps: of training.
        n_tuning_steps: of the runs that learning rates and weights are chosen by.
        n_seeds: that are reported.
        n_tuning_seeds: others, that learning rates and weights are chosen by.
        batch: images in a step.
        n_labels: images whose class is known; None: all.
    """

    split: Callable[[], Split]
    n_steps: int
    n_tuning_steps: int
    n_seeds: int = 5
    n_tuning_seeds: int = 2
    batch: int = 64
    n_labels: int | None = None


STUDIES = {
    "digits": Study(functools.cache(digits), 2_400, 800),
    "digits-1000": Study(functools.cache(digits), 1_200, 600, n_labels=1_000),
    "digits-100": Study(functools.cache(digits), 800, 400, n_labels=100),
    "clothes": Study(functools.cache(clothes), 4_300, 430, n_seeds=3, n_tuning_seeds=1, batch=128),
}


def trained(study: Study, arm: str, rate: float, weight: float, seed: int, n_steps: int, held: Images) -> list[float]:
    """Accuracy, looked at `N_LOOKS` times, the last time in the end.

    Args:
        study: the data.
        arm: of `ARMS`.
        rate: largest learning rate of Adam; it falls to 0 along half a cosine.
        weight: of what is added.
        seed: of the network, of the images of each step and how they are moved: the same in every arm.
        n_steps: of training.
        held: images to test with.
    """
    torch.manual_seed(seed)
    model = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its convolutions are faster so
    chosen, shown, drawn, viewed = (torch.Generator().manual_seed(4 * seed + place) for place in range(4))
    everything = study.split().train
    known = everything if study.n_labels is None else few(everything, study.n_labels, seed)
    added = ARMS[arm](model, weight, Source(known, everything.x, drawn, lambda x: moved(x, viewed)))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    accuracies, order = [], torch.empty(0, dtype=torch.long)
    for step in range(1, n_steps + 1):
        if len(order) < study.batch:
            order = torch.cat([order, torch.randperm(len(known), generator=chosen)])
        batch, order = known[order[: study.batch]], order[study.batch :]
        x = moved(batch.x, shown)
        optimizer.zero_grad()
        (F.cross_entropy(model(x), batch.y) + added(x[:N_SEEN], batch.y[:N_SEEN])).backward()
        optimizer.step()
        schedule.step()
        if step * N_LOOKS // n_steps > (step - 1) * N_LOOKS // n_steps:
            accuracies.append(accuracy(model, held))
    return accuracies


def settings(arm: str) -> list[tuple[float, float]]:
    """Learning rates and weights that are tried."""
    weights = (0.0,) if arm == "baseline" else WEIGHTS.get(arm, USUAL_WEIGHTS)
    return [(rate, weight) for rate in RATES for weight in weights]


def tuned(study: Study, arm: str, seed: int) -> dict[str, float]:
    """The last accuracy on images to tune on, by learning rate and weight."""
    held, n_steps = study.split().validation, study.n_tuning_steps
    return {
        f"{rate:g} {weight:g}": trained(study, arm, rate, weight, seed, n_steps, held)[-1]
        for rate, weight in settings(arm)
    }


def best_setting(accuracies: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """The rate and the weight with the largest mean of what `tuned` found of some seeds."""
    best = max(accuracies[0], key=lambda setting: statistics.fmean(each[setting] for each in accuracies))
    rate, weight = map(float, best.split())
    return rate, weight
