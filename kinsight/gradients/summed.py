"""Gradients over a parameter that is used more than once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinsight.gradients.base import Gradients
from kinsight.gradients.built import Built
from kinsight.gradients.contractions import chunks, total_of
from kinsight.gradients.factored import Factored
from kinsight.gradients.looked_up import LookedUp
from kinsight.gradients.projection import Projection


@dataclass(frozen=True, eq=False)
class Summed(Gradients):
    """Gradients over a parameter that is used more than once: the sum over its uses.

    The Gram block of a sum has the cross terms between different uses: adding the blocks of the uses is wrong.
    """

    parts: tuple[Gradients, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.parts[0].shape

    @property
    def is_moderate(self) -> bool:
        return all(part.is_moderate for part in self.parts)

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Summed:
        return Summed(tuple(part.with_tensors(change) for part in self.parts))

    def compact(self, *, is_eager: bool) -> Gradients:
        built = 4 * self.n * self.c * math.prod(self.shape)
        is_built = any(isinstance(part, Built) for part in self.parts)
        return Built(self.build()) if is_built and (is_eager or built <= self.n_bytes) else self

    def build(self) -> Tensor:
        return total_of([part.build() for part in self.parts])

    def mix(self, mixing: Tensor) -> Summed:
        return Summed(tuple(part.mix(mixing) for part in self.parts))

    def self_blocks(self) -> Tensor:
        step = 8 * self.c * math.prod(self.shape)
        return torch.cat([Built(self.rows(r.start, r.stop).build()).self_blocks() for r in chunks(self.n, step)])

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return total_of([part.weighted_sum(weights) for part in self.parts])

    def dot(self, directions: Tensor) -> Tensor:
        return total_of([part.dot(directions) for part in self.parts])

    def sketch(self, projection: Projection) -> Tensor:
        return total_of([part.sketch(projection) for part in self.parts])

    def bound(self) -> Tensor:
        return total_of([part.bound() for part in self.parts])

    def gram_cost(self, n: int, m: int) -> float:
        return len(self.parts) * sum(part.gram_cost(n, m) for part in self.parts)  # each meets each

    def rows(self, start: int, stop: int) -> Summed:
        return Summed(tuple(part.rows(start, stop) for part in self.parts))


def add_uses(uses: Sequence[Gradients]) -> Gradients:
    """The gradients over one parameter from all of its uses, joined along positions where forms allow.

    A parameter used twice has as its gradient the SUM over uses; concatenating positions is that sum.
    """
    joined: list[Gradients] = []
    for use in uses:
        for place, other in enumerate(joined):
            merged = _join(other, use)
            if merged is not None:
                joined[place] = merged
                break
        else:
            joined.append(use)
    return joined[0] if len(joined) == 1 else Summed(tuple(joined))


def _join(x: Gradients, y: Gradients) -> Gradients | None:
    if isinstance(x, Built) and isinstance(y, Built):
        bounded = x.uncancelled is not None and y.uncancelled is not None
        return Built(x.values + y.values, x.bound() + y.bound() if bounded else None)
    if isinstance(x, LookedUp) and isinstance(y, LookedUp):
        tokens = torch.cat([x.tokens, y.tokens], dim=1)
        return LookedUp(tokens, torch.cat([x.output_gradients, y.output_gradients], dim=2), x.shape)
    if isinstance(x, Factored) and isinstance(y, Factored):
        same_groups = x.inputs.shape[2:] == y.inputs.shape[2:]
        if x.gradient_first == y.gradient_first and same_groups:
            inputs = torch.cat([x.inputs, y.inputs], dim=1)
            gradients = torch.cat([x.output_gradients, y.output_gradients], dim=2)
            return replace(x, inputs=inputs, output_gradients=gradients)
    return None
