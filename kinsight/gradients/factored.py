"""Gradients of a matrix applied at several positions, kept as their factors."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from kinsight.gradients.base import Gradients
from kinsight.gradients.built import Built
from kinsight.gradients.contractions import chunks, combined, in_float64, mixed, norm_over, part_of
from kinsight.gradients.costs import PASSING_BYTES, gram_costs, is_gram_built, is_norm_built, is_sketch_built
from kinsight.gradients.projection import Projection, axes_of
from kinsight.gradients.scratch import Scratch


@dataclass(frozen=True)
class Sizes:
    """Sizes of factored gradients: t positions, g groups, i input and o output features in each, c outputs."""

    t: int
    g: int
    i: int
    o: int
    c: int


class Product(Gradients):
    """Gradients sum_t input_t x output_gradient_t: what `Factored` and `Convolved` have in common."""

    gradient_first: bool

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """Sizes of its factors."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Product:
        """The gradients of samples start:stop."""

    @abstractmethod
    def factored(self) -> Factored:
        """The same with both factors laid out position by position."""

    @property
    @abstractmethod
    def n_parts(self) -> int:
        """Number of parts that `narrow` can cut the parameter into: groups, or input channels of a single one."""

    @abstractmethod
    def narrow(self, start: int, stop: int) -> Product:
        """The gradients over parts start:stop of the parameter."""

    @abstractmethod
    def multiplied(self, scratch: Scratch, place: str) -> Float[Tensor, "n c p"]:
        """The gradients of each output in one row, entries output feature by output feature (within each group).

        Args:
            scratch: where they may lie.
            place: which part of it they then take.
        """

    @abstractmethod
    def cotangents(self, others: Float[Tensor, "n c *shape"], *, of_inputs: bool) -> tuple[Tensor | None, Tensor]:
        """Slopes of the sum of their inner products with others: over inputs, where asked, and output gradients."""

    def compact(self, *, is_eager: bool) -> Gradients:
        s = self.sizes
        is_smaller = s.c * s.g * s.i * s.o <= s.t * s.g * (s.i + s.c * s.o)
        is_faster = is_gram_built(n=64, m=64, t=s.t, s=s.t, g=s.g, i=s.i, o=s.o, c=s.c)
        return Built(self.build()) if is_faster and (is_eager or is_smaller) else self

    def gram_cost(self, n: int, m: int) -> float:
        s = self.sizes
        if s.t == 1:
            return float(n * (m or n) * s.g * (s.i + s.c * s.o))
        return min(gram_costs(n=n, m=m, t=s.t, s=s.t, g=s.g, i=s.i, o=s.o, c=s.c))

    def self_blocks(self) -> Tensor:
        s = self.sizes
        if is_norm_built(t=s.t, g=s.g, i=s.i, o=s.o, c=s.c):
            scratch = Scratch()
            parts = (self.rows(r.start, r.stop) for r in chunks(self.n, 4 * s.c * s.g * s.i * s.o))
            return torch.cat([Built(part.multiplied(scratch, "rows")).self_blocks() for part in parts])
        step = self.tensors[0].element_size() * s.t * s.g * (s.i + s.c * s.o)
        return torch.cat([self.rows(r.start, r.stop).factored()._own_products() for r in chunks(self.n, step)])

    def _built_in(self, scratch: Scratch) -> Built:
        """The gradients, multiplied out where the last ones lay."""
        if not self.gradient_first:
            return Built(self.build())
        return Built(self.multiplied(scratch, "rows").view(self.n, self.c, *self.shape))

    def sketch(self, projection: Projection) -> Tensor:
        return self._sketched(projection, has_squares=False)[0]

    def sketch_and_squares(self, projection: Projection) -> tuple[Tensor, Tensor]:
        sketch, squares = self._sketched(projection, has_squares=True)
        return sketch, super().sketch_and_squares(projection)[1] if squares is None else squares

    def _sketched(self, projection: Projection, *, has_squares: bool) -> tuple[Tensor, Tensor | None]:
        """The sketch; and the squares, where gradients are built for it."""
        s, scratch = self.sizes, Scratch()
        n_axes = axes_of(self.shape, s.g * (s.o if self.gradient_first else s.i))
        is_built = n_axes is None or is_sketch_built(
            t=s.t, g=s.g, i=s.i, o=s.o, c=s.c, dim=projection.dim, has_squares=has_squares
        )
        sketches, squares = [], []
        size = s.c * s.g * s.i * s.o if is_built else s.t * s.g * (s.i + s.c * s.o)
        for rows in chunks(self.n, self.tensors[0].element_size() * size, PASSING_BYTES):
            part = self.rows(rows.start, rows.stop)
            if is_built:
                built = part._built_in(scratch)
                sketches.append(projection.of_built(built.values))
                if has_squares:
                    squares.append(built.self_blocks().diagonal(dim1=1, dim2=2).sum(dim=1))
            else:
                layer = part.factored()
                sketches.append(
                    projection.of_factored(
                        layer.inputs, layer.output_gradients, self.shape, gradient_first=self.gradient_first
                    )
                )
        return torch.cat(sketches), torch.cat(squares) if squares else None


@dataclass(frozen=True, eq=False)
class Factored(Product):
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

    @property
    def sizes(self) -> Sizes:
        _, t, g, i = self.inputs.shape
        return Sizes(t, g, i, self.output_gradients.shape[-1], self.c)

    def factored(self) -> Factored:
        return self

    def build(self) -> Tensor:
        n, t, g, i = self.inputs.shape
        c, o = self.c, self.output_gradients.shape[-1]
        inputs = self.inputs.transpose(1, 2).reshape(n * g, t, i)
        gradients = self.output_gradients.permute(0, 3, 1, 4, 2).reshape(n * g, c * o, t)
        if g == c == 1 and not self.gradient_first:
            return torch.bmm(inputs.transpose(1, 2), gradients.transpose(1, 2)).reshape(n, 1, *self.shape)
        product = torch.bmm(gradients, inputs).reshape(n, g, c, o, i)
        axes = (0, 2, 1, 3, 4) if self.gradient_first else (0, 2, 1, 4, 3)
        return product.permute(axes).reshape(n, c, *self.shape)

    def multiplied(self, scratch: Scratch, place: str) -> Tensor:
        n, t, g, i = self.inputs.shape
        c, o = self.c, self.output_gradients.shape[-1]
        if g > 1 or self.is_differentiated:
            return self.build().flatten(2)
        inputs, gradients = self.inputs[:, :, 0], self.output_gradients[:, :, :, 0]  # [n t i], [n c t o]
        values = scratch.take(place, (n, c * o, i), inputs)
        torch.bmm(gradients.transpose(2, 3).reshape(n, c * o, t), inputs, out=values)
        return values.view(n, c, o * i)

    def cotangents(self, others: Tensor, *, of_inputs: bool) -> tuple[Tensor | None, Tensor]:
        n, t, g, i = self.inputs.shape
        c, o = self.c, self.output_gradients.shape[-1]
        if self.gradient_first:
            matrices = others.reshape(n, c, g, o, i).permute(0, 2, 4, 1, 3)
        else:
            matrices = others.reshape(n, c, g, i, o).permute(0, 2, 3, 1, 4)
        matrices = matrices.reshape(n * g, i, c * o)
        inputs = self.inputs.transpose(1, 2).reshape(n * g, t, i)
        moved = torch.bmm(inputs, matrices).reshape(n, g, t, c, o).permute(0, 3, 2, 1, 4)
        if not of_inputs:
            return None, moved
        gradients = self.output_gradients.permute(0, 3, 1, 4, 2).reshape(n * g, c * o, t)
        return torch.bmm(matrices, gradients).reshape(n, g, i, t).permute(0, 3, 1, 2), moved

    def mix(self, mixing: Tensor) -> Factored:
        return replace(self, output_gradients=mixed(mixing, self.output_gradients))

    @property
    def n_parts(self) -> int:
        return self.inputs.shape[2] if self.inputs.shape[2] > 1 else self.inputs.shape[3]

    def narrow(self, start: int, stop: int) -> Factored:
        groups, i = self.inputs.shape[2:]
        inputs, gradients = self.inputs[..., start:stop], self.output_gradients
        if groups > 1:
            groups, inputs, gradients = stop - start, self.inputs[:, :, start:stop], gradients[:, :, :, start:stop]
        else:
            i = stop - start
        shape = (gradients.shape[-1], i) if self.gradient_first else (i, gradients.shape[-1])
        return replace(self, inputs=inputs, output_gradients=gradients, shape=(groups, *shape))

    def _own_products(self) -> Tensor:
        """K_nn from the products of positions. [n c c]."""
        n, t, g, i = self.inputs.shape
        if t == 1:
            squares = norm_over(self.inputs, (1, 3)).square()  # [n g]
            gradients = in_float64(self.output_gradients[:, :, 0])
            return torch.einsum("ng,ncgo,ndgo->ncd", squares, gradients, gradients)
        o = self.output_gradients.shape[-1]
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
        k, o = weights.shape[0], self.output_gradients.shape[-1]
        total = self.inputs.new_zeros(g, k * o, i)
        for rows in [slice(0, n)] if self.is_differentiated else chunks(n, 4 * t * g * (i + k * o)):
            inputs, gradients = (part_of(each, rows.start, rows.stop) for each in (self.inputs, self.output_gradients))
            gradients = combined(weights[:, rows], gradients)  # [n k t g o]
            gradients = gradients.permute(3, 1, 4, 0, 2).reshape(g, k * o, -1)
            total = torch.baddbmm(total, gradients, inputs.permute(2, 0, 1, 3).reshape(g, -1, i))
        axes = (1, 0, 2, 3) if self.gradient_first else (1, 0, 3, 2)
        return total.reshape(g, k, o, i).permute(axes).reshape(k, *self.shape)

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

    def bound(self) -> Tensor:
        return (norm_over(self.inputs, -1) * norm_over(self.output_gradients, (1, 4))).sum(dim=(1, 2))

    def rough_bound(self) -> Tensor:
        """`bound` in the precision of the factors, six times as fast: too small where they are below 1e-19."""
        inputs: Tensor = torch.linalg.vector_norm(self.inputs, dim=-1)
        gradients: Tensor = torch.linalg.vector_norm(self.output_gradients, dim=(1, 4))
        return (inputs * gradients).sum(dim=(1, 2))

    def rows(self, start: int, stop: int) -> Factored:
        inputs, gradients = part_of(self.inputs, start, stop), part_of(self.output_gradients, start, stop)
        return replace(self, inputs=inputs, output_gradients=gradients)
