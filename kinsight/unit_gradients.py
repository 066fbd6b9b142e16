"""The gradients of a batch, normalized: their inner products are similarities."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from kinsight.axes import Mask, Mixing, PerSample
from kinsight.batch_gradients import BatchGradients
from kinsight.samples import Id


@dataclass(frozen=True, eq=False)
class UnitGradients:
    """Gradients of a batch scaled so that their inner products are similarities.

    Args:
        gradients: normalized; `gradients.gram(other.gradients)` is the block of similarities.
        norms: |g(x)|, over all outputs, [n].
        mixing: the map of the outputs that normalized them, [n a c].
        ranks: rank of K(x, x), [n] (of no meaning for the flat normalization: then c).
    """

    gradients: BatchGradients
    norms: PerSample
    mixing: Mixing
    ranks: Tensor

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

    def compact(self) -> UnitGradients:
        """The gradients in the form whose Gram block costs least."""
        return replace(self, gradients=self.gradients.compact())
