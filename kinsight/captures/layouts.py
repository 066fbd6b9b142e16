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

from kinsight.captures.graph import Use
from kinsight.captures.nodes import output_shape, widen
from kinsight.captures.steady import Place
from kinsight.gradients.contractions import norm_over


@dataclass(frozen=True)
class Layout:
    """Where the samples lie in a tensor: on axis `axis`, which holds [before n after], positions around the samples."""

    axis: int
    n: int
    before: int = 1

    def split(self, tensor: Tensor, *, lead: int = 0) -> Tensor:
        """The tensor with its samples first: [*lead, ..., before n after, ...] -> [n, *lead, ..., k, ...].

        Args:
            tensor: any tensor whose axes after the first `lead` are laid out so.
            lead: axes in front that the layout does not count.
        """
        axis = self.axis + lead
        shape = tensor.shape
        after = shape[axis] // (self.n * self.before)
        parts = tensor.reshape(*shape[:axis], self.before, self.n, after, *shape[axis + 1 :])
        return parts.movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


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
    stacked: dict[Node, Tensor] = {}
    for a in range(c):
        found = gradients_at(outputs, nodes, unit[a].expand_as(outputs), is_differentiable=is_differentiable)
        for each, node in enumerate(nodes):
            gradient, found[each] = found[each], None  # freed one by one: those of all outputs lie in `stacked`
            if gradient is None:
                if node in stacked:
                    stacked[node][a] = 0
                continue
            if c == 1:
                stacked[node] = gradient.unsqueeze(0)
                continue
            # outputs lie next to the first axis in memory: where that holds the samples, [n c ...] is contiguous
            place = min(1, gradient.dim())
            if node not in stacked:
                shape = (*gradient.shape[:place], c, *gradient.shape[place:])
                stacked[node] = gradient.new_empty(shape).movedim(place, 0)
                stacked[node][:a] = 0
            stacked[node][a] = gradient
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
        return [None if each is None else Layout(each.axis, n, each.before) for each in self.found]


LAYOUT_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest error of a sample's place relative to its own gradient; in full precision never more than a quarter of 1/n,
the tags' distance. A wrong layout is wrong by the difference of two tags. The honest error is a sample's rounding."""

NOISE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""What rounding leaves, relative to the largest gradient of any sample, where a sample's own is zero."""


def find_layouts(
    outputs: Tensor,
    uses: Sequence[Use],
    at_nodes: Mapping[Node, Tensor],
    precision: torch.dtype,
    places: Mapping[Node, Place] | None = None,
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
        places: where samples lie in the outputs of nodes, as far as the graph alone says so. Its word is final: where
            gradients are zero in many places, a wrong layout may fit as well.

    Returns:
        The layout of every use; None where none fits, or where what is measured contradicts the graph.
    """
    n, c = outputs.shape
    generator = torch.Generator().manual_seed(0)
    across = (1 + torch.rand(c, generator=generator, dtype=torch.float64)).to(outputs)
    nodes = list(at_nodes)
    n_passes = 1 if precision in (torch.float64, torch.float32) else _COARSE_PASSES
    fits = {node: _Fit(output_shape(node), n, _layout(node, n, places)) for node in nodes}
    for _ in range(n_passes):
        tags = sample_tags(n, generator).to(outputs)
        for node, tagged in zip(nodes, gradients_at(outputs, nodes, tags[:, None] * across), strict=True):
            one = torch.tensordot(across.to(at_nodes[node]), at_nodes[node].detach(), dims=1)
            fits[node].narrow(one, tagged, tags, precision)
    layouts = Layouts()
    for use in uses:
        fit = fits.get(use.node)
        if fit is None:  # no gradient there: it adds nothing
            layouts.found.append(_layout(use.node, n, places) or Layout(0, n))
            continue
        layouts.found.append(fit.best)
        layouts.is_settled = layouts.is_settled and fit.is_settled
    return layouts


def _layout(node: Node, n: int, places: Mapping[Node, Place] | None) -> Layout | None:
    """The layout that the graph alone says, if it does."""
    place = None if places is None else places.get(node)
    return None if place is None else Layout(place.axis, n, place.before)


_COARSE_PASSES = 3
"""Tagged passes in half precision, where neighboring tags cannot be told apart by one."""


def sample_tags(n: int, generator: torch.Generator) -> Tensor:
    """Distinct, spaced numbers +-(1 + permuted rank / n), one a sample, in float64. [n]."""
    ranks = torch.randperm(n, generator=generator, device="cpu").double()
    signs = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    return signs * (1 + ranks / max(n, 1))


@dataclass(eq=False)
class _Fit:
    """The layouts that fit a tensor so far, best first."""

    shape: tuple[int, ...]
    n: int
    told: Layout | None
    is_settled: bool = True
    errors: dict[Layout, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        candidates = _candidates(self.shape, self.n) if self.told is None else [self.told]
        self.errors = dict.fromkeys(candidates, 0.0)

    @property
    def best(self) -> Layout | None:
        """The layout that fits best; None where none does."""
        return min(self.errors, key=lambda layout: self.errors[layout], default=None)

    def narrow(self, one: Tensor, tagged: Tensor | None, tags: Tensor, precision: torch.dtype) -> None:
        """Drop the layouts that a tagged pass contradicts for any sample.

        Args:
            one: gradient of the plain sum of outputs.
            tagged: gradient of the sum weighted by tags.
            tags: [n].
            precision: the coarsest any part of the model computes in.
        """
        if tagged is None or not bool(one.any()):
            self.is_settled = self.told is not None
            return
        tolerance = LAYOUT_TOLERANCE[precision]
        if precision in (torch.float64, torch.float32):
            tolerance = min(tolerance, 0.25 / self.n)
        kept = {}
        for layout in self.errors:
            first, second = layout.split(one).reshape(self.n, -1), layout.split(tagged).reshape(self.n, -1)
            lengths = norm_over(first, 1)
            gaps = norm_over(second - tags.to(first)[:, None] * first, 1)
            allowed = tolerance * lengths + NOISE[precision] * lengths.max()
            if bool((gaps <= allowed).all()):
                kept[layout] = max(self.errors[layout], float((gaps / allowed.clamp(min=1e-300)).max()))
                if self.n == 1:
                    break
        self.errors = kept
        self.is_settled = self.is_settled and len(kept) < 2


def _candidates(shape: Iterable[int], n: int) -> Iterator[Layout]:
    for axis, size in enumerate(shape):
        if size and size % n == 0:
            yield Layout(axis, n)
            if n < size and n > 1:
                yield Layout(axis, n, size // n)
