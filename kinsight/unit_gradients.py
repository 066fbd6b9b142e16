"""The gradients of a batch, normalized: their inner products are similarities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinsight.axes import Mask, Mixing, PerSample
from kinsight.batch_gradients import BatchGradients
from kinsight.contractions import SAFE_NORMS, Form
from kinsight.samples import Id


@dataclass(frozen=True, eq=False)
class UnitGradients:
    """Gradients of a batch and what normalizes them, so that their inner products are similarities.

    Args:
        gradients: of the batch, normalized but for `scale`.
        scale: what each sample's gradients are yet to be multiplied by, [n]; None where that is done.
        norms: |g(x)|, over all outputs, [n].
        mixing: the map of the outputs that normalizes them, `scale` included, [n a c].
        ranks: rank of K(x, x), [n] (of no meaning for the flat normalization: then c).
    """

    gradients: BatchGradients
    scale: PerSample | None
    norms: PerSample
    mixing: Mixing
    ranks: Tensor

    @staticmethod
    def scaled(gradients: BatchGradients, norms: PerSample) -> UnitGradients:
        """All outputs of a sample divided by one norm: nothing is touched until inner products are there."""
        c = gradients.n_outputs
        scale = torch.where(norms > 0, 1 / norms, 0.0)
        mixing = scale[:, None, None] * torch.eye(c, dtype=scale.dtype, device=scale.device)
        ranks = (norms > 0).long() * c
        low, high = SAFE_NORMS
        if bool(((norms == 0) | ((norms > low) & (norms < high))).all()):
            return UnitGradients(gradients, scale, norms, mixing, ranks)
        return UnitGradients(gradients.mix(mixing), None, norms, mixing, ranks)

    @property
    def is_defined(self) -> Mask:
        """Whether each sample's similarities are defined: its gradient is not zero. [n]."""
        return self.norms > 0

    @property
    def undefined_ids(self) -> list[Id]:
        """Ids of the samples whose gradient is zero."""
        flags = self.is_defined.tolist()
        return [id_ for id_, is_defined in zip(self.gradients.ids, flags, strict=True) if not is_defined]

    @property
    def n_bytes(self) -> int:
        """Memory held."""
        return self.gradients.n_bytes

    def compact(self, *, is_eager: bool) -> UnitGradients:
        """The gradients in the form that is best kept."""
        return replace(self, gradients=self.gradients.compact(is_eager=is_eager))

    def gram(self, other: UnitGradients, form: Form = "trace") -> Tensor:
        """Similarities with another batch. [n m], [n m c] (diagonal) or [n m c c] (blocks)."""
        return self.normalized(self.gradients.gram(other.gradients, form), other)

    def normalized(self, block: Tensor, other: UnitGradients) -> Tensor:
        """A Gram block of the gradients with another batch's, written over with what is left to normalize."""
        axes = (1,) * (block.dim() - 2)
        if self.scale is not None:
            block *= self.scale.to(block).reshape(-1, 1, *axes)
        if other.scale is not None:
            block *= other.scale.to(block).reshape(1, -1, *axes)
        return block

    def sum(self) -> dict[str, Tensor]:
        """sum_n u_a(x_n), one direction an output. name -> [c *shape]."""
        n, c = len(self.gradients), self.gradients.n_outputs
        ones = torch.ones_like(self.norms) if self.scale is None else self.scale
        each = torch.eye(c, dtype=ones.dtype, device=ones.device)[:, None, :] * ones[None, :, None]
        return self.gradients.weighted_sum(each.expand(c, n, c))

    def dot(self, directions: Mapping[str, Tensor]) -> PerSample:
        """sum_a u_a(x) . directions_a, for one direction an output. [n]."""
        dots = self.gradients.dot(directions).diagonal(dim1=1, dim2=2).sum(dim=1)
        return dots if self.scale is None else dots * self.scale.to(dots)
