"""Gradients that have been multiplied out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from kinsight.gradients.base import Gradients
from kinsight.gradients.contractions import mixed, norm_over, part_of, self_product
from kinsight.gradients.projection import Projection


@dataclass(frozen=True, eq=False)
class Built(Gradients):
    """Gradients that have been multiplied out.

    Args:
        values: [n c *shape].
        uncancelled: [n], see `bound`; where it is not known, the norm itself stands in.
    """

    values: Tensor
    uncancelled: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.values.shape[2:])

    @property
    def flat(self) -> Float[Tensor, "n c p"]:
        """The gradients with the parameter's axes as one, [n c p]."""
        return self.values.reshape(self.n, self.c, math.prod(self.shape))

    def build(self) -> Tensor:
        return self.values

    def mix(self, mixing: Tensor) -> Built:
        return Built(mixed(mixing, self.values))

    def self_blocks(self) -> Tensor:
        return self_product(self.flat)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return (weights.flatten(1) @ self.flat.flatten(0, 1)).reshape(-1, *self.shape)

    def dot(self, directions: Tensor) -> Tensor:
        return self.flat @ directions.reshape(directions.shape[0], -1).T

    def sketch(self, projection: Projection) -> Tensor:
        return projection.of_built(self.values)

    def bound(self) -> Tensor:
        return norm_over(self.flat, (1, 2)) if self.uncancelled is None else self.uncancelled

    def rows(self, start: int, stop: int) -> Built:
        return Built(part_of(self.values, start, stop))

    def gram_cost(self, n: int, m: int) -> float:
        return float(n * (m or n) * self.c * math.prod(self.shape))
