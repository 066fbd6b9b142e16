"""What denoising factors are made of: sums of the kernel and of its square around each sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinsight.indexing.knn import sketches_of
from kinsight.indexing.store import Store
from kinsight.kernel_products import LEAST_SHARE
from kinsight.samples import Id

MAX_MOMENTS = 2**24
"""Numbers of the matrix of second moments that are held at once."""


@dataclass(frozen=True, eq=False)
class DenoisingSums:
    """Sums around each sample, of k_ij, the kernel of samples i and j, added up over outputs and not normalized.

        sums_i = sum_j k_ij    squares_i = sum_j k_ij^2    D_i = sqrt(squares_i) / sums_i

    Args:
        ids: of the samples, n of them.
        sums: [n], float64; 0 where the gradient is zero.
        squares: [n]; the estimate of a small one can be negative.
        error_of_sums: standard error of `sums`, [n].
        error_of_squares: standard error of `squares`, [n].
        norms: |g(x)|, over all outputs, [n].
    """

    ids: tuple[Id, ...]
    sums: Tensor
    squares: Tensor
    error_of_sums: Tensor
    error_of_squares: Tensor
    norms: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a sample."""
        names = ("sums", "squares", "error_of_sums", "error_of_squares", "factors", "error_of_factors")
        columns = {name: getattr(self, name).tolist() for name in names}
        for row, id_ in enumerate(self.ids):
            yield {"id": id_, **{name: column[row] for name, column in columns.items()}}

    def summary(self) -> str:
        """In words."""
        factors = self.factors
        known = factors[~factors.isnan()]
        n_unknown, n_negative = len(self) - len(known), int((known < 0).sum())
        reason = "gradients are zero, sums of the kernel cancel, or estimates are too far off"
        if not len(known):
            return f"For none of {len(self):,} samples is there a denoising factor: {reason}."
        text = (
            f"Of {len(known):,} samples, means of labels around half keep {float(known.abs().median()):.1%} of the "
            "noise of one label, or more"
        )
        text += f"; for {n_negative:,} the sum is negative, and the mean none" if n_negative else ""
        return f"{text}; for {n_unknown:,} more, {reason}." if n_unknown else f"{text}."

    @property
    def factors(self) -> Tensor:
        """D: standard deviation of the kernel-weighted mean of labels, over that of the noise of one label. [n].

        Negative where `sums` is. nan where `squares` is negative, or `sums` less than a thousandth of what it would be
        if all gradients were parallel.
        """
        is_small = self.sums.abs() <= LEAST_SHARE * self.norms * self.norms.sum()
        return (self.squares.sqrt() / self.sums).masked_fill(is_small, torch.nan)

    @property
    def error_of_factors(self) -> Tensor:
        """Standard error of D, to first order, the errors of the two sums taken for independent. [n]."""
        of_squares = self.error_of_squares / (2 * self.squares.clamp(min=0))
        return self.factors.abs() * (of_squares.square() + (self.error_of_sums / self.sums).square()).sqrt()


def denoising_sums(
    store: Store, ids: tuple[Id, ...], norms: Tensor, error: float, spread: float, excess: float
) -> DenoisingSums:
    """The sums of all samples with all, from sketches, in time linear in their number.

    With s_i the sketch of u_i = g_i / |g_i|, T = sum_j |g_j| s_j and C = sum_j |g_j|^2 s_j s_j^T:

        sums_i = |g_i| s_i . T    squares_i = |g_i|^2 (s_i . C s_i - error^2 sum_j |g_j|^2)    but for x itself: exact

    since the square of an inner product that is off by `error` is too large by error^2 on average. The errors are those
    of s_i . T, of s_i . C s_i, of error^2 itself, and of the sum of the squares of errors around its mean: as those of
    s_i . s_j and s_i . s_l go together as far as s_j and s_l do, that is 2 error^4 |C|^2. There, an error that was
    measured as less than what is usual for so many numbers, 1 / sqrt(dim), is not believed.

    Args:
        store: of an index whose sketches are of single gradients: one output, or the flat normalization.
        ids: of all samples.
        norms: of their gradients, [n].
        error: root mean square error of inner products of sketches.
        spread: standard error of that.
        excess: how much larger it is than that of a dense projection, at least 1.
    """
    dim, weights = store.about["dim"], norms.square()
    total = torch.zeros(dim, dtype=torch.float64)
    for first, values in sketches_of(store):
        total += norms[first : first + len(values)] @ values.double()
    squares, lengths, size = _through_moments(store, weights)
    own, sums = torch.zeros_like(norms), torch.zeros_like(norms)
    for first, values in sketches_of(store):
        rows, wide = slice(first, first + len(values)), values.double()
        own[rows], sums[rows] = wide.square().sum(dim=1), wide @ total
    is_zero, others = norms == 0, weights.sum() - weights
    error_of_sums = excess * norms * ((total.square().sum() + sums.square()) / dim).sqrt()
    typical = max(error**2, 1 / dim)
    variance = 4 * typical * (lengths + squares.square()) + 2 * typical**2 * size
    variance = variance + (2 * error * spread * others).square()
    sums = norms * (sums + norms * (1 - own))
    squares = weights * (squares + weights * (1 - own.square()) - others * error**2)
    return DenoisingSums(
        ids, sums.masked_fill(is_zero, 0.0), squares.masked_fill(is_zero, 0.0),
        error_of_sums, weights * variance.sqrt(), norms,
    )  # fmt: skip


def _through_moments(store: Store, weights: Tensor) -> tuple[Tensor, Tensor, float]:
    """s_i . C s_i and |C s_i|^2, [n] each, and |C|^2, of C = sum_j weight_j s_j s_j^T, some rows of it at a time."""
    dim, size = store.about["dim"], 0.0
    products, lengths = torch.zeros_like(weights), torch.zeros_like(weights)
    step = max(1, min(dim, MAX_MOMENTS // dim))
    for start in range(0, dim, step):
        chosen = slice(start, start + step)
        moments = torch.zeros(min(step, dim - start), dim, dtype=torch.float64)
        for first, values in sketches_of(store):
            wide = values.double()
            moments += (weights[first : first + len(values), None] * wide[:, chosen]).T @ wide
        size += float(moments.square().sum())
        for first, values in sketches_of(store):
            rows, wide = slice(first, first + len(values)), values.double()
            moved = wide @ moments.T
            products[rows] += (moved * wide[:, chosen]).sum(dim=1)
            lengths[rows] += moved.square().sum(dim=1)
    return products, lengths, size
