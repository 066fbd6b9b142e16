"""The paper's setting: one pair of images of one class a step, 513 steps of Adam at 1e-3."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from experiments.mnist.arms import ARMS, Source, network
from experiments.mnist.images import Images

RATE, N_STEPS = 1e-3, 513
STEPS = (10, 20, 30, 40, 60, 80, 100, 120, 149, 175, 200, 240, 280, 320, 360, 400, 440, 480, 513)
"""After which accuracy is looked at; the paper's figure ends with step 149."""

NAMES = ("baseline", "similarity", "released-sign", "features", "gradient-norm", "random-pairs")
WEIGHTS = (0.03, 0.1, 0.3, 1.0)
SEEDS, TUNING_SEEDS = range(60), range(1_000, 1_005)


def curve(arm: str, weight: float, seed: int, train: Images, held: Images) -> list[float]:
    """Accuracy after each of `STEPS`.

    Args:
        arm: of `ARMS`.
        weight: of what is added.
        seed: of the network and of all pairs: the same in every arm.
        train: images to learn from.
        held: images to test with.
    """
    torch.manual_seed(seed)
    model = network()
    chosen, drawn = (torch.Generator().manual_seed(number) for number in (seed, 1_000_000 + seed))
    added = ARMS[arm](model, weight, Source(train, train.x, drawn))
    of_class = [(train.y == label).nonzero().flatten() for label in range(10)]
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    accuracies = []
    for step in range(1, N_STEPS + 1):
        places = of_class[int(torch.randint(10, (), generator=chosen))]
        pair = train[places[torch.randperm(len(places), generator=chosen)[:2]]]
        optimizer.zero_grad()
        (F.cross_entropy(model(pair.x), pair.y) + added(pair.x, pair.y)).backward()
        optimizer.step()
        if step in STEPS:
            accuracies.append(accuracy(model, held))
    return accuracies


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images) -> float:
    """Share of images that are told right."""
    parts = images.x.contiguous(memory_format=torch.channels_last).split(50)
    said = torch.cat([model(part).argmax(dim=1) for part in parts])
    return float((said == images.y).double().mean())


def area(accuracies: list[float]) -> float:
    """Mean accuracy over steps, by trapezoids from the first step that was looked at to the last."""
    steps, values = torch.tensor(STEPS, dtype=torch.float64), torch.tensor(accuracies, dtype=torch.float64)
    return float(torch.trapezoid(values, steps) / (steps[-1] - steps[0]))


def steps_to(level: float, accuracies: list[float]) -> float:
    """The first step at which a level is reached, by interpolation; nan where it never is."""
    before: tuple[int, float] | None = None
    for step, value in zip(STEPS, accuracies, strict=True):
        if value >= level:
            return (
                step if before is None else before[0] + (step - before[0]) * (level - before[1]) / (value - before[1])
            )
        before = (step, value)
    return float("nan")


def areas_by_weight(arm: str, seed: int, train: Images, validation: Images) -> dict[str, float]:
    """The area under the curve at each weight, on images to tune on."""
    return {
        f"{weight:g}": area(curve(arm, weight, seed, train, validation)) for weight in WEIGHTS
    }  # fmt: skip


def best_weight(areas: Sequence[Mapping[str, float]]) -> float:
    """The weight with the largest mean area, of those that `areas_by_weight` found with several seeds."""
    return max(WEIGHTS, key=lambda weight: statistics.fmean(each[f"{weight:g}"] for each in areas))
