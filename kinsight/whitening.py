"""Inverse and inverse root of K(x, x), per sample, safe at any rank.

Always by eigendecomposition in float64, with a floor relative to the largest eigenvalue; never inv(sqrtm(K)).
Outputs that are tied together (log-probabilities, centered logits) make K(x, x) singular: the missing directions are
left out, and the rank is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinsight.axes import PerSample, SelfBlocks

GRADIENT_PRECISION = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 0.05, torch.float16: 5e-3}
"""Relative error of a computed gradient. An eigenvalue of K(x, x) is a squared length: below the square of this
it is rounding. Measured on log-probabilities and centered logits of the models in tests/zoo.py, where the smallest is
0: at most 5e-16 of the largest (float64), 2e-14 (float32), 3e-5 (bfloat16)."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and eigenvectors of K(x, x) for each sample, in float64.

    Args:
        values: [n c], ascending; those below the floor set to 0.
        vectors: [n c c], in columns.
        ranks: number of eigenvalues above the floor, [n].
    """

    values: Float[Tensor, "n c"]
    vectors: Float[Tensor, "n c c"]
    ranks: Int[Tensor, " n"]

    @property
    def spread(self) -> PerSample:
        """Longest over shortest direction that the gradients of the outputs span, [n]; 1 where they are zero."""
        longest = self.values.max(dim=1).values
        shortest = torch.where(self.values > 0, self.values, torch.inf).min(dim=1).values
        return (longest / torch.where(longest > 0, shortest, 1.0)).sqrt().clamp(min=1)

    def power(self, exponent: float) -> SelfBlocks:
        """K(x, x)^exponent on its range: a negative exponent gives the pseudo-inverse's power. [n c c]."""
        powers = torch.where(self.values > 0, self.values.clamp(min=torch.finfo(torch.float64).tiny) ** exponent, 0.0)
        return (self.vectors * powers[:, None, :]) @ self.vectors.transpose(1, 2)


def spectrum(self_blocks: SelfBlocks, precision: torch.dtype) -> Spectrum:
    """The spectrum of K(x, x) for each sample.

    Args:
        self_blocks: K(x, x), accumulated in float64, [n c c].
        precision: in which the gradients themselves were computed; it sets the floor.
    """
    c = self_blocks.shape[1]
    symmetric = 0.5 * (self_blocks + self_blocks.transpose(1, 2))
    values, vectors = torch.linalg.eigh(symmetric)
    floor = max(GRADIENT_PRECISION[precision] ** 2, 16 * c * torch.finfo(torch.float64).eps)
    kept = (values > floor * values[:, -1:]) & (values > 0)
    return Spectrum(torch.where(kept, values, 0.0), vectors, kept.sum(dim=1))


def best_rotation_trace(blocks: Float[Tensor, "n m c c"], *, is_special: bool) -> Float[Tensor, "n m"]:
    """max_R Tr(R K) over orthogonal R, or over rotations (det R = 1).

    The sum of singular values, the smallest with its sign flipped where det K < 0 and R has to be a rotation.
    """
    values: Tensor = torch.linalg.svdvals(blocks)
    total = values.sum(dim=-1)
    if is_special:
        flipped = torch.linalg.det(blocks) < 0
        total = total - torch.where(flipped, 2 * values[..., -1], 0.0)
    return total
