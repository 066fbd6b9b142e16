"""Gradients over an embedding table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinsight.gradients.base import Gradients
from kinsight.gradients.built import Built
from kinsight.gradients.contractions import chunks, in_float64, mixed, norm_over, part_of, same_token
from kinsight.gradients.costs import MOVE
from kinsight.gradients.projection import Projection


@dataclass(frozen=True, eq=False)
class LookedUp(Gradients):
    """Gradients over an embedding table: at each position, the output gradient goes to the token's row.

    Args:
        tokens: rows looked up, [n t]; -1 where the gradient is dropped (padding).
        output_gradients: [n c t i], i the table's width.
        shape: (vocabulary size, i).
    """

    tokens: Int[Tensor, "n t"]
    output_gradients: Float[Tensor, "n c t i"]
    shape: tuple[int, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.output_gradients, self.tokens)

    def compact(self, *, is_eager: bool) -> Gradients:
        return Built(self.build()) if self.shape[0] <= self.tokens.shape[1] else self

    def build(self) -> Tensor:
        values = self.output_gradients.new_zeros(self.n, self.c, self.shape[0] + 1, self.shape[1])
        rows = self.tokens.where(self.tokens >= 0, self.shape[0])[:, None, :, None]
        values = values.scatter_add(2, rows.expand_as(self.output_gradients), self.output_gradients)
        return values[:, :, : self.shape[0]]

    def mix(self, mixing: Tensor) -> LookedUp:
        return replace(self, output_gradients=mixed(mixing, self.output_gradients))

    def self_blocks(self) -> Tensor:
        blocks = []
        for rows in chunks(self.n, 8 * self.tokens.shape[1] * (self.tokens.shape[1] + 2 * self.c * self.shape[1])):
            same = in_float64(same_token(self.tokens[rows, :, None], self.tokens[rows, None, :]))
            gradients = in_float64(self.output_gradients[rows])
            blocks.append(torch.einsum("ncti,ndti->ncd", gradients, torch.einsum("nts,ncsi->ncti", same, gradients)))
        return torch.cat(blocks)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        gradients = torch.einsum("knc,ncti->knti", weights, self.output_gradients).flatten(1, 2)
        total = gradients.new_zeros(gradients.shape[0], self.shape[0] + 1, self.shape[1])
        rows = self.tokens.where(self.tokens >= 0, self.shape[0]).flatten()
        return total.index_add(1, rows, gradients)[:, : self.shape[0]]

    def dot(self, directions: Tensor) -> Tensor:
        looked_up = directions[:, self.tokens.clamp(min=0)] * (self.tokens >= 0)[..., None]
        return torch.einsum("ncti,knti->nck", self.output_gradients, looked_up)

    def sketch(self, projection: Projection) -> Tensor:
        return projection.of_looked_up(self.tokens, self.output_gradients, self.shape)

    def bound(self) -> Tensor:
        return norm_over(self.output_gradients, (1, 3)).sum(dim=1)

    def rows(self, start: int, stop: int) -> LookedUp:
        return LookedUp(self.tokens[start:stop], part_of(self.output_gradients, start, stop), self.shape)

    def gram_cost(self, n: int, m: int) -> float:
        t = self.tokens.shape[1]
        return float(n * (m or n) * t * t * (self.c * self.shape[1] + MOVE))
