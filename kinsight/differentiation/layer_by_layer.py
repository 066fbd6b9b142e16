"""Gradients handed over while the backward pass runs: what a layer left is free again before the next is reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from kinsight.captures.capture import LayerCapture
from kinsight.captures.graph import Graph, Use
from kinsight.captures.layouts import Layout
from kinsight.captures.nodes import children, saved_values, widen
from kinsight.differentiation.weights import from_uses, groups_of, spread
from kinsight.gradients import Gradients
from kinsight.rules import apply_rule

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

    What autograd saved at the nodes is read before: checkpointed blocks give it out once while they are passed through.

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
        if use.node not in found.values:
            found.values[use.node] = saved_values(use.node)
        found.uses.setdefault(use.node, []).append((use, layout))
    first = _first(graph, set(found.uses))
    handles = [
        node.register_prehook(lambda gradients, node=node: found.reach(node, gradients[0]))
        for node in found.uses
        if node not in first
    ]
    try:
        edges = [GradientEdge(node, 0) for node in first]
        ends = torch.autograd.grad(outputs, edges, torch.ones_like(outputs), allow_unused=True) if edges else ()
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
        values: what autograd saved at each node.
        captured: gradients over weights, by the group of parameters (`groups`) that waits for other uses.
    """

    graph: Graph
    parameters: Mapping[str, Tensor]
    take: Take
    reasons: dict[str, str]
    uses: dict[Node, list[tuple[Use, Layout]]] = field(default_factory=dict)
    values: dict[Node, dict[str, Any]] = field(default_factory=dict)
    captured: dict[str, list[tuple[Use, Gradients]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.groups = groups_of(self.graph.uses)
        self.waiting = Counter(self.groups[use.parameters[0]] for use in self.graph.uses)

    def reach(self, node: Node, gradient: Tensor | None) -> None:
        """Note the gradient at a node's output; give away what is complete with it."""
        values = self.values.pop(node)
        for use, layout in self.uses[node]:
            key = self.groups[use.parameters[0]]
            if gradient is not None:
                split = layout.split(widen(gradient).unsqueeze(0), lead=1)
                weight = apply_rule(LayerCapture(use, layout, split, values=values))
                if weight is None:
                    note_refusal(self.reasons, use)
                else:
                    self.captured.setdefault(key, []).append((use, weight))
            self.waiting[key] -= 1
            if self.waiting[key] == 0:
                self._give(key)

    def finish(self) -> None:
        """Give away the rest: of parameters on some of whose uses the outputs do not depend."""
        for key in list(self.captured):
            self._give(key)

    def _give(self, key: str) -> None:
        spread(self.reasons, self.graph.uses)
        known = [(use, each) for use, each in self.captured.pop(key, []) if use.parameters[0] not in self.reasons]
        made = from_uses(known, self.parameters)
        del known
        for name in list(made):
            self.take(name, made.pop(name))


def note_refusal(reasons: dict[str, str], use: Use) -> None:
    """Note that the rule for a use does not apply."""
    for name in use.parameters:
        reasons.setdefault(name, f"no layer rule for this use of {use.name!r}")


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
