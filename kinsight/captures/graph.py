"""The autograd graph names every use of every parameter, wherever in the model it is.

A leaf of the graph is a parameter; the nodes above it are what was done to it. Some of them only reshape it or
combine it with other parameters (a transpose, a cast, a weight normalization): these nodes make a *weight*. The first
node above a weight that also takes data is a *use*: a linear map, a convolution, a product. Every path from the
outputs down to a parameter goes through exactly one use, so the uses found here are all there are: a functional call,
a tied weight, a bare `nn.Parameter` or a module called twice cannot escape, which hooks on modules cannot promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import Node

from kinsight.captures.nodes import axis_of, children, children_first, description, is_leaf, output_shape, short_name

RESHAPES = frozenset({"View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Alias", "ToCopy", "Clone"})
"""Nodes that keep a weight's elements in row-major order."""

TRANSPOSES = frozenset({"T", "Transpose", "Permute"})
"""Nodes that reorder a weight's elements."""

FUNCTIONS = frozenset(
    {"Slice", "Select", "Split", "SplitWithSizes", "Narrow", "Cat", "Stack", "Sum", "Mean", "Norm",
     "Neg", "Exp", "Log", "Sqrt", "Rsqrt", "Pow", "Tanh", "Sigmoid", "Softplus", "Abs", "Square",
     "Mul", "Add", "Sub", "Div", "Mm", "Addmm", "Bmm", "Mv", "Dot", "LinalgVectorNorm",
     "WeightNormInterface", "MatrixExp", "LinalgSolveEx"}
)  # fmt: skip
"""Further nodes that take nothing but weights when none of their inputs is a constant."""


@dataclass(frozen=True, eq=False)
class Use:
    """One place where a weight meets data.

    Args:
        node: the graph node.
        operand: which of the node's inputs the weight is.
        weight: the node that made the weight (a leaf where the parameter is used as it is), and its output number.
        parameters: names of the chosen parameters the weight is made of.
        place: the node's number in the order in which the graph is walked, the same at every run of the model.
        may_be_shared: whether no differentiable operand is data, so that all samples may share it. Data may still come
            in as indices (tokens), or not at all: a table of positions looked up in the same order for every sample.
    """

    node: Node
    operand: int
    weight: tuple[Node, int]
    parameters: tuple[str, ...]
    place: int
    may_be_shared: bool

    @property
    def name(self) -> str:
        """The node's name without its suffix: 'Addmm', 'Convolution'."""
        return short_name(self.node)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as the node takes it."""
        node, number = self.weight
        return output_shape(node, number)


@dataclass(frozen=True, eq=False)
class Graph:
    """What the graph of one forward pass says.

    Args:
        uses: every use of a chosen parameter, in a fixed order.
        leaves: the graph's leaf of each chosen parameter that the outputs depend on.
        idle: names of parameters with a use that got no rows, as an expert that no sample was sent to.
        precision: the coarsest floating-point type any node computed in.
        names: names of the nodes.
        order: all nodes, each after its children.
        weights: the nodes that make weights, with the names of the parameters they are made of.
        structure: the graph's nodes, how they are connected, their sizes and whatever numbers they saved (axes,
            strides, windows): two graphs of the same structure do the same to tensors of the same sizes.
    """

    uses: tuple[Use, ...]
    leaves: Mapping[str, Node]
    idle: frozenset[str]
    precision: torch.dtype
    names: frozenset[str]
    order: Sequence[Node]
    weights: Mapping[Node, frozenset[str]]
    structure: tuple[tuple[tuple[object, ...], tuple[tuple[int, int, int], ...]], ...]

    @property
    def skeleton(self) -> tuple[object, ...]:
        """The names of the nodes and how they are connected, whatever their sizes."""
        return tuple((description[0], below) for description, below in self.structure)


@dataclass(eq=False)
class _Walk:
    chosen: Mapping[int, str]
    parameters: frozenset[int]
    shared: frozenset[int]
    below: dict[Node, frozenset[str] | None] = field(default_factory=dict)

    def weight_of(self, node: Node, place: int) -> frozenset[str] | None:
        """Names of the chosen parameters if the node makes a weight from parameters alone, else None."""
        if is_leaf(node):
            key = id(node.variable)  # type: ignore[attr-defined]
            if key not in self.parameters:
                return None
            return frozenset({self.chosen[key]} if key in self.chosen else ())
        name = short_name(node)
        parts = [self.below[child] for _, child, _ in children(node)]
        alone = bool(parts) and all(part is not None for part in parts)
        constants = any(child is None for child, _ in node.next_functions)
        is_made = name in RESHAPES or name in TRANSPOSES or (name in FUNCTIONS and not constants)
        if alone and (is_made or place in self.shared):
            return frozenset[str]().union(*(part for part in parts if part is not None))
        return None


def _coarser(precision: torch.dtype, node: Node) -> torch.dtype:
    """The coarser of a precision and those of a node's outputs."""
    made = [node.variable] if is_leaf(node) else node._input_metadata  # type: ignore[attr-defined]
    for output in made:
        dtype = torch.empty(0, dtype=output.dtype).real.dtype if output.dtype.is_complex else output.dtype
        if dtype.is_floating_point and torch.finfo(dtype).eps > torch.finfo(precision).eps:
            precision = dtype
    return precision


def find_uses(
    outputs: Tensor, chosen: Mapping[int, str], parameters: Sequence[Tensor], shared: frozenset[int] = frozenset()
) -> Graph:
    """Every use of the chosen parameters in the graph that made `outputs`.

    Args:
        outputs: a tensor with a graph.
        chosen: name of each chosen parameter, by `id` of the tensor.
        parameters: all the model's parameters, chosen or not.
        shared: places of nodes known to make the same of weights for all samples (`Use.place`): they make a weight too.
    """
    walk = _Walk(chosen, frozenset(id(parameter) for parameter in parameters), shared)
    uses: list[Use] = []
    leaves: dict[str, Node] = {}
    names_seen: set[str] = set()
    precision = torch.float64
    idle: set[str] = set()
    structure: list[tuple[tuple[object, ...], tuple[tuple[int, int, int], ...]]] = []
    places: dict[Node, int] = {}
    for place, node in enumerate(children_first(outputs.grad_fn)):
        places[node] = place
        weight = walk.below[node] = walk.weight_of(node, place)
        kind = description(node)
        if is_leaf(node):  # which parameter it is belongs to the structure
            kind = ("data" if weight is None else f"parameter {''.join(weight)}", *kind)
        structure.append((kind, tuple((operand, places[child], number) for operand, child, number in children(node))))
        precision = _coarser(precision, node)
        if is_leaf(node):
            if weight:
                leaves[next(iter(weight))] = node
            continue
        names_seen.add(short_name(node))
        if weight is None:
            are_weights = [walk.below[child] is not None for _, child, _ in children(node)]
            for operand, child, number in children(node):
                names = walk.below[child]
                if names and 0 in output_shape(node):
                    idle.update(names)
                elif names:
                    uses.append(Use(node, operand, (child, number), tuple(sorted(names)), place, all(are_weights)))
    weights = {node: made for node, made in walk.below.items() if made is not None}
    return Graph(
        tuple(uses), leaves, frozenset(idle), precision, frozenset(names_seen), list(places), weights, tuple(structure)
    )


def weight_chain(use: Use) -> list[tuple[Node, int]]:
    """The nodes that lead from the parameter to the weight, nearest the use first, the leaf last.

    Empty when several parameters make the weight.
    """
    chain = [use.weight]
    while not is_leaf(chain[-1][0]):
        below = list(children(chain[-1][0]))
        if len(below) != 1:
            return []
        chain.append(below[0][1:])
    return chain


def chain_order(chain: Sequence[tuple[Node, int]]) -> str | None:
    """What a chain of views does to a parameter's elements: 'kept', 'transposed' (a matrix), or None (else)."""
    *views, (leaf, _) = chain
    names = [short_name(node) for node, _ in views]
    if all(name in RESHAPES for name in names):
        return "kept"
    if not all(name in RESHAPES or name in TRANSPOSES for name in names):
        return None
    if len(names) == 1 and names[0] == "T":
        return "transposed"
    index = torch.arange(leaf.variable.numel()).reshape(leaf.variable.shape)  # type: ignore[attr-defined]
    original = index
    for node, number in reversed(views):
        index = _apply_view(node, index, output_shape(node, number))
    if torch.equal(index.flatten(), original.flatten()):
        return "kept"
    if original.dim() == 2 and torch.equal(index.flatten(), original.T.flatten()):
        return "transposed"
    return None


def _apply_view(node: Node, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    name, n_axes = short_name(node), index.dim()
    if name == "T":
        return index.t()
    if name == "Transpose":
        return index.transpose(axis_of(node._saved_dim0, n_axes), axis_of(node._saved_dim1, n_axes))  # type: ignore[attr-defined]
    if name == "Permute":
        return index.permute([axis_of(dim, n_axes) for dim in node._saved_dims])  # type: ignore[attr-defined]
    return index.reshape(shape)
