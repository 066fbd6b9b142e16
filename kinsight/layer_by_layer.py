"""Gradients handed over while the backward pass runs: what a layer left is free again before the next is reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from kinsight.capture import LayerCapture
from kinsight.gradients import Gradients
from kinsight.graph import Graph, Use, chain_order, weight_chain
from kinsight.layouts import Layout
from kinsight.nodes import children, widen
from kinsight.rules import apply_rule
from kinsight.weights import from_uses, spread

Take = Callable[[str, Gradients], None]
"""What is done with the gradients over one parameter: its name, and they. They are forgotten afterwards."""


def hand_over(
    outputs: Tensor,
    graph: Graph,
    layouts: Sequence[Layout | None],
    parameters: Mapping[str, Tensor],
    take: Take,
    reasons: dict[str, str],
) -> None:
    """One backward pass, in which the gradients over each parameter are taken as soon as all of its uses are known.

    Those over parameters that weights are made of, other than by reshaping, are taken at the end.

    Args:
        outputs: one output a sample, [n 1], with their graph: it is used up.
        graph: of the outputs.
        layouts: where samples lie at each use.
        parameters: name -> parameter.
        take: what is done with the gradients.
        reasons: why parameters are not taken, by name: a rule may not apply to a batch of another size.
    """
    found = _Backward(graph, parameters, take, reasons)
    for use, layout in zip(graph.uses, layouts, strict=True):
        assert layout is not None
        found.uses.setdefault(use.node, []).append((use, layout))
    first = _first(graph, set(found.uses))
    handles = [
        node.register_prehook(lambda gradients, node=node: found.reach(node, gradients[0]))
        for node in found.uses
        if node not in first
    ]
    try:
        ends = torch.autograd.grad(
            outputs, [GradientEdge(node, 0) for node in first], torch.ones_like(outputs), allow_unused=True
        )
        with torch.no_grad():
            for node, gradient in zip(reversed(first), reversed(ends), strict=True):
                found.reach(node, gradient)
            found.finish()
    finally:
        for handle in handles:
            handle.remove()


@dataclass(eq=False)
class _Backward:
    """What one backward pass has found so far, and not given away yet.

    Args:
        graph, parameters, take, reasons: see `hand_over`.
        uses: at each node, with the samples' layout in its output.
        captured: gradients over weights, by the parameter that waits for its other uses, or `LATE`.
    """

    graph: Graph
    parameters: Mapping[str, Tensor]
    take: Take
    reasons: dict[str, str]
    uses: dict[Node, list[tuple[Use, Layout]]] = field(default_factory=dict)
    captured: dict[str, list[tuple[Use, Gradients]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.late = frozenset(name for use in self.graph.uses if not _is_view(use) for name in use.parameters)
        self.waiting = Counter(name for use in self.graph.uses for name in use.parameters)

    def reach(self, node: Node, gradient: Tensor | None) -> None:
        """Note the gradient at a node's output; give away what is complete with it."""
        for use, layout in self.uses[node]:
            key = LATE if self.late.intersection(use.parameters) else use.parameters[0]
            if gradient is not None:
                split = layout.split(widen(gradient).unsqueeze(0), lead=1)
                weight = apply_rule(LayerCapture(use, layout, split))
                if weight is None:
                    note_refusal(self.reasons, use)
                else:
                    self.captured.setdefault(key, []).append((use, weight))
            self.waiting[key] -= 1
            if self.waiting[key] == 0:
                self._give(key)

    def finish(self) -> None:
        """Give away the rest: weights made of parameters, and uses of which the outputs do not depend on all."""
        spread(self.reasons, self.graph.uses)
        for key in list(self.captured):
            self._give(key)

    def _give(self, key: str) -> None:
        known = [(use, each) for use, each in self.captured.pop(key, []) if use.parameters[0] not in self.reasons]
        for name, gradients in from_uses(known, self.parameters).items():
            self.take(name, gradients)


def note_refusal(reasons: dict[str, str], use: Use) -> None:
    """Note that the rule for a use does not apply."""
    for name in use.parameters:
        reasons.setdefault(name, f"no layer rule for this use of {use.name!r}")


LATE = ""
"""What is captured over all parameters that are taken at the end; no parameter is called so."""


def _is_view(use: Use) -> bool:
    """Whether the weight is a parameter or a view of one: nothing has to be pulled back through other nodes."""
    chain = weight_chain(use)
    return bool(chain) and chain_order(chain) is not None


def _first(graph: Graph, wanted: set[Node]) -> list[Node]:
    """The nodes with a use that have no other one below them: the backward pass ends there."""
    above: set[Node] = set()
    first = []
    for node in graph.order:
        is_above = any(child in wanted or child in above for _, child, _ in children(node))
        if is_above:
            above.add(node)
        elif node in wanted:
            first.append(node)
    return first
