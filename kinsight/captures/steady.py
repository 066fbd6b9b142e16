"""Whether every sample stays where it is, whatever the data: followed through the graph, node by node.

In the outputs samples lie on the first axis. From there each node says where they lie in its inputs: at the same place
for an activation, on another axis for a transpose, next to other positions after a reshape. A node that reduces over
samples, broadcasts over them, gathers rows or is not known ends the search: then the data may move samples, and where
they lie has to be measured for every batch (`kinsight.captures.layouts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.autograd.graph import Node

from kinsight.captures.nodes import axis_of, children, is_leaf, output_shape, short_name

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where n samples lie in a tensor: on an axis of size before x n x after, after others of `before`."""

    axis: int
    before: int


Follow = Callable[[Node, Place, int], Iterable[tuple[Node, int, Place]] | None]
"""From a node and the place of n samples in its output to their places in its inputs: (child, number, place)."""


def follow_samples(n: int, weights: Mapping[Node, object], order: Sequence[Node]) -> dict[Node, Place] | None:
    """Where the samples lie in the output of every node; None unless that follows from the graph alone.

    Args:
        n: number of samples; of one sample anything may be the axis.
        weights: nodes that make weights; they hold no samples.
        order: all nodes, each after its children; the last made the outputs, [n] or [n c].
    """
    if any(0 in output_shape(node) for node in order):
        return None
    places: dict[Node, Place] = {order[-1]: Place(0, 1)}
    for node in reversed(order):
        place = places.get(node)
        if place is None or node in weights or is_leaf(node):
            continue
        follow = FOLLOW.get(short_name(node))
        found = None if follow is None or n == 1 else follow(node, place, n)
        if found is None:
            return None
        for child, number, below in found:
            if child in weights:
                continue
            if places.setdefault(child, below) != below or not _fits(output_shape(child, number), below, n):
                return None
    return places


def _fits(shape: Shape, place: Place, n: int) -> bool:
    return place.axis < len(shape) and shape[place.axis] % (place.before * n) == 0


def _inputs(node: Node) -> list[tuple[Node, int, Shape]]:
    return [(child, number, output_shape(child, number)) for _, child, number in children(node)]


def _alike(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    """Operands broadcast against each other: samples on the same axis, counted from the last."""
    shape = output_shape(node)
    found = []
    for child, number, below in _inputs(node):
        axis = place.axis - (len(shape) - len(below))
        if axis < 0 or below[axis] != shape[place.axis]:
            found.append((child, number, _nowhere(below)))
            continue
        found.append((child, number, Place(axis, place.before)))
    return found


def _leading(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    """Layers that treat the first axis as samples: convolutions, pooling, normalization by channel, resizing."""
    return _first(node, place) if place.axis == 0 else None


def _by_running_statistics(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    """Batch normalization, unless it mixes the samples of its batch."""
    return None if node._saved_training else _leading(node, place, n)  # type: ignore[attr-defined]


def _first(node: Node, place: Place) -> list[tuple[Node, int, Place]]:
    """Samples in the first operand alone; the others have to be weights."""
    found = []
    for operand, child, number in children(node):
        found.append((child, number, place if operand == 0 else _nowhere(output_shape(child, number))))
    return found


def _nowhere(shape: Shape) -> Place:
    """No place at all: allowed for weights alone."""
    return Place(len(shape), 1)


def _reshaped(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    ((child, number, below),) = _inputs(node)
    left = math.prod(output_shape(node)[: place.axis]) * place.before
    for axis, size in enumerate(below):
        outer = math.prod(below[:axis])
        if size > 1 and left % outer == 0 and (outer * size) % (left * n) == 0:
            return [(child, number, Place(axis, left // outer))]
    return None


def _permuted(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    ((child, number, below),) = _inputs(node)
    name, axes = short_name(node), list(range(len(below)))
    if name == "Permute":
        axes = [axis_of(dim, len(below)) for dim in node._saved_dims]  # type: ignore[attr-defined]
    elif name == "T":
        axes.reverse()
    else:
        dims = [axis_of(dim, len(below)) for dim in (node._saved_dim0, node._saved_dim1)]  # type: ignore[attr-defined]
        axes[dims[0]], axes[dims[1]] = axes[dims[1]], axes[dims[0]]
    return [(child, number, Place(axes[place.axis], place.before))]


def _reduced(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    ((child, number, below),) = _inputs(node)
    saved = getattr(node, "_saved_dim", None)
    if saved is None:
        return None
    dims = {axis_of(dim, len(below)) for dim in ((saved,) if isinstance(saved, int) else saved)}
    if node._saved_keepdim:  # type: ignore[attr-defined]
        return None if place.axis in dims else [(child, number, place)]
    kept = [axis for axis in range(len(below)) if axis not in dims]
    return [(child, number, Place(kept[place.axis], place.before))] if dims and kept else None


def _along(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    """Something is done along one axis, which must not be the samples': a softmax, a concatenation, a slice."""
    dim = axis_of(node._saved_dim, len(output_shape(node)))  # type: ignore[attr-defined]
    return [(child, number, place) for child, number, _ in _inputs(node)] if dim != place.axis else None


def _selected(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    ((child, number, below),) = _inputs(node)
    dim = axis_of(node._saved_dim, len(below))  # type: ignore[attr-defined]
    return [(child, number, Place(place.axis + (dim <= place.axis), place.before))]


def _normalized(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    """Normalization over the last axes."""
    n_axes = len(node._saved_normalized_shape)  # type: ignore[attr-defined]
    if place.axis >= len(output_shape(node)) - n_axes:
        return None
    return _first(node, place)


def _multiplied(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    """Matrix products: samples are rows of the first matrix, or columns of the second, or whole matrices."""
    name, found = short_name(node), []
    first = {"Addmm": 1}.get(name, 0)
    for operand, child, number in children(node):
        below, side = output_shape(child, number), operand - first
        if side < 0:  # what is added to the product
            axis = place.axis - (2 - len(below))
            is_there = axis >= 0 and below[axis] == output_shape(node)[place.axis]
            found.append((child, number, Place(axis, place.before) if is_there else _nowhere(below)))
            continue
        is_batch = name == "Bmm" and place.axis == 0
        if is_batch or place.axis == len(below) - 2 + side:
            found.append((child, number, place))
        else:
            found.append((child, number, _nowhere(below)))
    return found


def _attended(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    """Fused attention: samples and heads lie on the axes before the last two of queries, keys and values."""
    if place.axis >= len(output_shape(node)) - 2:
        return None
    found = []
    for _, child, number in children(node):
        below = output_shape(child, number)
        if len(below) != len(output_shape(node)) or below[place.axis] != output_shape(node)[place.axis]:
            return None
        found.append((child, number, place))
    return found


def _looked_up(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    ((child, number, below),) = _inputs(node)
    return [(child, number, _nowhere(below))]  # a table


def _padded(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    ((child, number, below),) = _inputs(node)
    amounts = node._saved_pad  # type: ignore[attr-defined]  # of the last axis first; negative ones crop
    start = 2 * (len(below) - 1 - place.axis)
    return [(child, number, place)] if not any(amounts[start : start + 2]) else None


def _inserted(node: Node, place: Place, n: int) -> Iterable[tuple[Node, int, Place]] | None:
    ((child, number, below),) = _inputs(node)
    dim = axis_of(node._saved_dim, len(below) + 1)  # type: ignore[attr-defined]
    return [(child, number, Place(place.axis - (dim < place.axis), place.before))] if dim != place.axis else None


_POINTWISE = (
    "Relu", "Tanh", "Sigmoid", "Gelu", "Silu", "Mish", "LeakyRelu", "Elu", "Hardtanh", "Hardswish", "Hardsigmoid",
    "Softplus", "Threshold", "Exp", "Log", "Sqrt", "Rsqrt", "Pow", "Abs", "Neg", "Sin", "Cos", "Erf", "Clamp",
    "ClampMin", "ClampMax", "Clone", "Alias", "ToCopy", "Add", "Sub", "Mul", "Div", "Where", "MaskedFill",
    "PreluKernel",
)  # fmt: skip
_LEADING = (
    "Convolution", "NativeGroupNorm", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AvgPool2D",
    "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveMaxPool2D", "ReflectionPad1D", "ReflectionPad2D", "ReplicationPad1D",
    "ReplicationPad2D", "UpsampleNearest2D", "UpsampleBilinear2D", "MkldnnConvolution",
)  # fmt: skip

FOLLOW: dict[str, Follow] = {
    **dict.fromkeys(_POINTWISE, _alike),
    **dict.fromkeys(_LEADING, _leading),
    **dict.fromkeys(("View", "UnsafeView", "ReshapeAlias", "Squeeze"), _reshaped),
    **dict.fromkeys(("Permute", "Transpose", "T"), _permuted),
    **dict.fromkeys(("Sum", "Mean", "Amax", "Logsumexp", "Var"), _reduced),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Cat", "Slice", "Split", "SplitWithSizes"), _along),
    **dict.fromkeys(("Addmm", "Mm", "Bmm"), _multiplied),
    "NativeBatchNorm": _by_running_statistics,
    "Select": _selected,
    "Unsqueeze": _inserted,
    "Expand": _alike,
    "NativeLayerNorm": _normalized,
    "ConstantPadNd": _padded,
    "Embedding": _looked_up,
    "ScaledDotProductFlashAttentionForCpu": _attended,
    "ScaledDotProductEfficientAttention": _attended,
    "ScaledDotProductFlashAttention": _attended,
}
