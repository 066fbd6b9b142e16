"""Normalization layers: weight and bias gradients are sums over positions of g xhat and g.

Instance normalization needs no rule of its own: it tiles its weights to the batch (`elementwise.repeat`) and calls
batch normalization on them. RMS normalization multiplies by its weight (`elementwise.mul`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kinsight.captures.capture import LayerCapture
from kinsight.gradients import Gradients
from kinsight.rules.elementwise import Local, sum_over


def batch_norm(capture: LayerCapture) -> Gradients | None:
    """Batch normalization by its running statistics. Channels on axis 1."""
    if capture.use.operand == 0 or capture.saved("training") or capture.layout.axis != 0:
        return None
    if capture.use.operand == 2:
        return by_channel(capture)
    shape = [-1] + [1] * (len(capture.output_shape) - 2)
    mean = capture.saved("running_mean").reshape(shape)
    rstd = (capture.saved("running_var").reshape(shape) + capture.saved("eps")).rsqrt()
    inputs = capture.saved_samples("input")
    return by_channel(capture, lambda rows: (inputs[rows] - mean) * rstd)


def group_norm(capture: LayerCapture) -> Gradients | None:
    """Group normalization: statistics a sample and group. Channels on axis 1."""
    if capture.use.operand == 0 or capture.layout.axis != 0:
        return None
    if capture.use.operand == 2:
        return by_channel(capture)
    inputs = capture.saved_samples("input")  # [n k channels ...]
    n_images, n_groups = capture.output_shape[0], capture.saved("group")
    mean, rstd = (
        capture.layout.split(each.reshape(n_images, n_groups, 1))
        for each in _statistics(capture, lambda values: values.reshape(n_images, n_groups, -1), (2,))
    )

    def normalized(rows: slice) -> Tensor:
        part = inputs[rows]
        return ((part.reshape(*part.shape[:2], n_groups, -1) - mean[rows]) * rstd[rows]).reshape(part.shape)

    return by_channel(capture, normalized)


def layer_norm(capture: LayerCapture) -> Gradients | None:
    """Layer normalization over the last axes."""
    if capture.use.operand == 0:
        return None
    if capture.use.operand == 2 or not _is_leading(capture):
        return _over_leading(capture)
    leading = len(capture.output_shape) - len(capture.weight_shape)
    axes = tuple(range(leading, len(capture.output_shape)))
    inputs = capture.saved_samples("input")
    mean, rstd = (capture.layout.split(each) for each in _statistics(capture, lambda values: values, axes))
    return _over_leading(capture, lambda rows: (inputs[rows] - mean[rows]) * rstd[rows])


def rms_norm(capture: LayerCapture) -> Gradients | None:
    """RMS normalization where a backend keeps it whole."""
    if capture.use.operand == 0 or not _is_leading(capture):
        return None
    inputs, rstd = capture.saved_samples("input"), capture.saved("result1")
    if capture.is_differentiable:
        axes = tuple(range(len(capture.output_shape) - len(capture.weight_shape), len(capture.output_shape)))
        moment = capture.saved("input").square().mean(dim=axes, keepdim=True)
        rstd = _inverse_root(moment, rstd.reshape(moment.shape))
    rstd = capture.layout.split(rstd)
    return _over_leading(capture, lambda rows: inputs[rows] * rstd[rows])


def _statistics(
    capture: LayerCapture, arrange: Callable[[Tensor], Tensor], axes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation that a layer normalized by.

    Those that were saved; or, where gradients are to be differentiated again, anew from its inputs, as the saved ones
    have no graph: the derivative would be wrong in silence.

    Args:
        capture: of the layer.
        arrange: lays out its inputs so that statistics are taken over whole axes.
        axes: these.
    """
    if not capture.is_differentiable:
        return capture.saved("result1"), capture.saved("result2")
    values = arrange(capture.saved("input"))
    variance, mean = torch.var_mean(values, dim=axes, correction=0, keepdim=True)
    return mean, _inverse_root(variance, capture.saved("result2").reshape(variance.shape))


def _inverse_root(moment: Tensor, saved: Tensor) -> Tensor:
    """(moment + eps)^-1/2 with its graph, from what was saved of it without one: eps is not saved."""
    return (moment + (saved**-2 - moment).detach()).rsqrt()


def by_channel(capture: LayerCapture, normalized: Local | None = None) -> Gradients:
    """Sum of output gradients, times normalized inputs, for every channel (axis 1 of the layer's output)."""
    gradients = capture.output_gradients  # [n c k channels ...]
    return sum_over(capture, gradients, (2, *range(4, gradients.dim())), normalized)


def _is_leading(capture: LayerCapture) -> bool:
    """Whether the samples lie on an axis in front of those that are normalized."""
    return capture.layout.axis < len(capture.output_shape) - len(capture.weight_shape)


def _over_leading(capture: LayerCapture, normalized: Local | None = None) -> Gradients | None:
    if not _is_leading(capture):
        return None
    leading = len(capture.output_shape) - len(capture.weight_shape)
    gradients = capture.output_gradients
    assert math.prod(gradients.shape[2 + leading :]) == math.prod(capture.weight_shape)
    return sum_over(capture, gradients, tuple(range(2, 2 + leading)), normalized)
