"""From a batch to its per-sample gradients, by the fastest exact route each parameter has.

    forward pass -> graph -> uses -> layouts -> output gradients -> layer rules -> proof of coverage
                                 -> what has no rule, no layout, or fails the proof -> vmap -> one at a time

The route of every parameter is decided on the first batch of a kind, remembered, and reported.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kinsight.batches import Batch, map_leaves
from kinsight.captures.capture import LayerCapture
from kinsight.captures.company import refuse_mixed
from kinsight.captures.graph import Graph, Use
from kinsight.captures.nodes import node_names
from kinsight.captures.running import call_model, check_finite, needs_company, untouched
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.differentiation.coverage import unexplained
from kinsight.differentiation.generic import one_at_a_time, vmapped
from kinsight.differentiation.layer_by_layer import Take, hand_over, note_refusal
from kinsight.differentiation.trace import Check, Routing, Trace, Tracer
from kinsight.differentiation.weights import from_uses, spread
from kinsight.errors import (
    IndependentOutputError,
    MixedSamplesError,
    ModelCallError,
    NonFiniteError,
    ShapeError,
    StochasticModelError,
    UncapturedParameterError,
)
from kinsight.gradients import Gradients
from kinsight.outputs import OutputFunction, check_output_count, evaluate
from kinsight.parameters import refuse_replaced
from kinsight.rules import RULES, apply_rule


@dataclass(eq=False)
class Differentiator:
    """Per-sample gradients of a model's outputs over chosen parameters.

    Args:
        model: any module, left as it is.
        output: what is differentiated.
        parameters: name -> parameter, each tensor once.
        fallback: whether parameters without a layer rule may take the generic paths.
        check: when the proof of coverage runs: on the first batch of each kind, always, or never.
        max_outputs: largest number of outputs that is differentiated one by one.
        known: all the model's parameters, where all that require a gradient are chosen: none may come later.
        is_copy: whether the model is a copy made to prove another one.
        routes: the route of each parameter so far.
    """

    model: nn.Module
    output: OutputFunction
    parameters: Mapping[str, Tensor]
    fallback: bool = True
    check: Check = "first"
    max_outputs: int = 32
    known: Sequence[Tensor] | None = None
    is_copy: bool = False
    routes: dict[str, str] = field(default_factory=dict)
    _no_vmap: dict[str, str] = field(default_factory=dict)
    _needs_company: bool = False
    _n_batches: int = 0

    def __post_init__(self) -> None:
        self.trace = Tracer(self.parameters, list(self.model.parameters()), self.output.name, self.check)

    @property
    def precision(self) -> torch.dtype:
        """The coarsest precision computed in so far."""
        return self.trace.precision

    def __call__(self, batch: Batch, *, is_differentiable: bool = False) -> BatchGradients:
        """The gradients of one batch.

        Args:
            batch: samples, on the model's device.
            is_differentiable: keep the graph, so that losses of the gradients can be trained.
        """
        if len(batch) == 1 and self._needs_company:
            return self._in_company(batch, is_differentiable=is_differentiable)
        return self._differentiate(batch, is_differentiable=is_differentiable)

    def hand_over(self, batch: Batch, take: Take) -> Tensor:
        """The gradients of one batch, a parameter at a time, each forgotten when it has been taken.

        For one output, and models whose graph says by itself where samples lie, that is while the backward pass runs:
        then it takes no more memory than in training. Else all are captured first.

        Returns:
            The outputs, [n c].
        """
        whole = self(batch) if len(batch) == 1 else self._differentiate(batch, take=take)
        left = dict(whole.by_parameter)
        outputs = whole.outputs
        del whole
        for name in list(left):
            take(name, left.pop(name))
        return outputs

    def _in_company(self, batch: Batch, *, is_differentiable: bool) -> BatchGradients:
        """The gradients of one sample from two copies of it (`running.needs_company` says why)."""
        self._needs_company = True
        found = self._differentiate(batch[[0, 0]], is_differentiable=is_differentiable, are_copies=True)
        return found.rows(0, 1)

    def _differentiate(
        self, batch: Batch, *, is_differentiable: bool = False, are_copies: bool = False, take: Take | None = None
    ) -> BatchGradients:
        refuse_replaced(self.model, self.parameters, self.known)
        is_due = self._n_batches & (self._n_batches + 1) == 0  # batches 1, 2, 4, 8, ...
        with untouched(self.model, self.parameters, is_watched=is_due):
            try:
                outputs = self._outputs(batch)
            except ShapeError:
                if len(batch) > 1:
                    raise
                return self._in_company(batch, is_differentiable=is_differentiable)  # an axis squeezed away
            if len(batch) == 1 and needs_company(node_names(outputs)):
                return self._in_company(batch, is_differentiable=is_differentiable)
            try:
                traced = self.trace.begin(outputs, are_copies=are_copies)
                is_streamed = take is not None and outputs.shape[1] == 1 and _is_streamed(traced)
                if not is_streamed:
                    self.trace.finish(traced, outputs, are_copies=are_copies, is_differentiable=is_differentiable)
            except NonFiniteError:
                self._refuse_not_finite(batch)
                raise
            graph, routing, is_new = traced.graph, traced.routing, traced.is_new
            if take is not None and is_streamed:
                gradients = {}
                layouts = routing.layouts.for_batch(len(batch))
                hand_over(outputs, graph, layouts, self.parameters, take, routing.reasons)
            else:
                gradients = self._from_rules(traced, n=len(batch), is_differentiable=is_differentiable)
            if len(batch) == 1 and routing.reasons:  # of one sample anything may be an axis: with two, rules may apply
                return self._in_company(batch, is_differentiable=is_differentiable)
            is_looked_at = is_due or not traced.is_steady or traced.is_remembered or bool(routing.reasons)
            if is_new or (self.check != "never" and is_looked_at):
                is_brief = traced.is_steady and not is_new
                first = self._n_batches if is_brief else None
                refuse_mixed(self.model, self.output, batch, outputs, graph.precision, first=first)
            generic = {name: p for name, p in self.parameters.items() if name in routing.reasons}
            self._refuse_uncaptured(generic, routing)
            if not is_new:
                outputs = outputs if is_differentiable else outputs.detach()
            gradients.update(self._from_generic(batch, generic, routing, is_differentiable=is_differentiable))
            if is_new and not self._prove_in_float32(batch, gradients, traced, is_differentiable=is_differentiable):
                self._prove(batch, outputs, gradients, traced, is_differentiable=is_differentiable)
            self.trace.accept(traced)
            self._n_batches += 1
        self._report(gradients, graph, routing)
        if not is_differentiable:
            outputs = outputs.detach()
        ordered = {name: gradients[name] for name in self.parameters if name in gradients}
        return BatchGradients(batch.ids, outputs, ordered)

    def _refuse_not_finite(self, batch: Batch) -> None:
        """Raise with the ids of the samples whose gradients are nan or inf."""
        for values in one_at_a_time(self.model, batch, self.output, self.parameters).values():
            check_finite(values.values, batch, "gradients")

    def outputs(self, batch: Batch) -> Tensor:
        """The output function's values, [n c], without gradients."""
        with untouched(self.model, {}):
            return evaluate(self.output, call_model(self.model, batch.inputs), batch.targets, len(batch)).detach()

    def forward(self, batch: Batch) -> Tensor:
        """The output function's values, [n c], with their graph."""
        with untouched(self.model, self.parameters):
            return evaluate(self.output, call_model(self.model, batch.inputs), batch.targets, len(batch))

    def _outputs(self, batch: Batch) -> Tensor:
        outputs = evaluate(self.output, call_model(self.model, batch.inputs), batch.targets, len(batch))
        n_parameters = sum(parameter.numel() for parameter in self.parameters.values())
        limit = outputs.shape[1] if self.output.is_estimate else self.max_outputs  # probes are as many as asked for
        check_output_count(outputs, limit=limit, n_parameters=n_parameters, n=len(batch))
        check_finite(outputs, batch, "outputs")
        return outputs

    # ------------------------------------------------------------------------------------------- routing and proof

    def _prove(
        self,
        batch: Batch,
        outputs: Tensor,
        gradients: dict[str, Gradients],
        traced: Trace,
        *,
        is_differentiable: bool = False,
    ) -> None:
        """Compare with ordinary autograd; send what fails to slower paths; refuse what fails on all of them."""
        graph, routing = traced.graph, traced.routing
        leaves = {name: self.parameters[name] for name in graph.leaves}
        failed = unexplained(outputs, gradients, leaves, graph.precision)
        ruled = {name: self.parameters[name] for name in failed if name not in routing.reasons}
        finer = self._on_finer_copy(batch, graph.precision) if failed else None
        if finer is not None:
            ruled = {name: self.parameters[name] for name in ruled if name in finer._reasons()}
        if ruled:
            for name in ruled:
                routing.reasons[name] = f"its layer rule failed the proof of coverage by {failed[name]:.1e}"
            self._refuse_uncaptured(ruled, routing)
            gradients.update(self._from_generic(batch, ruled, routing, is_differentiable=is_differentiable))
            failed = unexplained(outputs, gradients, leaves, graph.precision)
        again = {
            name: self.parameters[name] for name in failed if name in routing.reasons and name not in self._no_vmap
        }
        if again:
            self._no_vmap |= dict.fromkeys(again, "vmap failed the proof of coverage")
            gradients.update(self._from_generic(batch, again, routing, is_differentiable=is_differentiable))
            failed = unexplained(outputs, gradients, leaves, graph.precision)
        if failed and finer is None:
            name, difference = max(failed.items(), key=lambda item: item[1])
            raise MixedSamplesError(
                f"The gradients of single samples do not add up to the gradient of their sum: {len(failed)} "
                f"parameters, worst {name!r} by {difference:.1e}. One sample's output depends on the others in its "
                "batch (batch statistics, contrastive terms, routing with a capacity), so it has no gradient of its "
                "own. Make the model treat samples independently in eval mode."
            )

    def _prove_in_float32(
        self, batch: Batch, gradients: dict[str, Gradients], traced: Trace, *, is_differentiable: bool
    ) -> bool:
        """Prove a half-precision model on a float32 copy of it, where a fault does not hide in the rounding.

        The copy's layouts are taken over: in half precision a wrong one may fit as well.

        Returns:
            False for a model of full precision, and for one that cannot be copied or run in float32: then the proof
            has to do with the tolerance of half precision.
        """
        routing = traced.routing
        if traced.graph.precision not in (torch.bfloat16, torch.float16):
            return False
        single = self._on_finer_copy(batch, traced.graph.precision)
        if single is None:
            return False
        theirs = next(reversed(single.trace.routings.values())).layouts if single.trace.routings else routing.layouts
        if len(theirs.found) == len(routing.layouts.found) and theirs.found != routing.layouts.found:
            routing.layouts.found = theirs.found
            routing.reasons.clear()
            gradients.update(self._from_rules(traced, n=len(batch), is_differentiable=is_differentiable))
        routing.reasons.update({name: why for name, why in single._reasons().items() if name not in routing.reasons})
        generic = {name: self.parameters[name] for name in routing.reasons}
        gradients.update(self._from_generic(batch, generic, routing, is_differentiable=is_differentiable))
        return True

    def _on_finer_copy(self, batch: Batch, precision: torch.dtype) -> Differentiator | None:
        """What differentiated this batch on a copy of the model in the next finer precision.

        None where there is none, or where the model cannot be copied, or converts to a precision of its own.
        """
        finer = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
        if precision not in finer or self.is_copy:
            return None
        try:
            copied = copy.deepcopy(self.model).to(finer[precision])
        except (RuntimeError, TypeError, ValueError, NotImplementedError):  # holds what cannot be copied
            return None
        named = dict(copied.named_parameters())
        parameters = {name: named[name] for name in self.parameters}
        found = Differentiator(
            copied, self.output, parameters, self.fallback, max_outputs=self.max_outputs, is_copy=True
        )
        inputs = map_leaves(functools.partial(_converted, precision=finer[precision]), batch.inputs)
        targets = None if batch.targets is None else _converted(batch.targets, finer[precision])
        try:
            with torch.autocast(next(iter(parameters.values())).device.type, enabled=False):
                found(Batch(inputs, batch.ids, targets))
        except (ModelCallError, IndependentOutputError):
            return None  # converts to another precision inside, and stumbles over it; or runs the original's weights
        return found if found.precision == finer[precision] else None

    def _reasons(self) -> dict[str, str]:
        """Why parameters take a generic path, over all kinds of batches seen."""
        return {name: reason for routing in self.trace.routings.values() for name, reason in routing.reasons.items()}

    # -------------------------------------------------------------------------------------------------- routes

    def _from_rules(self, traced: Trace, *, n: int, is_differentiable: bool) -> dict[str, Gradients]:
        """Gradients of the parameters all of whose uses have a rule and a layout."""
        graph, routing = traced.graph, traced.routing
        layouts = routing.layouts.for_batch(n)
        self._note_missing_rules(graph, routing, layouts)
        captured: list[tuple[Use, Gradients]] = []
        for use, layout in zip(graph.uses, layouts, strict=True):
            if (
                layout is None
                or use.node not in traced.at_nodes
                or any(name in routing.reasons for name in use.parameters)
            ):
                continue
            split = layout.split(traced.at_nodes[use.node], lead=1)
            capture = LayerCapture(use, layout, split, is_differentiable, keeps_bounds=traced.is_new)
            with torch.set_grad_enabled(is_differentiable):
                weight = apply_rule(capture)
            if weight is None:
                note_refusal(routing.reasons, use)
                continue
            captured.append((use, weight))
        spread(routing.reasons, graph.uses)
        ruled = [(use, each) for use, each in captured if use.parameters[0] not in routing.reasons]
        return from_uses(ruled, self.parameters, is_differentiable=is_differentiable)

    def _note_missing_rules(self, graph: Graph, routing: Routing, layouts: Sequence[object]) -> None:
        for use, layout in zip(graph.uses, layouts, strict=True):
            reason = ""
            if use.name not in RULES:
                reason = f"no layer rule for {use.name!r}"
            elif layout is None:
                reason = f"samples could not be told apart at {use.name!r}"
            for name in use.parameters if reason else ():
                routing.reasons.setdefault(name, reason)
        used = {name for use in graph.uses for name in use.parameters}
        for name in graph.leaves:
            if name not in used and name not in graph.idle:
                routing.reasons.setdefault(name, "the output is made of it without any data")

    def _from_generic(
        self, batch: Batch, parameters: Mapping[str, Tensor], routing: Routing, *, is_differentiable: bool
    ) -> dict[str, Gradients]:
        if not parameters:
            return {}
        if is_differentiable:  # what vmap gives is cut off from the parameters
            return {**one_at_a_time(self.model, batch, self.output, parameters, is_differentiable=True)}
        found: dict[str, Gradients] = {}
        together = {name: parameter for name, parameter in parameters.items() if name not in self._no_vmap}
        if together:
            try:
                found.update(vmapped(self.model, batch, self.output, together))
            except StochasticModelError:
                raise
            except Exception as error:  # whatever vmap cannot run, the plain loop below can, and the route says why
                why = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                self._no_vmap |= dict.fromkeys(together, why)
        left = {name: parameter for name, parameter in parameters.items() if name not in found}
        if left:
            found.update(one_at_a_time(self.model, batch, self.output, left))
        return found

    def _refuse_uncaptured(self, generic: Mapping[str, Tensor], routing: Routing) -> None:
        if not generic or self.fallback:
            return
        total = sum(parameter.numel() for parameter in self.parameters.values())
        share = sum(parameter.numel() for parameter in generic.values()) / total
        reasons = "; ".join(f"{name!r}: {routing.reasons.get(name, 'no use found')}" for name in list(generic)[:5])
        raise UncapturedParameterError(
            f"{len(generic)} of {len(self.parameters)} parameters have no layer rule ({reasons}). The kernel would "
            f"silently leave out {share:.1%} of the weights. Use fallback=True, register a rule "
            "(kinsight.rules.register_rule), or leave them out by name: parameters=lambda name: ..."
        )

    def _report(self, gradients: Mapping[str, Gradients], graph: Graph, routing: Routing) -> None:
        """Remember the route of every parameter, the slowest one seen."""
        uses: dict[str, list[str]] = {}
        for use in graph.uses:
            for name in use.parameters:
                uses.setdefault(name, []).append(use.name)
        for name in self.parameters:
            if name in routing.reasons:
                path = f"one sample at a time ({self._no_vmap[name]})" if name in self._no_vmap else "vmap"
                self.routes[name] = f"{path}: {routing.reasons[name]}"
            elif name in uses:
                kinds = ", ".join(dict.fromkeys(uses[name]))
                self.routes.setdefault(
                    name, f"rule: {kinds}" + (f" x {len(uses[name])}" if len(uses[name]) > 1 else "")
                )
            elif name not in gradients:
                self.routes.setdefault(name, "unused: the output does not depend on it")


def _converted(leaf: Any, precision: torch.dtype) -> Any:
    return leaf.to(precision) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _is_streamed(traced: Trace) -> bool:
    """Whether the rules are known to explain every parameter."""
    return traced.is_known and not traced.routing.reasons
