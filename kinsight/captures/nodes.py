"""Nodes of the autograd graph: what they are called, what they take, what they saved."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node


def short_name(node: Node) -> str:
    """'AddmmBackward0' -> 'Addmm'. Functions of the user's own have no number at the end, and keep their whole name."""
    name = node.name().rpartition("::")[2]
    known = re.fullmatch(r"(.+)Backward\d+", name)
    return known[1] if known else name


def output_shape(node: Node, number: int = 0) -> tuple[int, ...]:
    """Shape of a node's output in the forward pass."""
    if is_leaf(node):
        return tuple(node.variable.shape)  # type: ignore[attr-defined]
    return tuple(node._input_metadata[number].shape)


def is_leaf(node: Node) -> bool:
    """Whether the node is a tensor that requires a gradient by itself."""
    return hasattr(node, "variable")


def widen(tensor: Tensor) -> Tensor:
    """The tensor, dense, in float32 where it is in half precision."""
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def children(node: Node) -> Iterator[tuple[int, Node, int]]:
    """(operand, child, the child's output number) of every differentiable input."""
    for operand, (child, number) in enumerate(node.next_functions):
        if child is not None:
            yield operand, child, number


def children_first(root: Node | None) -> Iterator[Node]:
    """Every node below the root, each after all of its children, in an order that only the model decides."""
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False)] if root is not None else []
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for _, child, _ in children(node) if child not in seen)


def node_names(outputs: Tensor) -> frozenset[str]:
    """Names of the nodes in the graph that made `outputs`."""
    return frozenset(short_name(node) for node in children_first(outputs.grad_fn))


@functools.cache
def _saved_names(kind: type[Node], name: str) -> tuple[str, ...]:
    return tuple(each for each in dir(kind) if each.startswith("_saved_"))


def saved_values(node: Node) -> dict[str, Any]:
    """All that a node saved for its backward pass, by name."""
    names = _saved_names(type(node), node.name())
    return {name.removeprefix("_saved_"): getattr(node, name) for name in names}


def description(node: Node) -> tuple[object, ...]:
    """What a node does, but for the data: its name, its sizes, and the numbers it saved."""
    if is_leaf(node):
        return ("leaf", tuple(node.variable.shape))  # type: ignore[attr-defined]
    sizes = tuple(tuple(each.shape) for each in node._input_metadata)
    saved = (getattr(node, name) for name in _saved_names(type(node), node.name()))
    return (node.name(), sizes, tuple(value for value in saved if isinstance(value, PLAIN)))


PLAIN = (bool, int, float, str, tuple, type(None))
"""Types of saved values that say what a node does, not to what."""


def axis_of(dim: int, n_axes: int) -> int:
    """A saved axis, counted from the first: autograd saves negative ones as unsigned 64-bit."""
    dim = dim - 2**64 if dim >= 2**63 else dim
    return dim % max(n_axes, 1)
