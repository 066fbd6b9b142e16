"""The smoother H of a network at a minimum of its squared error: how its predictions follow from the labels.

To first order (Gauss-Newton), labels y give the predictions H y, with

    H_i = K_iD (K_DD + lambda W^-1)^-1

K the kernel of all pairs of outputs, lambda the weight decay and W the weights of the samples in the loss. |H_i| is the
share of the noise of labels that is left in a prediction, and N - Tr(2H - H H^T) what is left of N labels to tell it
by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-6
"""Eigenvalues below so much of the largest are rounding, for gradients in float32; for float64 its square."""

TOLERANCE = 1e-4
"""What is left of the normal equations, relative to what they began with, where an iteration may stop."""


@dataclass(frozen=True, eq=False)
class Smoother:
    """What the smoother does to noise.

    Args:
        noise_left: sqrt(|H_i|^2 / c) for every sample, [q].
        error: standard error of that, [q]; None where it is exact.
        trace: Tr(2H - H H^T) over the data.
        trace_error: its standard error; 0 where it is exact.
        rank: eigenvalues that count; None where they are not known.
        n_steps: of the iteration; 0 where there was none.
        left: of the normal equations, relative; 0 where there was no iteration.
        noise: (1 - H) v for random signs v, what a fit leaves of noise, [n c m].
    """

    noise_left: Tensor
    error: Tensor | None
    trace: float
    trace_error: float
    rank: int | None
    n_steps: int
    left: float
    noise: Tensor


def exact_smoother(
    own: Tensor, other: Tensor | None, weights: Tensor, decay: float, floor: float, *, n_probes: int, seed: int
) -> Smoother:
    """From the matrices themselves.

    Args:
        own: K_DD, [n c n c].
        other: K_QD, [q c n c]; None where the queries are the data.
        weights: of samples in the loss, [n].
        decay: lambda.
        floor: eigenvalues below so much of the largest count as 0.
        n_probes: vectors of random signs of which the fit's remainder is kept.
        seed: of the signs.
    """
    n, c = own.shape[:2]
    root = weights.sqrt().repeat_interleave(c)
    flat = own.reshape(n * c, n * c)
    values, vectors = torch.linalg.eigh(root[:, None] * flat * root)
    counts = values > floor * values[-1].clamp(min=0)
    inverse = torch.where(counts, 1 / torch.where(counts, values + decay, 1.0), 0.0)
    inner = root[:, None] * (vectors * inverse) @ vectors.T * root  # (K + lambda W^-1)^-1 on its range
    of_data = flat @ inner
    trace = float(2 * of_data.diagonal().sum() - of_data.square().sum())
    asked = of_data if other is None else other.reshape(-1, n * c) @ inner
    left = (asked.square().sum(dim=1).reshape(-1, c).mean(dim=1)).sqrt()
    signs = random_signs(n, c, n_probes, seed)
    remainder = signs - (of_data @ signs.reshape(n * c, n_probes)).reshape(signs.shape)
    return Smoother(left, None, trace, 0.0, int(counts.sum()), 0, 0.0, remainder)


def random_signs(n: int, c: int, n_probes: int, seed: int) -> Tensor:
    """-1 and 1, as likely. [n c m], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n, c, n_probes), generator=generator).double() * 2 - 1


def estimated_smoother(
    product: Callable[[Tensor], Tensor],
    product_of_queries: Callable[[Tensor], Tensor] | None,
    weights: Tensor,
    c: int,
    decay: float,
    *,
    n_probes: int,
    n_steps: int,
    seed: int,
) -> Smoother:
    """From products of K with vectors alone: random signs v, and E (H v)_i^2 = |H_i|^2.

    H v is found by conjugate residuals, which a singular K does no harm: for lambda = 0 they go to the projection of v
    to its range. What is left of the normal equations when they stop is part of the result.

    Args:
        product: K_DD v, [n c m] -> [n c m].
        product_of_queries: K_QD v, [n c m] -> [q c m]; None where the queries are the data.
        weights: of samples in the loss, [n].
        c: outputs.
        decay: lambda.
        n_probes: vectors of random signs; the spread of at least 2 gives an error.
        n_steps: at most so many products.
        seed: of the signs.

    Reference:
        Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix".
    """
    root = weights.sqrt()[:, None, None]
    signs = random_signs(len(weights), c, n_probes, seed)

    def apply(vectors: Tensor) -> Tensor:  # W^1/2 K W^1/2 + lambda
        return root * product(root * vectors) + decay * vectors

    # (W^1/2 K W^1/2 + lambda) z = W^1/2 v, and H v = K W^1/2 z
    solution, left, steps = conjugate_residuals(apply, root * signs, n_steps)
    of_data = product(root * solution)
    asked = of_data if product_of_queries is None else product_of_queries(root * solution)
    squares = asked.square().mean(dim=1)  # [q m]
    noise_left = squares.mean(dim=1).sqrt()
    error = squares.std(dim=1) / n_probes**0.5 / (2 * noise_left.clamp(min=1e-300))
    traces = (2 * signs * of_data - of_data.square()).sum(dim=(0, 1))
    trace_error = float(traces.std()) / n_probes**0.5
    return Smoother(noise_left, error, float(traces.mean()), trace_error, None, steps, left, signs - of_data)


def conjugate_residuals(apply: Callable[[Tensor], Tensor], right: Tensor, n_steps: int) -> tuple[Tensor, float, int]:
    """x with apply(x) = right, or as near as can be, for each column of `right`, [... m]; what is left; and the steps.

    Left is the largest |A r| of a column over what it began with: 0 at a solution, and at a least squares solution.

    Reference:
        Saad (2003), "Iterative methods for sparse linear systems", section 6.8.
    """
    axes = tuple(range(right.dim() - 1))
    x, r = torch.zeros_like(right), right.clone()
    p, moved = r.clone(), apply(r)
    moved_p = moved.clone()
    energy, begun = (r * moved).sum(dim=axes), moved.square().sum(dim=axes).sqrt()
    left, steps = 1.0, 0
    while steps < n_steps and left >= TOLERANCE:
        steps += 1
        length = moved_p.square().sum(dim=axes)
        step = torch.where(length > 0, energy / length.clamp(min=1e-300), 0.0)
        x, r = x + step * p, r - step * moved_p
        moved = apply(r)
        after = (r * moved).sum(dim=axes)
        left = float((moved.square().sum(dim=axes).sqrt() / begun.clamp(min=1e-300)).max())
        ratio = torch.where(energy > 0, after / energy.clamp(min=1e-300), 0.0)
        p, moved_p, energy = r + ratio * p, moved + ratio * moved_p, after
    return x, left, steps
