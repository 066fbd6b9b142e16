"""Normalization layers: weight and bias gradients are sums over positions of g xhat and g.

Instance normalization needs no rule of its own: it tiles its weights to the batch (`elementwise.repeat`) and calls
batch normalization on them. RMS normalization multiplies by its weight (`elementwise.mul`).
"""

from __future__ import annotations

import math

from torch import Tensor

from kinsight.capture import LayerCapture
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
        capture.layout.split(capture.saved(name).reshape(n_images, n_groups, 1)) for name in ("result1", "result2")
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
    inputs, mean, rstd = (capture.saved_samples(name) for name in ("input", "result1", "result2"))
    return _over_leading(capture, lambda rows: (inputs[rows] - mean[rows]) * rstd[rows])


def rms_norm(capture: LayerCapture) -> Gradients | None:
    """RMS normalization where a backend keeps it whole."""
    if capture.use.operand == 0 or not _is_leading(capture):
        return None
    inputs, rstd = capture.saved_samples("input"), capture.saved_samples("result1")
    return _over_leading(capture, lambda rows: inputs[rows] * rstd[rows])


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
