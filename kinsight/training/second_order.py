"""Gradients of a batch that can be differentiated again, and what makes them unit gradients: the stuff of losses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from kinsight.captures.running import check_finite
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.gradients import Gradients
from kinsight.gradients.contractions import are_safe, chunks, full_precision
from kinsight.gradients.factored import Product
from kinsight.normalization import Normalization
from kinsight.training.second_derivatives import second_gradients
from kinsight.whitening import spectrum


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Gradients without a graph, and what normalizes them as a function of K(x, x), with a graph where it has one.

    Args:
        gradients: of the batch, normalized but for `scale`.
        own: K(x, x) of every sample, [n c c]: what normalization depends on.
        mixing: the map of outputs that whitens, [n c c]; None where there is none.
        scale: what each sample's gradients are yet to be multiplied by, [n].
        is_defined: whether a sample's gradient is not zero, [n].
    """

    gradients: BatchGradients
    own: Tensor
    mixing: Tensor | None
    scale: Tensor
    is_defined: Tensor

    @staticmethod
    def of(
        gradients: BatchGradients, normalization: Normalization, precision: torch.dtype, *, is_followed: bool
    ) -> UnitRows:
        """Those of one batch.

        Args:
            gradients: without a graph.
            normalization: flat, or whitened.
            precision: of the gradients.
            is_followed: whether autograd follows what becomes of `own`.
        """
        own = gradients.self_blocks()
        check_finite(own, gradients, "gradients")
        if not are_safe(own.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt()):  # inner products, or slopes, leave float32
            gradients = gradients.double()
        own.requires_grad_(is_followed)
        with torch.set_grad_enabled(is_followed):
            if normalization == "flat" or own.shape[1] == 1:
                squares = own.diagonal(dim1=1, dim2=2).sum(dim=1)
                is_defined = squares.detach() > 0
                scale = torch.where(is_defined, torch.where(is_defined, squares, 1.0).rsqrt(), 0.0)
                return UnitRows(gradients, own, None, scale, is_defined.cpu())
            roots, ranks = inverse_roots(own, precision)
            scale = torch.where(ranks > 0, ranks.clamp(min=1).to(roots).rsqrt(), 0.0)
            return UnitRows(gradients.mix(roots), own, roots, scale, (ranks > 0).cpu())

    def detached(self) -> UnitRows:
        """The same, followed by nobody."""
        if not self.own.requires_grad:
            return self
        mixing = None if self.mixing is None else self.mixing.detach()
        return UnitRows(without_graph(self.gradients), self.own.detach(), mixing, self.scale.detach(), self.is_defined)

    @property
    def is_wide(self) -> bool:
        """Whether all gradients are in float64."""
        return all(each.dtype == torch.float64 for each in self.gradients.by_parameter.values())

    def double(self) -> UnitRows:
        """The same in float64."""
        return self if self.is_wide else replace(self, gradients=self.gradients.double())

    def rows(self, start: int, stop: int) -> UnitRows:
        """Some of them."""
        mixing = None if self.mixing is None else self.mixing[start:stop]
        return UnitRows(
            self.gradients.rows(start, stop), self.own[start:stop], mixing, self.scale[start:stop],
            self.is_defined[start:stop],
        )  # fmt: skip

    def similarities(self, others: UnitRows) -> Tensor:
        """With those of another batch, [n m], float64; 0 where one is not defined."""
        block = self.gradients.gram(others.gradients)
        return block * self.scale.to(block)[:, None] * others.scale.to(block)

    def total(self) -> dict[str, Tensor]:
        """Sum of the unit gradients, output by output, by name. [c *shape] each."""
        c = self.gradients.n_outputs
        unit = torch.eye(c, dtype=self.scale.dtype, device=self.scale.device)
        return self.gradients.weighted_sum(unit[:, None, :] * self.scale[:, None])

    def along(self, total: dict[str, Tensor]) -> Tensor:
        """Inner products with such a sum, [n], float64."""
        moved = self.gradients.dot(total)  # [n c c]
        return moved.diagonal(dim1=1, dim2=2).sum(dim=1) * self.scale.to(moved)


def without_graph(gradients: BatchGradients) -> BatchGradients:
    """The same gradients, without their graph."""
    parts = {name: each.with_tensors(lambda tensor: tensor.detach()) for name, each in gradients.by_parameter.items()}
    return replace(gradients, by_parameter=parts, outputs=gradients.outputs.detach())


class Term(ABC):
    """A term of a cost that is a sum over parameters and samples, as a function of gradients."""

    def concerns(self, name: str) -> bool:
        """Whether it depends on a parameter's gradients."""
        return True

    @abstractmethod
    def slopes(self, name: str, gradients: Product, which: slice) -> Tensor | None:
        """How it changes with a parameter's gradients for some samples, [n c *shape]; None to differentiate it instead.

        Args:
            name: of the parameter.
            gradients: of it, without a graph, for these samples.
            which: samples.
        """

    def let_go(self, name: str) -> None:  # noqa: B027 (there may be nothing to forget)
        """Forget what was known of a parameter: all samples have been seen."""

    @abstractmethod
    def share(self, name: str, gradients: Gradients, which: slice) -> Tensor:
        """The parameter's and the samples' share of it: a number whose derivative says how it changes."""


@dataclass(eq=False)
class PullBack:
    """The gradient of a cost that is a sum over parameters and samples, over parameters; a term of it after another.

    What a layer left is cut off from its graph for a while: its share of the cost is differentiated by itself, a few
    samples at a time, so that gradients that have to be multiplied out are not held for all of them; then one backward
    pass takes all of that on. It is used once.

    Args:
        gradients: of one batch, with their graph.
    """

    gradients: BatchGradients

    def __post_init__(self) -> None:
        n = len(self.gradients)
        whole = {name: _graphed_tensors(each.rows(0, n)) for name, each in self.gradients.by_parameter.items()}
        self.captured = {name: tensors for name, tensors in whole.items() if tensors}
        self.cotangents: dict[str, list[Tensor]] = {}

    @full_precision()
    def add(self, term: Term) -> None:
        """A term of the cost."""
        by_parameter = self.gradients.by_parameter
        sizes = {name: _multiplied_size(by_parameter[name]) for name in filter(term.concerns, self.captured)}
        for name, size in sorted(sizes.items(), key=lambda pair: -pair[1]):  # the largest are gone when others are done
            each = by_parameter[name]
            parts = [
                _slopes(term, name, each.rows(rows.start, rows.stop), rows)
                for rows in chunks(len(self.gradients), 12 * size)
            ]
            term.let_go(name)
            found = parts[0] if len(parts) == 1 else [torch.cat(own) for own in zip(*parts, strict=True)]
            known = self.cotangents.get(name)
            self.cotangents[name] = found if known is None else [a + b for a, b in zip(known, found, strict=True)]

    def over(self, parameters: list[nn.Parameter]) -> list[Tensor | None]:
        """The gradient over parameters, once, and all that is held is let go; None where the cost depends on none.

        Raises:
            SecondDerivativeError: something in the model has no second derivative.
        """
        captured = [each for name in self.cotangents for each in self.captured[name]]
        cotangents = [each for own in self.cotangents.values() for each in own]
        del self.gradients, self.captured, self.cotangents
        return second_gradients(captured, cotangents, parameters)


def _multiplied_size(gradients: Gradients) -> int:
    """Numbers of one sample's gradients where they are multiplied out, or 0."""
    return gradients.c * math.prod(gradients.shape) if is_multiplied_out(gradients) else 0


def is_multiplied_out(gradients: Gradients) -> TypeGuard[Product]:
    """Whether they are products of several positions, which inner products with many others are multiplied out for."""
    return isinstance(gradients, Product) and gradients.sizes.t > 1


def _slopes(term: Term, name: str, gradients: Gradients, which: slice) -> list[Tensor]:
    """How a term changes with what has a graph, in order."""
    if is_multiplied_out(gradients):
        of_output, of_input = gradients.tensors
        fixed = gradients.with_tensors(lambda tensor: tensor.detach())
        assert is_multiplied_out(fixed)
        wanted = term.slopes(name, fixed, which)
        if wanted is not None:
            inputs, outputs = fixed.cotangents(wanted, of_inputs=of_input.requires_grad)
            found = [] if inputs is None else [inputs]
            return [*found, outputs] if of_output.requires_grad else found
    cut, leaves = _cut_off(gradients)
    return list(torch.autograd.grad(term.share(name, cut, which), leaves, materialize_grads=True))


def _graphed_tensors(gradients: Gradients) -> list[Tensor]:
    """What has a graph, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            found.append(tensor)
        return tensor

    gradients.with_tensors(note)
    return found


def _cut_off(gradients: Gradients) -> tuple[Gradients, list[Tensor]]:
    """The same gradients of leaves of their own, and these, in the same order."""
    leaves: list[Tensor] = []

    def cut(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1]

    return gradients.with_tensors(cut), leaves


class _InverseRoots(torch.autograd.Function):
    """K^-1/2 on the range of K, sample by sample, with a derivative that equal eigenvalues do no harm.

    d(K^-1/2) = V (D * V^T dK V) V^T with D_ab = -1 / (r_a r_b (r_a + r_b)), r^2 the eigenvalues; between the range and
    what is left out r_a^-3; 0 within the latter, whose rank is taken not to change.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        found = spectrum(own.detach(), precision)
        ctx.save_for_backward(found.values, found.vectors)
        ctx.mark_non_differentiable(found.ranks)
        return found.power(-0.5), found.ranks

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor, _: Tensor) -> tuple[Tensor, None]:
        values, vectors = ctx.saved_tensors
        is_kept = values > 0
        roots = torch.where(is_kept, values, 1.0).sqrt()
        both, either = is_kept[:, :, None] & is_kept[:, None, :], is_kept[:, :, None] | is_kept[:, None, :]
        a, b = roots[:, :, None], roots[:, None, :]
        within = -1 / (a * b * (a + b))
        across = torch.where(is_kept[:, :, None], a**-3, b**-3)
        factors = torch.where(both, within, torch.where(either, across, 0.0))
        turned = vectors.transpose(1, 2) @ (0.5 * (cotangent + cotangent.transpose(1, 2))) @ vectors
        return vectors @ (factors * turned) @ vectors.transpose(1, 2), None


def inverse_roots(own: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """K(x, x)^-1/2 of every sample with its graph, [n c c], and ranks, [n].

    Args:
        own: K(x, x), [n c c], float64.
        precision: of the gradients; it sets the floor of eigenvalues.
    """
    roots, ranks = _InverseRoots.apply(own, precision)  # type: ignore[no-untyped-call]
    return roots, ranks
