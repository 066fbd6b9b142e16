"""From a batch's outputs to the uses of the parameters, the output gradients there, and where each sample lies in them.

What was found out about one kind of batch is remembered for the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import Node

from kinsight.captures.graph import Graph, find_uses
from kinsight.captures.layouts import Layouts, find_layouts, output_gradients
from kinsight.captures.nodes import output_shape
from kinsight.captures.running import HIDDEN_BY_CHECKPOINT
from kinsight.captures.steady import Place, follow_samples
from kinsight.errors import IndependentOutputError, ModelError, NonFiniteError
from kinsight.rules import RULES

Check = Literal["first", "always", "never"]
"""When what was found out is proved: on the first batch of each kind, on every batch, on none."""


@dataclass(eq=False)
class Routing:
    """What was found out about one kind of batch.

    Args:
        layouts: where the samples lie at each use.
        reasons: why parameters take a generic path, by name.
    """

    layouts: Layouts = field(default_factory=Layouts)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class Trace:
    """One batch.

    Args:
        graph: of its outputs.
        structure: of the graph, the number of outputs, and whether the samples are copies of one.
        at_nodes: gradients of each output at the nodes, [c ...].
        routing: for this kind of batch.
        is_known: whether the routing was known from other batches.
        is_new: whether the routing is yet to be proved.
        is_steady: whether the graph says that no sample moves, whatever the data.
        is_remembered: whether that is to be known of graphs of this structure.
        kinds, skeleton, shared: what else `Tracer.accept` remembers.
    """

    graph: Graph
    structure: tuple[object, ...]
    at_nodes: dict[Node, Tensor] = field(default_factory=dict)
    routing: Routing = field(default_factory=Routing)
    is_known: bool = False
    is_new: bool = False
    is_steady: bool = False
    is_remembered: bool = False
    kinds: tuple[tuple[object, ...], ...] = ()
    skeleton: tuple[object, ...] = ()
    shared: frozenset[int] = frozenset()

    def settle(self, routing: Routing) -> None:
        """Take over what is known."""
        self.routing = Routing(routing.layouts, dict(routing.reasons))  # what this batch adds is its own
        self.is_known = self.is_steady = True


_MOST_STRUCTURES = 256
"""Structures of graphs that are remembered: data of ever new lengths must not fill the memory."""


@dataclass(eq=False)
class Tracer:
    """Traces batches.

    Args:
        parameters: name -> chosen parameter.
        all_parameters: all the model's parameters, chosen or not.
        output_name: what messages call the outputs.
        check: when routings are proved.
        routings: what is known, by kind of batch.
        steady: what is known of graphs that say by themselves where samples lie, by their structure.
        shared: places of the nodes that make the same of weights for all samples, by the graph's skeleton.
        precision: the coarsest computed in so far.
    """

    parameters: Mapping[str, Tensor]
    all_parameters: Sequence[Tensor]
    output_name: str
    check: Check = "first"
    routings: dict[tuple[object, ...], Routing] = field(default_factory=dict)
    steady: dict[tuple[object, ...], tuple[frozenset[int], Routing]] = field(default_factory=dict)
    shared: dict[tuple[object, ...], frozenset[int]] = field(default_factory=dict)
    precision: torch.dtype = torch.float64

    def _graph(self, outputs: Tensor, shared: frozenset[int] = frozenset()) -> Graph:
        chosen = {id(parameter): name for name, parameter in self.parameters.items()}
        graph = find_uses(outputs, chosen, self.all_parameters, shared)
        if torch.finfo(graph.precision).eps > torch.finfo(self.precision).eps:
            self.precision = graph.precision
        if "CheckpointFunctionBackward" in graph.names:
            raise ModelError(HIDDEN_BY_CHECKPOINT)
        if not graph.leaves:
            raise IndependentOutputError(
                f"The output {self.output_name!r} depends on none of the {len(self.parameters)} chosen parameters "
                f"({', '.join(map(repr, list(self.parameters)[:3]))}, ...): every gradient is zero and no similarity "
                "is defined. Is the model run under no_grad, or its output detached? Else choose other parameters."
            )
        return graph

    def begin(self, outputs: Tensor, *, are_copies: bool) -> Trace:
        """What the graph of this batch says, and the routing where it is known: before any gradient is taken.

        One sample, or copies of one, prove nothing about batches of several: they are of a kind of their own.
        """
        graph = self._graph(outputs)
        trace = Trace(graph, (graph.structure, outputs.shape[1], are_copies))
        if trace.structure in self.steady and self.check != "always":
            trace.shared, routing = self.steady[trace.structure]
            trace.settle(routing)
            if trace.shared:
                trace.graph = self._graph(outputs, trace.shared)
            return trace
        trace.skeleton = graph.skeleton
        trace.shared = self.shared.get(trace.skeleton, frozenset())
        if trace.shared:
            trace.graph = self._graph(outputs, trace.shared)
        if self.check != "always":
            # measuring would take one more backward pass, and twice the memory
            places = follow_samples(outputs.shape[0], trace.graph.weights, trace.graph.order)
            told = self.routings.get(_followed(trace.graph, outputs, places, are_copies=are_copies))
            if told is not None:
                trace.settle(told)
                trace.is_remembered = True
        return trace

    def finish(self, trace: Trace, outputs: Tensor, *, are_copies: bool, is_differentiable: bool) -> None:
        """Take the output gradients; measure where the samples lie in them, unless that is known.

        Layouts are measured for every batch in whose graph rows may be moved by the data, and once for every structure
        of a graph in which each node leaves them in place.

        Where samples cannot be told apart and nothing but weights goes in, as in a table of positions looked up with
        indices that all samples share, the node makes a weight: the use is looked for again above it.
        """
        n = outputs.shape[0]
        trace.at_nodes = output_gradients(outputs, _nodes(trace.graph), is_differentiable=is_differentiable)
        if trace.is_known:
            return
        _refuse_not_finite(trace.at_nodes)
        layouts, places = _measured(outputs, trace.graph, trace.at_nodes)
        while made := _made_of_weights(trace.graph, layouts, places):
            trace.shared |= made
            trace.graph = self._graph(outputs, trace.shared)
            nodes = [node for node in _nodes(trace.graph) if node not in trace.at_nodes]
            trace.at_nodes |= output_gradients(outputs, nodes, is_differentiable=is_differentiable)
            layouts, places = _measured(outputs, trace.graph, trace.at_nodes)
        found = tuple(None if each is None else (each.axis, each.before) for each in layouts.found)
        whole = (*_kind(trace.graph, outputs, n), are_copies, found)
        known = None if self.check == "always" else self.routings.get(whole)
        trace.routing = known or Routing(layouts)
        trace.is_new = known is None and self.check != "never"
        trace.is_steady = places is not None
        if layouts.is_settled:
            followed = _followed(trace.graph, outputs, places, are_copies=are_copies)
            trace.kinds = (whole, followed) if followed else (whole,)
        trace.is_remembered = layouts.is_settled and places is not None

    def accept(self, trace: Trace) -> None:
        """Remember what was found out, now that it is proved. What was refused is refused again at the next call."""
        for kind in trace.kinds:
            self.routings[kind] = trace.routing
        if trace.skeleton and trace.shared:
            self.shared[trace.skeleton] = trace.shared
        if trace.is_remembered and len(self.steady) < _MOST_STRUCTURES:
            self.steady[trace.structure] = (trace.shared, trace.routing)


def _refuse_not_finite(at_nodes: Mapping[Node, Tensor]) -> None:
    """Raise before layouts are looked for: nan fits none."""
    if not all(bool(torch.isfinite(gradient).all()) for gradient in at_nodes.values()):
        raise NonFiniteError("Output gradients inside the model are nan or inf.")


def _kind(graph: Graph, outputs: Tensor, n: int) -> tuple[object, ...]:
    """Batches of one kind run the same operations on tensors that differ in size alone."""
    uses = tuple(
        (use.name, use.operand, use.parameters, len(shape := output_shape(use.node)), _position(shape, n))
        for use in graph.uses
    )
    return (uses, outputs.shape[1], outputs.dtype, n == 1)


def _followed(
    graph: Graph, outputs: Tensor, places: Mapping[Node, Place] | None, *, are_copies: bool
) -> tuple[object, ...]:
    """What batches of any size share in whose graph the samples lie at the same places, whatever the data.

    Empty where the graph alone does not say so.
    """
    n = outputs.shape[0]
    if places is None or any(use.node not in places or use.name not in RULES for use in graph.uses):
        return ()
    uses = []
    for use in graph.uses:
        place, shape = places[use.node], output_shape(use.node)
        exact = shape[place.axis] == n
        uses.append((use.name, use.operand, use.parameters, len(shape), place.axis, place.before, exact))
    return (tuple(uses), outputs.shape[1], outputs.dtype, n == 1, are_copies)


def _position(shape: tuple[int, ...], n: int) -> tuple[bool, ...]:
    """For every axis, whether it holds exactly the samples, or several positions of each."""
    return tuple(size == n for size in shape)


def _measured(
    outputs: Tensor, graph: Graph, at_nodes: Mapping[Node, Tensor]
) -> tuple[Layouts, dict[Node, Place] | None]:
    """Layouts at the uses, and the places of samples at all nodes where the graph alone tells them.

    Where the two disagree, the graph has not been understood: nothing is told by it.
    """
    places = follow_samples(outputs.shape[0], graph.weights, graph.order)
    layouts = find_layouts(outputs, graph.uses, at_nodes, graph.precision, places)
    if places is not None and any(
        layout is None and use.node in places for use, layout in zip(graph.uses, layouts.found, strict=True)
    ):
        return find_layouts(outputs, graph.uses, at_nodes, graph.precision), None
    return layouts, places


def _nodes(graph: Graph) -> list[Node]:
    """The nodes at which output gradients are wanted."""
    wanted = (use.node for use in graph.uses if use.name in RULES or use.may_be_shared)
    return list(dict.fromkeys(wanted))


def _made_of_weights(graph: Graph, layouts: Layouts, places: Mapping[Node, Place] | None) -> frozenset[int]:
    """Places of the nodes that make the same of weights for all samples."""
    return frozenset(
        use.place
        for use, layout in zip(graph.uses, layouts.found, strict=True)
        if layout is None and use.may_be_shared and (places is None or use.node not in places)
    )
