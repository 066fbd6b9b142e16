"""Convolutions of any dimension, strided, dilated, grouped, transposed.

A convolution is a linear map applied to patches: unfolded, its gradient is that of `linear` with positions t the
output's pixels. In a transposed convolution the two sides change places: each input pixel meets a patch of the output.
Padding modes other than zeros are separate nodes of the graph and need nothing here.
"""

from __future__ import annotations

from kinsight.captures.capture import LayerCapture
from kinsight.gradients import Convolved, Factored, Geometry, Gradients, unfold
from kinsight.rules.norm import by_channel


def convolution(capture: LayerCapture) -> Gradients | None:
    """`nn.Conv1d/2d/3d` and their transposes."""
    if capture.layout.axis != 0:
        return None
    if capture.use.operand == 2:
        return by_channel(capture)
    if capture.use.operand != 1:
        return None
    transposed = capture.saved("transposed")
    inputs, gradients = capture.saved("input"), capture.output_gradients
    n, c, k = gradients.shape[:3]
    stride, padding, dilation = (tuple(capture.saved(name)) for name in ("stride", "padding", "dilation"))
    geometry = Geometry(stride, padding, dilation, capture.saved("groups"))
    groups = geometry.groups
    if transposed:
        patches = unfold(gradients.flatten(0, 2), capture.weight_shape[2:], inputs.shape[2:], geometry)
        patches = patches.reshape(n, c, -1, *patches.shape[2:])
        pixels = capture.layout.split(inputs).reshape(n, k, groups, inputs.shape[1] // groups, -1)
        pixels = pixels.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return Factored(pixels, patches, capture.weight_shape, gradient_first=False)
    by_group = gradients.reshape(n, c, k, groups, gradients.shape[3] // groups, *gradients.shape[4:])
    return Convolved(capture.layout.split(inputs), by_group, capture.weight_shape, geometry)
