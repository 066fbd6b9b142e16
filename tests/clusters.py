"""What tests of suspected labels share: clusters some of whose labels are wrong, and a small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinsight.kernel import GradientKernel

REFIT = 1e-9
"""Float64, a system of equations of a few dozen unknowns."""

N = 60


def clusters(seed: int = 0, wrong: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs in three heaps, labels by heap but for a few, and which those are."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.arange(N) % 3
    x = 3 * nn.functional.one_hot(true, 3) + 0.5 * torch.randn(N, 3, generator=generator)
    is_wrong = torch.zeros(N, dtype=torch.bool)
    is_wrong[torch.randperm(N, generator=generator)[:wrong]] = True
    return x.double(), torch.where(is_wrong, (true + 1) % 3, true), is_wrong


def network(seed: int = 0) -> GradientKernel:
    torch.manual_seed(seed)
    return GradientKernel(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).double())
