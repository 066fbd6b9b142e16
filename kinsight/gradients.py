"""Per-sample gradients of one parameter, in the form that is cheapest, and the six operations on them.

Whatever a layer is, the gradients of c outputs over one parameter, for n samples, come in one of four forms:

    Built      the gradients themselves, [n c *shape]
    Factored   sum over positions t of (layer input) x (output gradient): nothing is multiplied out
    LookedUp   the same with a one-hot layer input, kept as the tokens: an embedding table
    Summed     several of the above: a parameter that is used more than once

Every form offers the same six operations, all that the rest of kinsight is made of: `gram`, `self_blocks` (K_nn,
whose trace is the squared norm), `weighted_sum`, `dot`, `sketch` and `build`; and `mix`, a linear map of its
output axis. All of them are differentiable.

Tensors carry the axis letters of `kinsight.axes`: n m samples, c d outputs, t s positions, g groups,
i o features, k directions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinsight.contractions import (
    Form,
    chunks,
    crossed_gram,
    in_float64,
    is_built_cheaper,
    mirrored,
    mixed,
    norm_over,
    position_gram,
    same_token,
    self_product,
    total_of,
)
from kinsight.sketch import Projection


class Gradients(ABC):
    """Gradients of c outputs over one parameter for each of n samples, [n c *shape].

    `shape` is the parameter's own. Two `Gradients` can be combined when they belong to the same parameter.
    """

    shape: tuple[int, ...]

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held. The first is [n c ...], in the precision of the gradients."""

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.tensors[0].shape[0]

    @property
    def c(self) -> int:
        """Number of outputs."""
        return self.tensors[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Precision the gradients are kept in."""
        return self.tensors[0].dtype

    @property
    def n_bytes(self) -> int:
        """Memory held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    @abstractmethod
    def build(self) -> Float[Tensor, "n c *shape"]:
        """The gradients themselves. [n c *shape]."""

    @abstractmethod
    def mix(self, mixing: Float[Tensor, "n a c"]) -> Gradients:
        """The gradients of a linear map of each sample's outputs: row a is sum_c mixing[n, a, c] grad_c."""

    @abstractmethod
    def gram(self, other: Gradients, form: Form) -> Float[Tensor, "n m *form"]:
        """Inner products with another batch: [n m] (trace), [n m c] (diagonal) or [n m c d] (blocks)."""

    @abstractmethod
    def self_blocks(self) -> Float[Tensor, "n c c"]:
        """Inner products of each sample's own gradients, K_nn, accumulated in float64. [n c c]."""

    @abstractmethod
    def weighted_sum(self, weights: Float[Tensor, "k n c"]) -> Float[Tensor, "k *shape"]:
        """sum_nc weights[k, n, c] grad_nc: k tensors of the parameter's shape."""

    @abstractmethod
    def dot(self, directions: Float[Tensor, "k *shape"]) -> Float[Tensor, "n c k"]:
        """Inner products with k directions of the parameter's shape. [n c k]."""

    @abstractmethod
    def sketch(self, projection: Projection) -> Float[Tensor, "n c dim"]:
        """Random projection whose inner products estimate the Gram block without bias. [n c dim]."""

    @abstractmethod
    def bound(self) -> Float[Tensor, " n"]:
        """Norm of each sample's gradients were nothing to cancel: the scale of their rounding error. [n]."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Gradients:
        """The gradients of samples start:stop."""

    def compact(self) -> Gradients:
        """The form whose Gram block costs least: itself, or built."""
        return self


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

    def gram(self, other: Gradients, form: Form) -> Tensor:
        x, y = self.flat, Built(other.build()).flat
        if form == "trace":
            return x.flatten(1) @ y.flatten(1).T
        if form == "diagonal":
            return torch.bmm(x.transpose(0, 1), y.permute(1, 2, 0)).permute(1, 2, 0)
        product = x.flatten(0, 1) @ y.flatten(0, 1).T
        return product.reshape(x.shape[0], x.shape[1], y.shape[0], y.shape[1]).transpose(1, 2)

    def self_blocks(self) -> Tensor:
        flat = self.flat
        return torch.cat([self_product(flat[rows]) for rows in chunks(self.n, 8 * flat[:1].numel())])

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return (weights.flatten(1) @ self.flat.flatten(0, 1)).reshape(-1, *self.shape)

    def dot(self, directions: Tensor) -> Tensor:
        return self.flat @ directions.reshape(directions.shape[0], -1).T

    def sketch(self, projection: Projection) -> Tensor:
        return projection.of_built(self.values)

    def bound(self) -> Tensor:
        return norm_over(self.flat, (1, 2)) if self.uncancelled is None else self.uncancelled

    def rows(self, start: int, stop: int) -> Built:
        return Built(self.values[start:stop])


@dataclass(frozen=True, eq=False)
class Factored(Gradients):
    """Gradients sum_t input_t x output_gradient_t of a matrix (or of g matrices) applied at positions t.

    The parameter, read row by row, is [g i o], or [g o i] where the output gradient's features come first.

    Args:
        inputs: layer inputs, [n t g i].
        output_gradients: gradients of c outputs at the layer's output, [n c t g o].
        shape: the parameter's own shape.
        gradient_first: whether the parameter's rows are the layer's outputs.
    """

    inputs: Float[Tensor, "n t g i"]
    output_gradients: Float[Tensor, "n c t g o"]
    shape: tuple[int, ...]
    gradient_first: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.output_gradients, self.inputs)

    def transposed(self) -> Factored:
        """The gradients over the transposed matrix."""
        return Factored(self.inputs, self.output_gradients, self.shape[::-1], not self.gradient_first)

    def compact(self) -> Gradients:
        """Built where that costs fewer flops a pair; the rule is `is_built_cheaper`."""
        _, t, g, i = self.inputs.shape
        if is_built_cheaper(t=t, g=g, i=i, o=self.output_gradients.shape[-1], c=self.c):
            return Built(self.build())
        return self

    def build(self) -> Tensor:
        n, t, g, i = self.inputs.shape
        c, o = self.c, self.output_gradients.shape[-1]
        gradients = self.output_gradients.permute(0, 3, 1, 4, 2).reshape(n * g, c * o, t)
        product = torch.bmm(gradients, self.inputs.transpose(1, 2).reshape(n * g, t, i)).reshape(n, g, c, o, i)
        axes = (0, 2, 1, 3, 4) if self.gradient_first else (0, 2, 1, 4, 3)
        return product.permute(axes).reshape(n, c, *self.shape)

    def mix(self, mixing: Tensor) -> Factored:
        return Factored(self.inputs, mixed(mixing, self.output_gradients), self.shape, self.gradient_first)

    def gram(self, other: Gradients, form: Form) -> Tensor:
        if isinstance(other, Factored) and other.gradient_first == self.gradient_first:
            inputs = (self.inputs.permute(2, 0, 1, 3), other.inputs.permute(2, 0, 1, 3))
            return position_gram(inputs, (self.output_gradients, other.output_gradients), form)
        if isinstance(other, LookedUp) and self.gradient_first:
            return crossed_gram(
                self.inputs[:, :, 0], self.output_gradients[:, :, :, 0], other.tokens, other.output_gradients, form
            )
        if isinstance(other, Summed):
            return mirrored(other.gram(self, form), form)
        return Built(self.build()).gram(other, form)

    def self_blocks(self) -> Tensor:
        n, t, g, i = self.inputs.shape
        o = self.output_gradients.shape[-1]
        if t * t * (i + self.c * o) > self.c * o * i * (t + self.c):
            step = 8 * self.c * g * i * o
            return torch.cat([Built(self.rows(r.start, r.stop).build()).self_blocks() for r in chunks(n, step)])
        blocks = []
        for rows in chunks(n, 8 * g * t * (i + self.c * o + t * (1 + self.c))):
            inputs = in_float64(self.inputs[rows].transpose(1, 2))
            weights = inputs @ inputs.transpose(2, 3)
            gradients = in_float64(self.output_gradients[rows].permute(0, 3, 1, 2, 4))
            moved = torch.einsum("ngts,ngcso->ngcto", weights, gradients)
            blocks.append(torch.einsum("ngcto,ngdto->ncd", gradients, moved))
        return torch.cat(blocks)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        n, t, g, i = self.inputs.shape
        gradients = torch.einsum("knc,nctgo->gkont", weights, self.output_gradients)
        k, o = gradients.shape[1:3]
        inputs = self.inputs.permute(2, 0, 1, 3).reshape(g, n * t, i)
        product = torch.bmm(gradients.reshape(g, k * o, n * t), inputs).reshape(g, k, o, i)
        axes = (1, 0, 2, 3) if self.gradient_first else (1, 0, 3, 2)
        return product.permute(axes).reshape(k, *self.shape)

    def dot(self, directions: Tensor) -> Tensor:
        n, t, g, i = self.inputs.shape
        k, o = directions.shape[0], self.output_gradients.shape[-1]
        if self.gradient_first:
            matrices = directions.reshape(k, g, o, i).permute(1, 3, 0, 2)
        else:
            matrices = directions.reshape(k, g, i, o).permute(1, 2, 0, 3)
        moved = torch.bmm(self.inputs.permute(2, 0, 1, 3).reshape(g, n * t, i), matrices.reshape(g, i, k * o))
        moved = moved.reshape(g, n, t, k, o).permute(1, 2, 0, 4, 3).reshape(n, t * g * o, k)
        return torch.bmm(self.output_gradients.reshape(n, self.c, t * g * o), moved)

    def sketch(self, projection: Projection) -> Tensor:
        sketch = projection.of_factored(
            self.inputs, self.output_gradients, self.shape, gradient_first=self.gradient_first
        )
        return projection.of_built(self.build()) if sketch is None else sketch

    def bound(self) -> Tensor:
        return (norm_over(self.inputs, -1) * norm_over(self.output_gradients, (1, 4))).sum(dim=(1, 2))

    def rows(self, start: int, stop: int) -> Factored:
        inputs, gradients = self.inputs[start:stop], self.output_gradients[start:stop]
        return Factored(inputs, gradients, self.shape, self.gradient_first)


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

    def compact(self) -> Gradients:
        t, (vocabulary, width) = self.tokens.shape[1], self.shape
        if is_built_cheaper(t=t, g=1, i=vocabulary, o=width, c=self.c, input_cost=1):
            return Built(self.build())
        return self

    def build(self) -> Tensor:
        values = self.output_gradients.new_zeros(self.n, self.c, self.shape[0] + 1, self.shape[1])
        rows = self.tokens.where(self.tokens >= 0, self.shape[0])[:, None, :, None]
        values = values.scatter_add(2, rows.expand_as(self.output_gradients), self.output_gradients)
        return values[:, :, : self.shape[0]]

    def mix(self, mixing: Tensor) -> LookedUp:
        return LookedUp(self.tokens, mixed(mixing, self.output_gradients), self.shape)

    def gram(self, other: Gradients, form: Form) -> Tensor:
        if isinstance(other, LookedUp):
            gradients = (self.output_gradients.unsqueeze(3), other.output_gradients.unsqueeze(3))
            return position_gram((self.tokens, other.tokens), gradients, form)
        if isinstance(other, Summed) or (isinstance(other, Factored) and other.gradient_first):
            return mirrored(other.gram(self, form), form)
        return Built(self.build()).gram(other, form)

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
        return LookedUp(self.tokens[start:stop], self.output_gradients[start:stop], self.shape)


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

    def compact(self) -> Gradients:
        if any(isinstance(part.compact(), Built) for part in self.parts):
            return Built(self.build())
        return self

    def build(self) -> Tensor:
        total = self.parts[0].build()
        for part in self.parts[1:]:
            total = total + part.build()
        return total

    def mix(self, mixing: Tensor) -> Summed:
        return Summed(tuple(part.mix(mixing) for part in self.parts))

    def gram(self, other: Gradients, form: Form) -> Tensor:
        if isinstance(other, Built):
            return Built(self.build()).gram(other, form)
        others = other.parts if isinstance(other, Summed) else (other,)
        return total_of([x.gram(y, form) for x in self.parts for y in others])

    def self_blocks(self) -> Tensor:
        return torch.cat(
            [
                Built(self.rows(r.start, r.stop).build()).self_blocks()
                for r in chunks(self.n, 8 * self.c * math.prod(self.shape))
            ]
        )

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return total_of([part.weighted_sum(weights) for part in self.parts])

    def dot(self, directions: Tensor) -> Tensor:
        return total_of([part.dot(directions) for part in self.parts])

    def sketch(self, projection: Projection) -> Tensor:
        return total_of([part.sketch(projection) for part in self.parts])

    def bound(self) -> Tensor:
        return total_of([part.bound() for part in self.parts])

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
            return Factored(inputs, gradients, x.shape, x.gradient_first)
    return None
