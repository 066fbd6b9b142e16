"""The smoother H of a network at a minimum of its squared error: how its predictions follow from the labels.

To first order (Gauss-Newton), labels y give the predictions H y, with

    H_i = K_iD (K_DD + lambda W^-1)^-1

K the kernel of all pairs of outputs, lambda the weight decay and W the weights of the samples in the loss. |H_i| is the
share of the noise of labels that is left in a prediction, and N - Tr(2H - H H^T) what is left of N labels to tell it
by. A sample of weight 0 is no part of N.

Where some parameters decay and others do not, their kernels being K and U, both with W^1/2 on either side,

    W^1/2 H W^-1/2 = K A + U U^+ (1 - (K + lambda) A),    A = Q (Q K Q + lambda)^-1 Q,    Q = 1 - U U^+.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-6
"""Eigenvalues below so much of the largest are rounding, for gradients in float32; for float64 its square."""

ROUNDING = 1 / 30
"""Eigenvalues above so much of the floor are more than rounding usually leaves, and are doubtful below it."""

TOLERANCE = 1e-3
"""What is left of a system of equations, relative to its right side, where an iteration may stop."""


def floor_of(precision: torch.dtype) -> float:
    """Eigenvalues below so much of the largest are rounding."""
    return FLOOR**2 if precision == torch.float64 else FLOOR


@dataclass(frozen=True, eq=False)
class Smoother:
    """What the smoother does to noise.

    Args:
        noise_left: sqrt(|H_i|^2 / c) for every sample, [q].
        error: standard error of that, [q]; None where it is exact.
        trace: Tr(2H - H H^T) over the data, without samples of weight 0.
        trace_error: its standard error; 0 where it is exact.
        n_doubtful: eigenvalues that cannot be told from rounding; 0 where they are not known.
        n_steps: of the iteration; 0 where there was none.
        left: of the equations, relative; 0 where there was no iteration.
        most_left: up to which the iteration has arrived.
        noise: (1 - H) v for random signs v, what a fit leaves of noise, [n c m].
    """

    noise_left: Tensor
    error: Tensor | None
    trace: float
    trace_error: float
    n_doubtful: int
    n_steps: int
    left: float
    most_left: float
    noise: Tensor


@dataclass(frozen=True, eq=False)
class Pair:
    """Matrices of all pairs of samples and outputs.

    Args:
        own: K_DD, [n c n c].
        other: K_QD, [q c n c]; None where the queries are the data.
    """

    own: Tensor
    other: Tensor | None

    @property
    def asked(self) -> Tensor:
        """K_QD. [q c n c]."""
        return self.own if self.other is None else self.other

    def __add__(self, more: Pair) -> Pair:
        other = None if self.other is None or more.other is None else self.other + more.other
        return Pair(self.own + more.own, other)


def exact_smoother(
    decaying: Pair,
    free: Pair | None,
    weights: Tensor,
    decay: float,
    precision: torch.dtype,
    *,
    n_probes: int,
    seed: int,
) -> Smoother:
    """From the matrices themselves.

    Args:
        decaying: the kernel over the parameters that decay.
        free: over those that do not; None where there are none.
        weights: of samples in the loss, [n].
        decay: lambda.
        precision: of the gradients.
        n_probes: vectors of random signs of which the fit's remainder is kept.
        seed: of the signs.
    """
    n, c = decaying.own.shape[:2]
    root = weights.sqrt().repeat_interleave(c)
    solver, n_doubtful = _solver(decaying, free, root, decay, floor_of(precision))
    of_data, asked = (_times(decaying, free, solver, is_asked=is_asked) * root for is_asked in (False, True))
    is_trained_on = weights.repeat_interleave(c) > 0
    traces = 2 * of_data.diagonal() - of_data.square().sum(dim=1)
    left = asked.square().sum(dim=1).reshape(-1, c).mean(dim=1).sqrt()
    signs = random_signs(n, c, n_probes, seed)
    remainder = signs - (of_data @ signs.reshape(n * c, n_probes)).reshape(signs.shape)
    trace = float(traces[is_trained_on].sum())
    return Smoother(left, None, trace, 0.0, n_doubtful, 0, 0.0, 0.0, remainder)


def _solver(
    decaying: Pair, free: Pair | None, root: Tensor, decay: float, floor: float
) -> tuple[tuple[Tensor, Tensor | None], int]:
    """W^1/2 A, and W^1/2 U^+ (1 - (K + lambda) A) where there is U; and the number of doubtful eigenvalues."""
    k = root[:, None] * decaying.own.reshape(len(root), -1) * root
    if free is None:
        inverse, n_doubtful = _inverse(k, decay, floor)
        return (root[:, None] * inverse, None), n_doubtful
    u = root[:, None] * free.own.reshape(len(root), -1) * root
    inverse_u, n_doubtful_u = _inverse(u, 0.0, floor)
    off = torch.eye(len(root), dtype=k.dtype) - u @ inverse_u
    inverse, n_doubtful = _inverse(off @ k @ off, decay, floor)
    inverse = off @ inverse @ off
    rest = torch.eye(len(root), dtype=k.dtype) - k @ inverse - decay * inverse
    return (root[:, None] * inverse, root[:, None] * (inverse_u @ rest)), n_doubtful + n_doubtful_u


def _inverse(matrix: Tensor, decay: float, floor: float) -> tuple[Tensor, int]:
    """(matrix + decay)^-1 on the range of the matrix; and how many eigenvalues may be part of that, or rounding."""
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
    most = values[-1].clamp(min=0)
    counts = values > floor * most
    inverse = torch.where(counts, 1 / torch.where(counts, values + decay, 1.0), 0.0)
    is_doubtful = ~counts & (values > ROUNDING * floor * most)
    n_doubtful = int(is_doubtful.sum()) if decay < floor * float(most) else 0  # with decay they count for little
    return (vectors * inverse) @ vectors.T, n_doubtful


def _times(decaying: Pair, free: Pair | None, solver: tuple[Tensor, Tensor | None], *, is_asked: bool) -> Tensor:
    """H W^-1/2 of the samples that are asked about, or of the data. [q c, n c]."""
    of_decaying, of_free = solver
    size = of_decaying.shape[0]
    found = (decaying.asked if is_asked else decaying.own).reshape(-1, size) @ of_decaying
    if free is not None and of_free is not None:
        found = found + (free.asked if is_asked else free.own).reshape(-1, size) @ of_free
    return found


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
    precision: torch.dtype = torch.float64,
) -> Smoother:
    """From products of K with vectors alone: random signs v, and E (H v)_i^2 = |H_i|^2.

    H v is found by conjugate residuals, which a singular K does no harm: for lambda = 0 they go to the projection of v
    to its range. With decay, what is left of the equations bounds the error of H v. Without, directions of small
    eigenvalues come last, and next to nothing may be left of the normal equations while they are missing: then it has
    arrived only where what is left is less than one direction at the floor of eigenvalues would leave.

    Args:
        product: K_DD v, [n c m] -> [n c m].
        product_of_queries: K_QD v, [n c m] -> [q c m]; None where the queries are the data.
        weights: of samples in the loss, [n].
        c: outputs.
        decay: lambda.
        n_probes: vectors of random signs; the spread of at least 2 gives an error.
        n_steps: at most so many products.
        seed: of the signs.
        precision: of the gradients.

    Reference:
        Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix".
    """
    root = weights.sqrt()[:, None, None]
    signs = random_signs(len(weights), c, n_probes, seed)

    def apply(vectors: Tensor) -> Tensor:  # W^1/2 K W^1/2 + lambda
        return root * product(root * vectors) + decay * vectors

    # (W^1/2 K W^1/2 + lambda) z = W^1/2 v, and H v = K W^1/2 z
    most_left = TOLERANCE if decay else floor_of(precision) / 10
    solution, left, steps = conjugate_residuals(apply, root * signs, n_steps, most_left, is_normal=not decay)
    of_data = product(root * solution)
    asked = of_data if product_of_queries is None else product_of_queries(root * solution)
    squares = asked.square().mean(dim=1)  # [q m]
    noise_left = squares.mean(dim=1).sqrt()
    error = squares.std(dim=1) / n_probes**0.5 / (2 * noise_left.clamp(min=1e-300))
    traces = (2 * signs * of_data - of_data.square())[weights > 0].sum(dim=(0, 1))
    trace_error = float(traces.std()) / n_probes**0.5
    return Smoother(noise_left, error, float(traces.mean()), trace_error, 0, steps, left, most_left, signs - of_data)


def conjugate_residuals(
    apply: Callable[[Tensor], Tensor], right: Tensor, n_steps: int, most_left: float, *, is_normal: bool
) -> tuple[Tensor, float, int]:
    """x with apply(x) = right, or as near as can be, for each column of `right`, [... m]; what is left; and the steps.

    Args:
        apply: a symmetric map without negative eigenvalues.
        right: the right sides.
        n_steps: at most so many products.
        most_left: where to stop.
        is_normal: whether that is of the normal equations, |A r|, which is 0 at a least squares solution, too; else of
            the equations, |r|. Relative to what they began with, the largest of all columns.

    Reference:
        Saad (2003), "Iterative methods for sparse linear systems", section 6.8.
    """
    axes = tuple(range(right.dim() - 1))
    x, r = torch.zeros_like(right), right.clone()
    p, moved = r.clone(), apply(r)
    moved_p = moved.clone()

    def size(residual: Tensor, applied: Tensor) -> Tensor:
        return (applied if is_normal else residual).square().sum(dim=axes).sqrt()

    energy, begun = (r * moved).sum(dim=axes), size(r, moved)
    left, steps = 1.0, 0
    while steps < n_steps and left > most_left:
        steps += 1
        length = moved_p.square().sum(dim=axes)
        step = torch.where(length > 0, energy / length.clamp(min=1e-300), 0.0)
        x, r = x + step * p, r - step * moved_p
        moved = apply(r)
        after = (r * moved).sum(dim=axes)
        left = float((size(r, moved) / begun.clamp(min=1e-300)).max())
        ratio = torch.where(energy > 0, after / energy.clamp(min=1e-300), 0.0)
        p, moved_p, energy = r + ratio * p, moved + ratio * moved_p, after
    return x, left, steps
