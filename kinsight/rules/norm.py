"""Normalization layers: weight and bias gradients are sums over positions of g xhat and g.

Instance normalization needs no rule of its own: it tiles its weights to the batch (`elementwise.repeat`) and calls
batch normalization on them. RMS normalization multiplies by its weight (`elementwise.mul`).
"""

from __future__ import annotations

import math

from torch import Tensor

from kinsight.capture import LayerCapture
from kinsight.gradients import Gradients
from kinsight.rules.elementwise import _sum


def batch_norm(capture: LayerCapture) -> Gradients | None:
    """Batch normalization by its running statistics. Channels on axis 1."""
    if capture.use.operand == 0 or capture.saved("training") or capture.layout.axis != 0:
        return None
    shape = [1, -1] + [1] * (len(capture.output_shape) - 2)
    mean = capture.saved("running_mean").reshape(shape)
    variance = capture.saved("running_var").reshape(shape)
    if capture.use.operand == 1:
        inputs = capture.saved("input")
        normalized = (inputs - mean) * (variance + capture.saved("eps")).rsqrt()
        return _by_channel(capture, normalized)
    return _by_channel(capture, None)


def group_norm(capture: LayerCapture) -> Gradients | None:
    """Group normalization: statistics a sample and group. Channels on axis 1."""
    if capture.use.operand == 0 or capture.layout.axis != 0:
        return None
    if capture.use.operand == 2:
        return _by_channel(capture, None)
    inputs = capture.saved("input")
    grouped = inputs.reshape(inputs.shape[0], capture.saved("group"), -1)
    mean, rstd = (capture.saved(name).reshape(*grouped.shape[:2], 1) for name in ("result1", "result2"))
    return _by_channel(capture, ((grouped - mean) * rstd).reshape(inputs.shape))


def layer_norm(capture: LayerCapture) -> Gradients | None:
    """Layer normalization over the last axes."""
    if capture.use.operand == 0:
        return None
    if capture.use.operand == 2:
        return _over_leading(capture, None)
    normalized = (capture.saved("input") - capture.saved("result1")) * capture.saved("result2")
    return _over_leading(capture, normalized)


def rms_norm(capture: LayerCapture) -> Gradients | None:
    """RMS normalization where a backend keeps it whole."""
    if capture.use.operand == 0:
        return None
    return _over_leading(capture, capture.saved("input") * capture.saved("result1"))


def _by_channel(capture: LayerCapture, normalized: Tensor | None) -> Gradients:
    gradients = capture.output_gradients  # [n c k channels ...]
    if normalized is not None:
        gradients = gradients * capture.layout.split(normalized).unsqueeze(1)
    return _sum(capture, gradients, (2, *range(4, gradients.dim())))


def _over_leading(capture: LayerCapture, normalized: Tensor | None) -> Gradients | None:
    leading = len(capture.output_shape) - len(capture.weight_shape)
    if capture.layout.axis >= leading:
        return None
    gradients = capture.output_gradients
    if normalized is not None:
        gradients = gradients * capture.layout.split(normalized).unsqueeze(1)
    assert math.prod(gradients.shape[2 + leading :]) == math.prod(capture.weight_shape)
    return _sum(capture, gradients, tuple(range(2, 2 + leading)))
