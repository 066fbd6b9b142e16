"""The gradients of one batch over all parameters: sums, over parameters, of the six operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinsight.axes import Mixing, Outputs, SelfBlocks
from kinsight.gradients import Gradients, Products, add_gram_block, gram_block
from kinsight.gradients.contractions import Contraction, Form, add_in_float64, full_precision, in_float64, mirror_upper
from kinsight.gradients.projection import Projection
from kinsight.samples import Id


@dataclass(frozen=True, eq=False)
class BatchGradients:
    """Per-sample gradients of c outputs over every parameter, for one batch.

    Args:
        ids: the samples' ids.
        outputs: the output function's values, [n c].
        by_parameter: gradients by parameter name. A parameter the outputs do not depend on is absent.
        contraction: what inner products with other batches are computed in.
    """

    ids: tuple[Id, ...]
    outputs: Outputs
    by_parameter: dict[str, Gradients]
    contraction: Contraction = "full"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_outputs(self) -> int:
        """Length of the output axis: c, or less or more after `mix`."""
        return next((gradients.c for gradients in self.by_parameter.values()), self.outputs.shape[1])

    @property
    def n_bytes(self) -> int:
        """Memory held by the gradients. What a layer's weight and bias share counts once."""
        tensors = [tensor for each in self.by_parameter.values() for tensor in each.tensors]
        return sum({(tensor.data_ptr(), tensor.nbytes): tensor.nbytes for tensor in tensors}.values())

    def let_go(self, name: str) -> None:
        """Forget a parameter's gradients: for who made these, and does not look at them again."""
        self.by_parameter.pop(name, None)

    def within_range(self) -> BatchGradients:
        """The same gradients, in float64 where their inner products could leave the range of float32."""
        if all(each.is_moderate for each in self.by_parameter.values()):
            return self
        return self.double()

    def double(self) -> BatchGradients:
        """The same gradients in float64."""
        return replace(self, by_parameter={name: each.double() for name, each in self.by_parameter.items()})

    @full_precision()
    def gram(self, other: BatchGradients, form: Form = "trace") -> Tensor:
        """Inner products with another batch, summed over parameters in float64.

        Returns:
            [n m], the sum over outputs (form 'trace'); [n m c], output by output ('diagonal'); [n m c c] ('blocks').
        """
        n, m, c, d = len(self), len(other), self.n_outputs, other.n_outputs
        size = {"trace": (n, m), "diagonal": (n, m, c), "blocks": (n, c, m, d)}[form]
        total = in_float64(self.outputs.new_zeros(size))
        total = total.transpose(1, 2) if form == "blocks" else total  # in memory as the product of two matrices
        products = Products(contraction=self.contraction)
        for name, gradients in self.by_parameter.items():
            if name in other.by_parameter:
                total = add_gram_block(total, gradients, other.by_parameter[name], form, products)
        return total

    def gram_cost(self, n: int, m: int = 0) -> float:
        """Multiply-adds of the trace over outputs of n samples like these with m others, or with themselves (m = 0)."""
        return sum(each.gram_cost(n, m) for each in self.by_parameter.values())

    @full_precision()
    def mean_gram(self, other: BatchGradients) -> Tensor:
        """Inner products with another batch, averaged over outputs: the shares, added up one by one. [n m]."""
        total = in_float64(self.outputs.new_zeros(len(self), len(other)))
        products = Products(contraction=self.contraction)
        for name, gradients in self.by_parameter.items():
            if name in other.by_parameter:
                share = gram_block(gradients, other.by_parameter[name], "trace", products)
                share = share if self.n_outputs == 1 else in_float64(share) / self.n_outputs
                total = add_in_float64(total, share)
        return total

    @full_precision()
    def shares(self, other: BatchGradients) -> dict[str, Tensor]:
        """Each parameter's share of the inner products."""
        return {
            name: gram_block(gradients, other.by_parameter[name], "trace", Products(contraction=self.contraction))
            for name, gradients in self.by_parameter.items()
            if name in other.by_parameter
        }

    @full_precision()
    def self_blocks(self) -> SelfBlocks:
        """K_nn = J_n J_n^T of every sample, in float64. [n c c]."""
        total = in_float64(self.outputs.new_zeros(len(self), self.n_outputs, self.n_outputs))
        for gradients in self.by_parameter.values():
            total = total + gradients.self_blocks()
        return total

    @full_precision()
    def mix(self, mixing: Mixing) -> BatchGradients:
        """The gradients of a linear map [n a c] of each sample's outputs."""
        mixed = {name: gradients.mix(mixing) for name, gradients in self.by_parameter.items()}
        return replace(self, by_parameter=mixed)

    def compact(self, *, is_eager: bool) -> BatchGradients:
        """Every parameter's gradients in the form that is best kept for Gram blocks with many others.

        Args:
            is_eager: build gradients also where they then take more memory than their factors.
        """
        parts = {name: each.compact(is_eager=is_eager) for name, each in self.by_parameter.items()}
        return replace(self, by_parameter=parts).owned()

    def owned(self) -> BatchGradients:
        """The same gradients, holding on to no more memory than they need."""
        return replace(self, by_parameter={name: each.owned() for name, each in self.by_parameter.items()})

    @full_precision()
    def weighted_sum(self, weights: Tensor) -> dict[str, Tensor]:
        """sum_nc weights[k, n, c] grad_nc. [k n c] -> name -> [k *shape]."""
        return {name: each.weighted_sum(weights.to(each.tensors[0])) for name, each in self.by_parameter.items()}

    @full_precision()
    def dot(self, directions: Mapping[str, Tensor]) -> Tensor:
        """Inner products with k directions, in float64. name -> [k *shape] -> [n c k]."""
        empty = in_float64(self.outputs.new_zeros(len(self), self.n_outputs, _count(directions)))
        total = [empty] + [
            in_float64(each.dot(directions[name].to(each.tensors[0])))
            for name, each in self.by_parameter.items()
            if name in directions
        ]
        return torch.stack(total).sum(dim=0)

    @full_precision()
    def sketch(self, dim: int, seed: int) -> Tensor:
        """Random projections whose inner products estimate the Gram block's trace without bias. [n dim]."""
        parts = [in_float64(each.sketch(Projection(seed, name, dim))) for name, each in self.by_parameter.items()]
        return torch.stack(parts).sum(dim=0)

    def build(self) -> dict[str, Tensor]:
        """The gradients themselves, by parameter. [n c *shape]."""
        return {name: each.build() for name, each in self.by_parameter.items()}

    def rows(self, start: int, stop: int) -> BatchGradients:
        """The gradients of samples start:stop."""
        parts = {name: each.rows(start, stop) for name, each in self.by_parameter.items()}
        return BatchGradients(self.ids[start:stop], self.outputs[start:stop], parts, self.contraction)


@dataclass(eq=False)
class OwnGram:
    """Inner products of a batch with itself, averaged over outputs, from gradients that come a parameter at a time.

    Args:
        n: number of samples.
        contraction: what inner products are computed in.
    """

    n: int
    contraction: Contraction = "full"
    _sum: Tensor | None = None

    def __post_init__(self) -> None:
        self._products = Products(contraction=self.contraction, is_upper=True)

    @full_precision()
    def take(self, name: str, gradients: Gradients) -> None:
        """Add what the gradients over one parameter contribute."""
        gradients = gradients if gradients.is_moderate else gradients.double()
        share = gram_block(gradients, gradients, "trace", self._products)
        share = share if gradients.c == 1 else in_float64(share) / gradients.c
        known = in_float64(share.new_zeros(self.n, self.n)) if self._sum is None else self._sum
        self._sum = add_in_float64(known, share)

    def total(self, outputs: Outputs) -> Tensor:
        """What came so far, in float64, on the device of the outputs. [n n]."""
        if self._sum is None:
            return in_float64(outputs.new_zeros(self.n, self.n))
        return mirror_upper(self._sum)


def _count(directions: Mapping[str, Tensor]) -> int:
    return next((len(direction) for direction in directions.values()), 0)
