"""Training until nothing changes any more, with all classes known or few."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from experiments.mnist.arms import ARMS, Source, network
from experiments.mnist.images import Images, Split, clothes, digits, few, moved
from experiments.mnist.one_pair import accuracy

BATCH, N_SEEN = 64, 16
"""Images in a step, and how many of them what is added looks at: all arms alike."""

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
        n_seeds: that are reported; each with one seed of its own for tuning.
        n_labels: images whose class is known; None: all.
    """

    split: Callable[[], Split]
    n_steps: int
    n_tuning_steps: int
    n_seeds: int
    n_labels: int | None = None


STUDIES = {
    "digits": Study(functools.cache(digits), 2_400, 800, 5),
    "digits-1000": Study(functools.cache(digits), 1_200, 600, 5, n_labels=1_000),
    "digits-100": Study(functools.cache(digits), 800, 400, 5, n_labels=100),
    "clothes": Study(functools.cache(clothes), 8_600, 860, 3),
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
    model = network().to(memory_format=torch.channels_last)  # its convolutions are faster so
    chosen, shown, drawn, viewed = (torch.Generator().manual_seed(4 * seed + place) for place in range(4))
    everything = study.split().train
    known = everything if study.n_labels is None else few(everything, study.n_labels, seed)
    added = ARMS[arm](model, weight, Source(known, everything.x, drawn, lambda x: moved(x, viewed)))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    accuracies, order = [], torch.empty(0, dtype=torch.long)
    for step in range(1, n_steps + 1):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(known), generator=chosen)])
        batch, order = known[order[:BATCH]], order[BATCH:]
        x = moved(batch.x, shown)
        optimizer.zero_grad()
        (F.cross_entropy(model(x), batch.y) + added(x[:N_SEEN], batch.y[:N_SEEN])).backward()
        optimizer.step()
        schedule.step()
        if step * N_LOOKS // n_steps > (step - 1) * N_LOOKS // n_steps:
            accuracies.append(accuracy(model, held))
    return accuracies


def tuned(study: Study, arm: str, seed: int) -> dict[str, float]:
    """The last accuracy on images to tune on, by learning rate and weight."""
    weights = (0.0,) if arm == "baseline" else WEIGHTS.get(arm, USUAL_WEIGHTS)
    return {
        f"{rate:g} {weight:g}": trained(study, arm, rate, weight, seed, study.n_tuning_steps, study.split().validation)[
            -1
        ]
        for rate in RATES
        for weight in weights
    }
