"""What every form of per-sample gradients offers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from kinsight.gradients.contractions import in_memory_order
from kinsight.gradients.projection import Projection

MODERATE = (1e-15, 1e15)
"""Sizes of factors, and of their products, that float32 can square."""


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

    @property
    def is_differentiated(self) -> bool:
        """Whether autograd follows what is done with them."""
        return any(tensor.requires_grad for tensor in self.tensors)

    @property
    def is_moderate(self) -> bool:
        """Whether products of factors, and inner products of their products, are far from the ends of float32."""
        ends = [in_memory_order(tensor.detach()).aminmax() for tensor in self.tensors if tensor.is_floating_point()]
        sizes = [max(-float(low), float(high)) for low, high in ends]
        low, high = MODERATE
        if not all(size < high for size in sizes):  # beside zeros, too: inner products of one factor alone are taken
            return False
        return 0 in sizes or all(low < size < high for size in (*sizes, math.prod(sizes)))

    def double(self) -> Gradients:
        """The same in float64, or as close as the device has it."""
        if self.tensors[0].device.type == "mps":
            return self
        return self.with_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def owned(self) -> Gradients:
        """The same, tensors copied that are less than half of what they are a view of: the rest would stay, too."""

        def own(tensor: Tensor) -> Tensor:
            return tensor.clone() if tensor.untyped_storage().nbytes() > 2 * tensor.nbytes else tensor

        return self if self.is_differentiated else self.with_tensors(own)

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Gradients:
        """The same form of other tensors."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)  # type: ignore[type-var]

    @abstractmethod
    def build(self) -> Float[Tensor, "n c *shape"]:
        """The gradients themselves. [n c *shape]."""

    @abstractmethod
    def mix(self, mixing: Float[Tensor, "n a c"]) -> Gradients:
        """The gradients of a linear map of each sample's outputs: row a is sum_c mixing[n, a, c] grad_c."""

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
    def sketch(self, projection: Projection) -> Float[Tensor, "n dim"]:
        """Random projection, whose inner products estimate the Gram block's trace without bias. [n dim]."""

    def sketch_and_squares(self, projection: Projection) -> tuple[Float[Tensor, "n dim"], Float[Tensor, " n"]]:
        """The sketch, [n dim], and the sum of squares over all outputs, accumulated in float64, [n]."""
        return self.sketch(projection), self.self_blocks().diagonal(dim1=1, dim2=2).sum(dim=1)

    @abstractmethod
    def bound(self) -> Float[Tensor, " n"]:
        """Norm of each sample's gradients were nothing to cancel: the scale of their rounding error. [n]."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Gradients:
        """The gradients of samples start:stop."""

    def compact(self, *, is_eager: bool) -> Gradients:
        """The form that is best kept for Gram blocks with many others: itself, or built.

        Args:
            is_eager: built also where that takes more memory.
        """
        return self

    @abstractmethod
    def gram_cost(self, n: int, m: int) -> float:
        """Multiply-adds of a Gram block's trace of n samples like these with m others, or with themselves (m = 0)."""
