"""What the examples share: handwritten digits, 8 x 8 pixels, that come with scikit-learn, and a small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinsight import Samples
from kinsight.sources import load_samples

N_TRAIN, N_PROBE = 1200, 128


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Samples]:
    """Images [n 64] and labels to train on; others to test with; and some of these to watch similarities among."""
    everything = load_samples("digits")
    batch = everything.take(range(len(everything)))
    assert isinstance(batch.inputs, Tensor)
    assert batch.targets is not None
    x = batch.inputs.float().flatten(1)
    x, y = x / x.max(), batch.targets.long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    train, test = (x[:N_TRAIN], y[:N_TRAIN]), (x[N_TRAIN:], y[N_TRAIN:])
    return train, test, Samples(test[0][:N_PROBE], test[1][:N_PROBE])


def network() -> nn.Module:
    """64 pixels in, ten classes out."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of images that are told right."""
    return float((model.eval()(data[0]).argmax(dim=1) == data[1]).float().mean())
