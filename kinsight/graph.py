"""The autograd graph names every use of every parameter, wherever in the model it is.

A leaf of the graph is a parameter; the nodes above it are what was done to it. Some of them only reshape it or
combine it with other parameters (a transpose, a cast, a weight normalization): these nodes make a *weight*. The first
node above a weight that also takes data is a *use*: a linear map, a convolution, a product. Every path from the
outputs down to a parameter goes through exactly one use, so the uses found here are all there are: a functional call,
a tied weight, a bare `nn.Parameter` or a module called twice cannot escape, which hooks on modules cannot promise.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import Node

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
        may_move_samples: whether rows may be gathered, sorted or routed: True unless every node is of a kind that
            leaves samples where they are. A hint to look more often, not a guarantee.
        precision: the coarsest floating-point type any node computed in.
        names: names of the nodes.
        structure: the graph's nodes, how they are connected, their sizes and whatever numbers they saved (axes,
            strides, windows): two graphs of the same structure do the same to tensors of the same sizes.
    """

    uses: tuple[Use, ...]
    leaves: Mapping[str, Node]
    idle: frozenset[str]
    may_move_samples: bool
    precision: torch.dtype
    names: frozenset[str]
    structure: tuple[tuple[tuple[object, ...], tuple[tuple[int, int], ...]], ...]

    @property
    def skeleton(self) -> tuple[object, ...]:
        """The names of the nodes and how they are connected, whatever their sizes."""
        return tuple((description[0], below) for description, below in self.structure)


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


STEADY = RESHAPES | TRANSPOSES | frozenset(
    {"Relu", "Tanh", "Sigmoid", "Gelu", "Silu", "Mish", "LeakyRelu", "Elu", "Hardtanh", "Hardswish", "Hardsigmoid",
     "Softplus", "Threshold", "PreluKernel", "Softmax", "LogSoftmax", "Exp", "Log", "Sqrt", "Rsqrt", "Pow", "Abs",
     "Neg", "Sin", "Cos", "Erf", "Clamp", "ClampMin", "ClampMax", "Where", "MaskedFill", "Add", "Sub", "Mul", "Div",
     "Mean", "Sum", "Var", "Logsumexp", "Amax", "Convolution", "Embedding", "NativeBatchNorm", "NativeLayerNorm",
     "NativeGroupNorm", "FusedRmsNorm", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AvgPool2D", "AvgPool3D",
     "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "ConstantPadNd", "ReflectionPad1D", "ReflectionPad2D",
     "ReplicationPad1D", "ReplicationPad2D", "Expand", "Repeat", "Slice", "Select", "Split", "SplitWithSizes", "Linear"}
)  # fmt: skip
"""Nodes that by themselves leave every sample where it is: where there are others, samples may be routed together."""

PRODUCTS = frozenset({"Mm", "Addmm", "Bmm", "Mv"})
"""Matrix products: steady when one side is a weight. A permutation matrix made from the data is not."""


def _is_steady(node: Node, *, has_weight: bool) -> bool:
    name = short_name(node)
    if name == "Cat":
        dim = _axis(node._saved_dim)  # type: ignore[attr-defined]
        return dim not in (0, -len(output_shape(node)))
    return name in STEADY or name.startswith(("ScaledDotProduct", "Upsample")) or (name in PRODUCTS and has_weight)


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
    may_move_samples, precision = False, torch.float64
    idle: set[str] = set()
    structure: list[tuple[tuple[object, ...], tuple[tuple[int, int], ...]]] = []
    places: dict[Node, int] = {}
    for place, node in enumerate(_children_first(outputs.grad_fn)):
        places[node] = place
        structure.append((_description(node), tuple((places[child], number) for _, child, number in children(node))))
        weight = walk.below[node] = walk.weight_of(node, place)
        precision = _coarser(precision, node)
        if is_leaf(node):
            if weight:
                leaves[next(iter(weight))] = node
            continue
        names_seen.add(short_name(node))
        if weight is None:
            are_weights = [walk.below[child] is not None for _, child, _ in children(node)]
            may_move_samples = may_move_samples or not _is_steady(node, has_weight=any(are_weights))
            for operand, child, number in children(node):
                names = walk.below[child]
                if names and 0 in output_shape(node):
                    idle.update(names)
                elif names:
                    uses.append(Use(node, operand, (child, number), tuple(sorted(names)), place, all(are_weights)))
    return Graph(
        tuple(uses), leaves, frozenset(idle), may_move_samples, precision, frozenset(names_seen), tuple(structure)
    )


@functools.cache
def _saved_names(kind: type[Node], name: str) -> tuple[str, ...]:
    return tuple(each for each in dir(kind) if each.startswith("_saved_"))


def _description(node: Node) -> tuple[object, ...]:
    """What a node does, but for the data: its name, its sizes, and the numbers it saved."""
    if is_leaf(node):
        return ("leaf", tuple(node.variable.shape))  # type: ignore[attr-defined]
    sizes = tuple(tuple(each.shape) for each in node._input_metadata)
    saved = (getattr(node, name) for name in _saved_names(type(node), node.name()))
    return (node.name(), sizes, tuple(value for value in saved if isinstance(value, PLAIN)))


PLAIN = (bool, int, float, str, tuple, type(None))
"""Types of saved values that say what a node does, not to what."""


def node_names(outputs: Tensor) -> frozenset[str]:
    """Names of the nodes in the graph that made `outputs`."""
    return frozenset(short_name(node) for node in _children_first(outputs.grad_fn))


def _children_first(root: Node | None) -> Iterator[Node]:
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
    name = short_name(node)
    if name == "T":
        return index.t()
    if name == "Transpose":
        return index.transpose(_axis(node._saved_dim0), _axis(node._saved_dim1))  # type: ignore[attr-defined]
    if name == "Permute":
        return index.permute([_axis(dim) for dim in node._saved_dims])  # type: ignore[attr-defined]
    return index.reshape(shape)


def _axis(dim: int) -> int:
    """A saved axis as a signed number: autograd saves negative ones as unsigned 64-bit."""
    return dim - 2**64 if dim >= 2**63 else dim
