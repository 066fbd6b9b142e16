"""A small network and data, for tests of indexes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kinsight import Samples

DIM = 512
"""Of the indexes."""


def network(seed: int = 0, n_outputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, n_outputs)).eval()


def data(n: int = 300, seed: int = 1, **options: Any) -> Samples:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return Samples(x, targets=(x[:, 0] > 0).long(), **options)
