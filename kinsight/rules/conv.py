"""Convolutions of any dimension, strided, dilated, grouped, transposed.

A convolution is a linear map applied to patches: unfolded, its gradient is that of `linear` with positions t the
output's pixels. In a transposed convolution the two sides change places: each input pixel meets a patch of the output.
Padding modes other than zeros are separate nodes of the graph and need nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kinsight.capture import LayerCapture
from kinsight.gradients import Factored, Gradients
from kinsight.rules.norm import _by_channel


def convolution(capture: LayerCapture) -> Gradients | None:
    """`nn.Conv1d/2d/3d` and their transposes."""
    if capture.layout.axis != 0:
        return None
    if capture.use.operand == 2:
        return _by_channel(capture, None)
    if capture.use.operand != 1:
        return None
    groups, transposed = capture.saved("groups"), capture.saved("transposed")
    inputs, gradients = capture.saved("input"), capture.output_gradients
    n, c, k = gradients.shape[:3]
    window = capture.weight_shape[2:]
    geometry = {name: tuple(capture.saved(name)) for name in ("stride", "padding", "dilation")}
    if transposed:
        patches = unfold(gradients.flatten(0, 2), window, inputs.shape[2:], groups=groups, **geometry)
        patches = patches.reshape(n, c, -1, *patches.shape[2:])
        pixels = capture.layout.split(inputs).reshape(n, k, groups, inputs.shape[1] // groups, -1)
        pixels = pixels.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return Factored(pixels, patches, capture.weight_shape, gradient_first=False)
    patches = unfold(inputs, window, gradients.shape[4:], groups=groups, **geometry)
    patches = capture.layout.split(patches).flatten(1, 2)
    pixels = gradients.reshape(n, c, k, groups, gradients.shape[3] // groups, -1)
    pixels = pixels.permute(0, 1, 2, 5, 3, 4).flatten(2, 3)
    return Factored(patches, pixels, capture.weight_shape, gradient_first=True)


def unfold(
    images: Tensor,
    window: Sequence[int],
    positions: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Patches of images, [n t groups features], features = channels of a group x window.

    Args:
        images: [n channels *size].
        window: the kernel's size.
        positions: how many patches along each axis (t is their product).
        stride, padding, dilation: as of the convolution.
        groups: number of groups of channels.
    """
    wide = F.pad(images, _padding(images.shape[2:], window, positions, stride, padding, dilation))
    n, channels = wide.shape[:2]
    steps = wide.stride()
    view = wide.as_strided(
        (n, *positions, channels, *window),
        (
            steps[0],
            *(step * s for step, s in zip(steps[2:], stride, strict=True)),
            steps[1],
            *(step * d for step, d in zip(steps[2:], dilation, strict=True)),
        ),
        wide.storage_offset(),
    )
    return view.reshape(n, math.prod(positions), groups, channels // groups * math.prod(window))


def _padding(
    size: Sequence[int],
    window: Sequence[int],
    positions: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """What F.pad adds: the convolution's padding in front, and behind whatever the last window still reaches."""
    amounts: list[int] = []
    for axis in reversed(range(len(size))):
        reach = (positions[axis] - 1) * stride[axis] + (window[axis] - 1) * dilation[axis] + 1
        amounts += [padding[axis], max(0, reach - size[axis] - padding[axis])]
    return amounts
