"""Digits moved by a known amount, and networks that are to tell by how much from noisy labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinsight.sources import load_samples

DIGIT, N_HELD_OUT = 3, 100
"""One digit, since which way up all ten are is hard to tell: misfit would hide the noise."""

WIDTH = {"early-stopped": 16, "converged": 16, "memorized": 64}
"""Hidden units."""

WEIGHT_DECAY = {"early-stopped": 0.0, "converged": 0.01, "memorized": 0.0}
ITERATIONS = {"early-stopped": 30, "converged": 3000, "memorized": 3000}
"""Of L-BFGS, at most."""


@dataclass(frozen=True, eq=False)
class Moved:
    """Images of digits, and by how much each was moved.

    Args:
        x: 14 x 14 pixels, [n 196], float64.
        truth: angles [n 1] or offsets [n 2], of standard deviation 1.
    """

    x: Tensor
    truth: Tensor


def moved(task: str, n: int, seed: int, *, is_test: bool = False) -> Moved:
    """Threes of MNIST, turned by up to 45 degrees or shifted by up to 6 of 28 pixels, each image several times.

    Args:
        task: 'rotated' or 'translated'.
        n: images.
        seed: of their choice and their moves.
        is_test: whether they are made of other threes than those to learn from: the last 100.
    """
    generator = torch.Generator().manual_seed(2 * seed + is_test)
    everything = load_samples("mnist5k")
    assert everything.targets is not None
    threes = (everything.targets == DIGIT).nonzero().flatten()
    threes = threes[-N_HELD_OUT:] if is_test else threes[:-N_HELD_OUT]
    chosen = threes[torch.randint(len(threes), (n,), generator=generator)]
    batch = everything.take(chosen.tolist())
    assert isinstance(batch.inputs, Tensor)
    images = batch.inputs.double().reshape(n, 1, 28, 28)
    images = images / 255 if float(images.max()) > 2 else images
    amounts = 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1
    zero, one = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    if task == "rotated":
        angles = amounts[:, 0] * torch.pi / 4
        rows = [angles.cos(), -angles.sin(), zero], [angles.sin(), angles.cos(), zero]
        truth = amounts[:, :1]
    else:
        rows = [one, zero, amounts[:, 0] * 12 / 28], [zero, one, amounts[:, 1] * 12 / 28]
        truth = amounts
    maps = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    turned = F.grid_sample(images, F.affine_grid(maps, list(images.shape), align_corners=False), align_corners=False)
    return Moved(F.avg_pool2d(turned, 2).flatten(1), truth * 3**0.5)  # uniform on [-1, 1]: variance 1/3


def network(regime: str, n_outputs: int, seed: int) -> nn.Module:
    """A small tanh network, untrained."""
    torch.manual_seed(seed)
    width = WIDTH[regime]
    return nn.Sequential(nn.Linear(196, width), nn.Tanh(), nn.Linear(width, n_outputs)).double()


def fit(model: nn.Module, x: Tensor, y: Tensor, regime: str) -> float:
    """Minimize the mean squared error plus weight decay; the largest entry of the gradient in the end."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=ITERATIONS[regime], history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=1e-10, tolerance_change=1e-14,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        squares = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
        loss = F.mse_loss(model(x), y) + WEIGHT_DECAY[regime] / 2 * squares
        loss.backward()
        return loss

    step: Callable[[Callable[[], Tensor]], Tensor] = optimizer.step
    step(closure)
    closure()
    return max(float(parameter.grad.abs().max()) for parameter in model.parameters() if parameter.grad is not None)
