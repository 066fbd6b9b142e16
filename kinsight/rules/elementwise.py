"""Weights that are broadcast against data: added, multiplied, expanded, repeated.

The gradient at each element of the output, times the local derivative, is summed over whatever the weight was
broadcast along, except along the samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kinsight.captures.capture import LayerCapture
from kinsight.gradients import Built, Gradients
from kinsight.gradients.contractions import chunks, norm_over, part_of

Local = Callable[[slice], Tensor]
"""Local derivatives of some samples, [n k ...]: worked out for a few at a time, they never leave the caches."""


def add(capture: LayerCapture) -> Gradients | None:
    """x + alpha w, either way round."""
    scale = capture.saved("alpha") if capture.use.operand == 1 else 1
    return sum_to_weight(capture, scaled(capture.output_gradients, scale))


def sub(capture: LayerCapture) -> Gradients | None:
    """w - alpha x, or x - alpha w."""
    scale = -capture.saved("alpha") if capture.use.operand == 1 else 1
    return sum_to_weight(capture, capture.output_gradients * scale)


def mul(capture: LayerCapture) -> Gradients | None:
    """x w, either way round."""
    other = capture.saved("other" if capture.use.operand == 0 else "self")
    return _scaled(capture, other)


def div(capture: LayerCapture) -> Gradients | None:
    """w / x; x / w."""
    other = capture.saved("other")
    if capture.use.operand == 0:
        return _scaled(capture, 1 / other)
    return _scaled(capture, -capture.saved("self") / other**2)


def prelu(capture: LayerCapture) -> Gradients | None:
    """x where positive, w x elsewhere."""
    return _scaled(capture, capture.saved("self").clamp(max=0)) if capture.use.operand == 1 else None


def expand(capture: LayerCapture) -> Gradients | None:
    """A weight made as large as the batch: class tokens, initial states, matrices multiplied one sample at a time."""
    return sum_to_weight(capture, capture.output_gradients)


def repeat(capture: LayerCapture) -> Gradients | None:
    """A weight tiled to the size of the batch: class tokens, the affine part of instance normalization."""
    gradients, axis = capture.output_gradients, capture.layout.axis
    tiles = gradients.shape[2:]
    shape = (1,) * (len(tiles) - len(capture.weight_shape)) + capture.weight_shape
    if capture.layout.before != 1 and tiles[axis] != 1:
        return None
    if any(tile % size for tile, size in zip(tiles, shape, strict=True)):
        return None
    split = [part for tile, size in zip(tiles, shape, strict=True) for part in (tile // size, size)]
    tiled = gradients.reshape(*gradients.shape[:2], *split)
    return sum_over(capture, tiled, tuple(range(2, tiled.dim(), 2)))


def _scaled(capture: LayerCapture, derivative: Tensor | float) -> Gradients | None:
    """Local derivative times output gradient; the derivative broadcasts against the node's output."""
    if not isinstance(derivative, Tensor):
        return sum_to_weight(capture, capture.output_gradients * derivative)
    local = capture.layout.split(derivative.expand(capture.output_shape))
    return sum_to_weight(capture, capture.output_gradients, lambda rows: local[rows])


def scaled(gradients: Tensor, factor: float) -> Tensor:
    """The gradients times a number; the same tensor where that is 1, so that products with it are recognized."""
    return gradients if factor == 1 else gradients * factor


def sum_to_weight(capture: LayerCapture, gradients: Tensor, local: Local | None = None) -> Gradients | None:
    """Sum [n c ...], times local derivatives, over all axes the weight was broadcast along.

    Returns None where the weight itself has one entry a sample: then it is data, not a weight.
    """
    missing = gradients.dim() - 2 - len(capture.weight_shape)
    shape = (1,) * missing + capture.weight_shape
    if shape and shape[capture.layout.axis] != 1:
        return None
    axes = tuple(2 + axis for axis, size in enumerate(shape) if size == 1)
    return sum_over(capture, gradients, axes, local)


def sum_over(capture: LayerCapture, gradients: Tensor, axes: tuple[int, ...], local: Local | None = None) -> Built:
    """Sum [n c ...], times local derivatives, over axes: gradients over the weight."""
    n, c = gradients.shape[:2]
    is_alone = all(gradients.shape[axis] == 1 for axis in axes)
    parts, bounds = [], []
    whole = local is None or capture.is_differentiable
    for rows in [slice(0, n)] if whole else chunks(n, 4 * gradients[:1].numel(), SUM_BYTES):
        part = part_of(gradients, rows.start, rows.stop)
        part = part if local is None else part * local(rows).unsqueeze(1)
        parts.append(part if is_alone else part.sum(dim=axes))
        if capture.keeps_bounds:
            absolute = part.abs().sum(dim=axes) if axes else part.abs()
            bounds.append(norm_over(absolute.reshape(len(part), -1), 1))
    values = parts[0] if len(parts) == 1 else torch.cat(parts)
    return Built(values.reshape(n, c, *capture.weight_shape), torch.cat(bounds) if bounds else None)


SUM_BYTES = 2**20
"""Size of products that are summed at once: 13 times as fast as 33 MB of them on 2 cores with 1 MB of cache each."""
