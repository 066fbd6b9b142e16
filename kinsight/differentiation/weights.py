"""From the gradients over a weight to those over the parameters it was made of.

A weight is what a layer multiplies with: a parameter, a view of one (transposed, reshaped, cast), or a function of
several (a weight normalization, a table of positions). Views move elements; functions pull gradients back.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from kinsight.captures.graph import Use, chain_order, weight_chain
from kinsight.gradients import Built, Factored, Gradients, add_uses
from kinsight.gradients.contractions import chunks


def from_uses(
    captured: Sequence[tuple[Use, Gradients]], parameters: Mapping[str, Tensor], *, is_differentiable: bool = False
) -> dict[str, Gradients]:
    """Gradients over parameters, by name, from those over the weight at each use: summed over all of them."""
    weights: dict[tuple[Node, int], tuple[Use, list[Gradients]]] = {}
    for use, gradients in sorted(captured, key=lambda each: (each[0].place, each[0].operand)):
        weights.setdefault(use.weight, (use, []))[1].append(gradients)
    found: dict[str, list[Gradients]] = {}
    for use, parts in weights.values():
        made = to_parameters(use, add_uses(parts), parameters, is_differentiable=is_differentiable)
        for name, gradients in made.items():
            found.setdefault(name, []).append(gradients)
    return {name: add_uses(parts) for name, parts in found.items()}


def groups_of(uses: Sequence[Use]) -> dict[str, str]:
    """For every parameter in use one of those that make weights together with it, the same for all of them."""
    groups = {name: name for use in uses for name in use.parameters}
    for use in uses:
        joined = {groups[name] for name in use.parameters}
        if len(joined) > 1:
            groups = {name: min(joined) if group in joined else group for name, group in groups.items()}
    return groups


def spread(reasons: dict[str, str], uses: Sequence[Use]) -> None:
    """Add the parameters that make weights together with one that takes a generic path: those are left out."""
    if not reasons:
        return
    groups = groups_of(uses)
    left_out = {groups[name]: name for name in reasons if name in groups}
    for name, group in groups.items():
        if group in left_out:
            reasons.setdefault(name, f"makes a weight with {left_out[group]!r}")


def to_parameters(
    use: Use, weight: Gradients, parameters: Mapping[str, Tensor], *, is_differentiable: bool
) -> dict[str, Gradients]:
    """Gradients over each parameter a weight was made of, by name.

    Args:
        use: any use of the weight.
        weight: gradients over it.
        parameters: name -> parameter.
        is_differentiable: keep the graph.
    """
    chain = weight_chain(use)
    order = chain_order(chain) if chain else None
    if order is not None:
        shape = tuple(parameters[use.parameters[0]].shape)
        return {use.parameters[0]: _reordered(weight, shape, order)}
    leaves = [parameters[name] for name in use.parameters]
    size = 4 * weight.c * (math.prod(weight.shape) + sum(leaf.numel() for leaf in leaves))
    parts: list[list[Tensor | None]] = []
    for rows in chunks(weight.n, size):
        values = weight.rows(rows.start, rows.stop).build()
        pulled = _pull_back(
            GradientEdge(*use.weight), leaves, values.flatten(0, 1), is_differentiable=is_differentiable
        )
        parts.append([None if each is None else each.reshape(*values.shape[:2], *each.shape[1:]) for each in pulled])
    return {
        name: Built(torch.cat([each for each in pieces if each is not None]))
        for name, pieces in zip(use.parameters, zip(*parts, strict=True), strict=True)
        if pieces[0] is not None
    }


def _pull_back(
    edge: GradientEdge, leaves: Sequence[Tensor], rows: Tensor, *, is_differentiable: bool
) -> list[Tensor | None]:
    """Vector-Jacobian products of many rows, from a weight to the parameters below it: [k ...] each."""

    def pull(cotangents: Tensor, *, is_batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            [edge], leaves, [cotangents], is_grads_batched=is_batched,
            retain_graph=True, create_graph=is_differentiable, allow_unused=True,
        )  # fmt: skip

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return list(pull(rows, is_batched=True))
    except RuntimeError:  # a backward function that vmap cannot run
        each = [pull(row, is_batched=False) for row in rows]
        return [None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True)]


def _reordered(weight: Gradients, shape: tuple[int, ...], order: str) -> Gradients:
    """Gradients over a parameter, given those over a view of it."""
    if isinstance(weight, Factored) and (order == "kept" or weight.sizes.g == 1):
        return Factored(weight.inputs, weight.output_gradients, shape, weight.gradient_first != (order == "transposed"))
    if order == "kept" and weight.shape == shape:
        return weight
    values = weight.build()
    if order == "transposed":
        values = values.reshape(*values.shape[:2], *shape[::-1]).transpose(2, 3)
    return Built(values.reshape(*values.shape[:2], *shape), weight.bound())
