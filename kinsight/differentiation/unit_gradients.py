"""The gradients of a batch, normalized: their inner products are similarities."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinsight.axes import Mask, Mixing, PerSample
from kinsight.captures.running import check_finite
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.errors import ZeroGradientWarning
from kinsight.gradients.contractions import Form, are_safe
from kinsight.normalization import Normalization, check_normalization
from kinsight.samples import Id
from kinsight.whitening import spectrum


@dataclass(frozen=True, eq=False)
class Normalizer:
    """What makes the gradients of a batch unit gradients.

    Args:
        norms: |g(x)|, over all outputs, [n].
        mixing: the linear map of each sample's outputs that normalizes them, in float64, [n a c]; 0 where they are 0.
        ranks: rank of K(x, x), [n] (of no meaning for the flat normalization: then c).
        scale: what the map multiplies by, [n], where it is nothing but that.
        spread: how much more the map magnifies some combinations of outputs than others, [n], where it does.
    """

    norms: PerSample
    mixing: Mixing
    ranks: Tensor
    scale: PerSample | None = None
    spread: PerSample | None = None

    @staticmethod
    def of(gradients: BatchGradients, normalization: Normalization, precision: torch.dtype) -> Normalizer:
        """That of the gradients of one batch, which were computed in that precision.

        Raises:
            NonFiniteError: norms overflow, with the samples' ids.
            UnknownNameError: there is no such normalization.
        """
        check_normalization(normalization)
        own = gradients.self_blocks()
        check_finite(own, gradients, "gradients")
        c = own.shape[1]
        norms = own.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=0).sqrt()
        if normalization == "flat" or c == 1:
            return Normalizer.scaling(norms, c)
        found = spectrum(own, precision)
        mixing = found.power(-0.5) / found.ranks.clamp(min=1).double().sqrt()[:, None, None]
        return Normalizer(norms, mixing, found.ranks, spread=found.spread)

    @staticmethod
    def scaling(norms: PerSample, c: int) -> Normalizer:
        """All c outputs of a sample divided by one norm."""
        scale = torch.where(norms > 0, 1 / norms, 0.0)
        mixing = scale[:, None, None] * torch.eye(c, dtype=scale.dtype, device=scale.device)
        return Normalizer(norms, mixing, (norms > 0).long() * c, scale)

    @property
    def is_defined(self) -> Mask:
        """Whether each sample's similarities are defined: its gradient is not zero. [n]."""
        return self.norms > 0

    @property
    def is_safe(self) -> bool:
        """Whether no norm, nor its inverse, is near the ends of float32."""
        return are_safe(self.norms)


@dataclass(frozen=True, eq=False)
class UnitGradients:
    """Gradients of a batch and what normalizes them, so that their inner products are similarities.

    Args:
        gradients: of the batch, normalized but for `scale`.
        norms: |g(x)| as they were, over all outputs, [n].
        scale: what each sample's gradients are yet to be multiplied by, [n]; None where that is done.
    """

    gradients: BatchGradients
    norms: PerSample
    scale: PerSample | None = None

    @staticmethod
    def of(gradients: BatchGradients, by: Normalizer) -> UnitGradients:
        """The gradients, normalized; where only a number is missing, nothing is touched until products are there."""
        if by.scale is not None and by.is_safe:
            return UnitGradients(gradients, by.norms, by.scale)
        return UnitGradients(gradients.mix(by.mixing), by.norms)

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


def mark_undefined(a: UnitGradients, b: UnitGradients, block: Tensor, undefined: dict[Id, None]) -> Tensor:
    """The block with nan in rows and columns of samples whose gradient is zero; their ids are noted."""
    undefined.update(dict.fromkeys([*a.undefined_ids, *b.undefined_ids]))
    block[~a.is_defined] = torch.nan
    block[:, ~b.is_defined] = torch.nan
    return block


def warn_undefined(ids: Sequence[Id]) -> None:
    """Warn that the similarity of these samples is undefined, if there are any."""
    if ids:
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        warnings.warn(
            f"The gradient of {len(ids)} samples is zero: {list(ids[:5])}{more}. Moving the parameters does not move "
            "their output (dead units?), so their similarity to anything is undefined: nan here, left out of sums.",
            ZeroGradientWarning,
            stacklevel=3,
        )
