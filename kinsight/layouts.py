"""Output gradients at the nodes of a graph, and where in them each sample lies.

Nothing is hooked: autograd is asked for the gradient at a node's output. Where in such a tensor a sample lies (first
axis, second, folded together with time or windows) is measured, not assumed: see `find_layouts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from kinsight.contractions import norm_over
from kinsight.graph import Use, output_shape, widen


@dataclass(frozen=True)
class Layout:
    """Where the samples lie in a tensor: axis `axis`, of size n k, holds them as [n k] (major) or [k n]."""

    axis: int
    n: int
    is_major: bool = True

    def split(self, tensor: Tensor, *, lead: int = 0) -> Tensor:
        """The tensor with its samples first: [*lead, ..., n k, ...] -> [n, *lead, ..., k, ...].

        Args:
            tensor: any tensor whose axes after the first `lead` are laid out so.
            lead: axes in front that the layout does not count.
        """
        axis = self.axis + lead
        size = tensor.shape[axis] // self.n
        shape = tensor.shape
        if self.is_major:
            return tensor.reshape(*shape[:axis], self.n, size, *shape[axis + 1 :]).movedim(axis, 0)
        return tensor.reshape(*shape[:axis], size, self.n, *shape[axis + 1 :]).movedim(axis + 1, 0)


def gradients_at(
    outputs: Tensor, nodes: Sequence[Node], cotangents: Tensor | None = None, *, is_differentiable: bool = False
) -> list[Tensor | None]:
    """Gradients of a sum of outputs at the output of each node; None where the outputs do not depend on it.

    Args:
        outputs: [n c], with their graph.
        nodes: graph nodes.
        cotangents: weights of the sum, [n c]; ones where left out.
        is_differentiable: keep a graph through the result.
    """
    if not nodes:
        return []
    edges = [GradientEdge(node, 0) for node in nodes]
    weights = torch.ones_like(outputs) if cotangents is None else cotangents.to(outputs)
    found = torch.autograd.grad(
        outputs, edges, weights, retain_graph=True, create_graph=is_differentiable, allow_unused=True
    )
    return [None if gradient is None else widen(gradient) for gradient in found]


def output_gradients(outputs: Tensor, nodes: Sequence[Node], *, is_differentiable: bool = False) -> dict[Node, Tensor]:
    """Gradients of each of c outputs at the output of each node, [c ...], one backward pass an output."""
    c = outputs.shape[1]
    unit = torch.eye(c, dtype=outputs.dtype, device=outputs.device)
    found = [
        gradients_at(outputs, nodes, unit[a].expand_as(outputs), is_differentiable=is_differentiable) for a in range(c)
    ]
    stacked: dict[Node, Tensor] = {}
    for place, node in enumerate(nodes):
        row = [gradients[place] for gradients in found]
        known = [gradient for gradient in row if gradient is not None]
        if known:
            stacked[node] = torch.stack([torch.zeros_like(known[0]) if g is None else g for g in row])
    return stacked


@dataclass(eq=False)
class Layouts:
    """Where the samples lie at each use, by the use's place; None where no layout fits.

    `is_settled` is False while some gradient was zero everywhere, so that any layout would have fitted.
    """

    found: list[Layout | None] = field(default_factory=list)
    is_settled: bool = True

    def for_batch(self, n: int) -> list[Layout | None]:
        """The same layouts for a batch of n samples."""
        return [None if each is None else Layout(each.axis, n, each.is_major) for each in self.found]


LAYOUT_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""A layout is wrong by about 1 (tags differ by their own size). The honest error is a batch's rounding."""


def find_layouts(
    outputs: Tensor, uses: Sequence[Use], at_nodes: Mapping[Node, Tensor], precision: torch.dtype
) -> Layouts:
    """Measure where the samples lie in the output of every use, from one more backward pass.

    In it every sample's output is weighted by its own tag: at a place that belongs to sample s the gradient is tag_s
    times that of the plain sum of outputs, wherever in the tensor that place is. A use that mixes samples, or works on
    something all samples share, fits no layout.

    Args:
        outputs: [n c], with their graph.
        uses: of the parameters.
        at_nodes: gradients of each output at the nodes, [c ...].
        precision: the coarsest any part of the model computes in.
    """
    n, c = outputs.shape
    generator = torch.Generator().manual_seed(0)
    across = (1 + torch.rand(c, generator=generator, dtype=torch.float64)).to(outputs)
    tags = sample_tags(n, generator).to(outputs)
    nodes = list(at_nodes)
    tagged = gradients_at(outputs, nodes, tags[:, None] * across)
    by_node: dict[Node, tuple[Layout | None, bool]] = {}
    for node, second in zip(nodes, tagged, strict=True):
        each = at_nodes[node].detach()
        one = torch.tensordot(across.to(each), each, dims=1)
        by_node[node] = _fit_layout(one, second, tags, output_shape(node), n, precision)
    layouts = Layouts()
    for use in uses:
        layout, is_settled = by_node.get(use.node, (Layout(0, n), True))  # no gradient there: it adds nothing
        layouts.found.append(layout)
        layouts.is_settled = layouts.is_settled and is_settled
    return layouts


def sample_tags(n: int, generator: torch.Generator) -> Tensor:
    """Distinct, spaced numbers +-(1 + permuted rank / n), one a sample, in float64. [n]."""
    ranks = torch.randperm(n, generator=generator, device="cpu").double()
    signs = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    return signs * (1 + ranks / max(n, 1))


def _fit_layout(
    one: Tensor | None, tagged: Tensor | None, tags: Tensor, shape: tuple[int, ...], n: int, precision: torch.dtype
) -> tuple[Layout | None, bool]:
    """The layout that fits, and whether it is the only one: where gradients are zero in places, several may fit."""
    candidates = list(_candidates(shape, n))
    if one is None or tagged is None or not bool(one.any()):
        return (candidates[0] if candidates else None), False
    fitting = []
    for layout in candidates:
        first, second = layout.split(one).reshape(n, -1), layout.split(tagged).reshape(n, -1)
        error = norm_over(second - tags.to(first)[:, None] * first, (0, 1))
        if bool(error <= LAYOUT_TOLERANCE[precision] * norm_over(first, (0, 1))):
            fitting.append(layout)
            if n == 1:
                break
    return (fitting[0] if fitting else None), len(fitting) < 2


def _candidates(shape: Iterable[int], n: int) -> Iterator[Layout]:
    for axis, size in enumerate(shape):
        if size and size % n == 0:
            yield Layout(axis, n)
            if n < size and n > 1:
                yield Layout(axis, n, is_major=False)
