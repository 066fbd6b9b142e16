"""A network that learns labels by heart, wrong ones too."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo.network import convnet
from kinsight import Samples

MAX_EPOCHS, ENOUGH = 150, 0.999
"""A network is trained until it says so many of the labels given, or for so many epochs."""

CHECKPOINTS = (5, 10, 20)
"""Epochs after which it is kept, besides the last: fixed after looking at other seeds than those reported."""

CV_EPOCHS = 15
"""Of networks trained for cross-validation: of 5 and 15 the better one, on other seeds than those reported."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training has left.

    Args:
        networks: at the checkpoints, and in the end.
        epochs: that it took.
        accuracy: the share of the labels given that the last network says.
        seconds: that it took.
    """

    networks: list[nn.Module]
    epochs: int
    accuracy: float
    seconds: float


def trained(samples: Samples, seed: int, *, max_epochs: int = MAX_EPOCHS, unfinished: Path | None = None) -> Trained:
    """A network that learns labels.

    Args:
        samples: images and labels.
        seed: of the network, and of the order of samples.
        max_epochs: at most.
        unfinished: where the training is kept after every epoch, so that it goes on there if it is interrupted.
    """
    torch.manual_seed(seed)
    batch = samples.take(range(len(samples)))
    x, y = batch.inputs, batch.targets
    assert isinstance(x, Tensor)
    assert y is not None
    x = x.contiguous(memory_format=torch.channels_last)
    state = _Training(seed)
    if unfinished is not None and unfinished.exists():
        state.load(unfinished)
    while state.epoch < max_epochs and state.accuracy < ENOUGH:
        state.learn(x, y)
        if unfinished is not None:
            state.store(unfinished)
    networks = [*map(_network, state.kept), _network(state.model.state_dict())]
    return Trained(networks, state.epoch, state.accuracy, state.seconds)


class _Training:
    """A training between two epochs."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.model = convnet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its convolutions are faster so
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.epoch, self.accuracy, self.seconds = 0, 0.0, 0.0
        self.kept: list[dict[str, Tensor]] = []

    def learn(self, x: Tensor, y: Tensor) -> None:
        """One epoch."""
        start = time.perf_counter()
        for rows in torch.randperm(len(x), generator=self.generator).split(64):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x[rows]), y[rows]).backward()
            self.optimizer.step()
        with torch.no_grad():
            said = torch.cat([self.model(part).argmax(dim=1) for part in x.split(500)])
        self.epoch += 1
        self.accuracy = float((said == y).double().mean())
        if self.epoch in CHECKPOINTS:
            self.kept.append({name: value.clone() for name, value in self.model.state_dict().items()})
        self.seconds += time.perf_counter() - start

    def store(self, path: Path) -> None:
        """Keep it."""
        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "kept": self.kept,
            "order": self.generator.get_state(), "epoch": self.epoch, "accuracy": self.accuracy,
            "seconds": self.seconds,
        }  # fmt: skip
        torch.save(state, path.with_suffix(".draft"))
        os.replace(path.with_suffix(".draft"), path)

    def load(self, path: Path) -> None:
        """Go on from there."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["order"])
        self.kept, self.epoch = state["kept"], state["epoch"]
        self.accuracy, self.seconds = state["accuracy"], state["seconds"]


def _network(state: dict[str, Tensor]) -> nn.Module:
    network = convnet()
    network.load_state_dict(state)
    return network.eval()


def for_folds(samples: Samples) -> nn.Module:
    """A network for cross-validation."""
    return trained(samples, 0, max_epochs=CV_EPOCHS).networks[-1]
