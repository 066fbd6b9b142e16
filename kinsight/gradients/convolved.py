"""Gradients over the weight of a convolution, kept as images and output gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kinsight.gradients.contractions import chunks, combined, mixed, part_of
from kinsight.gradients.factored import Factored, Product, Sizes
from kinsight.gradients.scratch import Scratch


@dataclass(frozen=True)
class Geometry:
    """How windows move over an image; one number an axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


PATCH_BYTES = 2**21
"""Patches that are held at once where gradients are multiplied out: more were measured to be no faster."""


@dataclass(frozen=True, eq=False)
class Convolved(Product):
    """Gradients over a convolution's weight [groups o, i, *window], its input not yet unfolded into patches.

    Patches overlap: unfolded, a 3x3 convolution's input is nine times as large. So patches are made for a few samples
    at a time, or never, where torch's own convolutions do what is asked.

    Args:
        images: inputs, [n k channels *size]: k images a sample.
        output_gradients: gradients of c outputs at the layer's output, [n c k groups o *positions].
        shape: the weight's own shape.
        geometry: stride, padding, dilation, groups.
    """

    images: Float[Tensor, "n k channels *size"]
    output_gradients: Float[Tensor, "n c k g o *positions"]
    shape: tuple[int, ...]
    geometry: Geometry
    gradient_first = True

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.output_gradients, self.images)

    @property
    def sizes(self) -> Sizes:
        _, c, k, g, o, *positions = self.output_gradients.shape
        return Sizes(k * math.prod(positions), g, math.prod(self.shape[1:]), o, c)

    def factored(self, scratch: Scratch | None = None) -> Factored:
        n, k = self.images.shape[:2]
        positions = self.output_gradients.shape[5:]
        patches = unfold(self.images.flatten(0, 1), self.shape[2:], positions, self.geometry, scratch)
        patches = patches.reshape(n, k * patches.shape[1], *patches.shape[2:])
        pixels = self.output_gradients.flatten(5).permute(0, 1, 2, 5, 3, 4).flatten(2, 3)
        return Factored(patches, pixels, self.shape, gradient_first=True)

    def build(self) -> Tensor:
        if self.is_differentiated:
            step = self.images.element_size() * self.sizes.t * self.sizes.g * self.sizes.i
            return torch.cat([self.rows(r.start, r.stop).factored().build() for r in chunks(self.n, step)])
        values = self.output_gradients.new_empty(self.n, self.sizes.c, *self.shape)
        self._build_into(values, Scratch())
        return values

    def multiplied(self, scratch: Scratch, place: str) -> Tensor:
        if self.is_differentiated:
            return self.build().flatten(2)
        values = scratch.take(place, (self.n, self.sizes.c, *self.shape), self.output_gradients)
        self._build_into(values, scratch)
        return values.flatten(2)

    def _build_into(self, values: Tensor, scratch: Scratch) -> None:
        """The gradients, [n c *shape], patches made for a few samples at a time."""
        s = self.sizes
        step = self.images.element_size() * s.t * s.g * s.i
        for rows in chunks(self.n, step, PATCH_BYTES):
            part = self.rows(rows.start, rows.stop).factored(scratch)
            if s.g == 1:
                matrices = values[rows].view(-1, s.c * s.o, s.i)
                gradients = part.output_gradients[:, :, :, 0].transpose(2, 3).reshape(-1, s.c * s.o, s.t)
                torch.bmm(gradients, part.inputs[:, :, 0], out=matrices)
            else:
                values[rows] = part.build()

    def _weight_gradient(self, rows: slice, gradients: Tensor) -> Tensor:
        """sum_n of the gradients of some samples, with other output gradients [n c ...] in place. [c *shape]."""
        images = self.images[rows].flatten(0, 1)
        n, c, k, g, o, *positions = gradients.shape
        stacked = gradients.permute(0, 2, 3, 1, 4, *range(5, gradients.dim())).reshape(n * k, g * c * o, *positions)
        weight = images.new_empty(1).expand(g * c * o, *self.shape[1:])
        geometry = self.geometry
        found: Tensor = torch.ops.aten.convolution_backward(
            stacked, images, weight, None, geometry.stride, geometry.padding, geometry.dilation, False,
            [0] * len(positions), g, (False, True, False),
        )[1]  # fmt: skip
        return found.reshape(g, c, o, *self.shape[1:]).transpose(0, 1).reshape(c, *self.shape)

    def cotangents(self, others: Tensor, *, of_inputs: bool) -> tuple[Tensor | None, Tensor]:
        """By convolutions in which every sample is a group of its own: nothing is unfolded."""
        n, c, k, g, o, *positions = self.output_gradients.shape
        behind = range(5, 5 + len(positions))
        kernels = others.reshape(n, c, g, o, *self.shape[1:]).transpose(1, 2).reshape(-1, *self.shape[1:])
        images = self.images.transpose(0, 1).flatten(1, 2)  # [k n channels *size]
        geometry = replace(self.geometry, groups=n * g)
        moved = _convolve(images, kernels, geometry).reshape(k, n, g, c, o, *positions)
        moved = moved.permute(1, 3, 0, 2, 4, *behind)
        if not of_inputs:
            return None, moved
        gradients = self.output_gradients.permute(2, 0, 3, 1, 4, *behind).reshape(k, -1, *positions)
        found = torch.ops.aten.convolution_backward(
            gradients, images, kernels, None, geometry.stride, geometry.padding, geometry.dilation, False,
            [0] * len(positions), n * g, (True, False, False),
        )[0]  # fmt: skip
        return found.reshape(k, n, *self.images.shape[2:]).transpose(0, 1), moved

    def mix(self, mixing: Tensor) -> Convolved:
        return replace(self, output_gradients=mixed(mixing, self.output_gradients))

    @property
    def n_parts(self) -> int:
        return self.geometry.groups if self.geometry.groups > 1 else self.images.shape[2]

    def narrow(self, start: int, stop: int) -> Convolved:
        if self.geometry.groups == 1:
            shape = (self.shape[0], stop - start, *self.shape[2:])
            return replace(self, images=self.images[:, :, start:stop], shape=shape)
        each = self.shape[1]
        gradients = self.output_gradients[:, :, :, start:stop]
        return Convolved(
            self.images[:, :, start * each : stop * each],
            gradients,
            ((stop - start) * gradients.shape[4], *self.shape[1:]),
            replace(self.geometry, groups=stop - start),
        )

    def weighted_sum(self, weights: Tensor) -> Tensor:
        if self.is_differentiated or weights.requires_grad:
            return self.factored().weighted_sum(weights)
        total = self.images.new_zeros(weights.shape[0], *self.shape)
        for rows in chunks(self.n, 4 * weights.shape[0] * self.output_gradients[:1, 0].numel()):
            total += self._weight_gradient(rows, combined(weights[:, rows], self.output_gradients[rows]))
        return total

    def dot(self, directions: Tensor) -> Tensor:
        _, _, k, g, o, *_ = self.output_gradients.shape
        n_directions = directions.shape[0]
        kernels = directions.reshape(n_directions, g, o, *self.shape[1:]).transpose(0, 1)
        kernels = kernels.reshape(g * n_directions * o, *self.shape[1:])
        rows = []
        for part in chunks(self.n, 4 * n_directions * self.output_gradients[:1, 0].numel()):
            gradients = self.output_gradients[part]
            moved = _convolve(self.images[part].flatten(0, 1), kernels, self.geometry)
            moved = moved.reshape(gradients.shape[0], k, g, n_directions, *gradients.shape[4:])
            moved = moved.permute(0, 3, 1, 2, *range(4, moved.dim()))
            rows.append(torch.bmm(gradients.flatten(2), moved.flatten(2).transpose(1, 2)))
        return torch.cat(rows)

    def bound(self) -> Tensor:
        s = self.sizes
        step = 4 * s.t * s.g * s.i
        return torch.cat([self.rows(r.start, r.stop).factored().bound() for r in chunks(self.n, step)])

    def rows(self, start: int, stop: int) -> Convolved:
        images, gradients = part_of(self.images, start, stop), part_of(self.output_gradients, start, stop)
        return replace(self, images=images, output_gradients=gradients)


def _convolve(images: Tensor, kernels: Tensor, geometry: Geometry) -> Tensor:
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(geometry.stride) - 1]
    return convolve(images, kernels, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)


def unfold(
    images: Tensor,
    window: Sequence[int],
    positions: Sequence[int],
    geometry: Geometry,
    scratch: Scratch | None = None,
) -> Tensor:
    """Patches of images, [n t groups features], features = channels of a group x window.

    They lie in memory with positions last: rows of pixels are then copied whole.

    Args:
        images: [n channels *size].
        window: the kernel's size.
        positions: how many patches along each axis (t is their product).
        geometry: how the window moves.
        scratch: where they may lie.
    """
    wide = F.pad(images, _padding(images.shape[2:], window, positions, geometry))
    n, channels = wide.shape[:2]
    groups = geometry.groups
    if wide.requires_grad and len(window) == 2:  # the derivative of a strided view takes three times as long
        reach = [
            (count - 1) * step + (size - 1) * apart + 1
            for count, step, size, apart in zip(positions, geometry.stride, window, geometry.dilation, strict=True)
        ]
        seen = wide[:, :, : reach[0], : reach[1]]
        columns = F.unfold(seen, tuple(window), dilation=tuple(geometry.dilation), stride=tuple(geometry.stride))
        return columns.reshape(n, groups, -1, math.prod(positions)).permute(0, 3, 1, 2)
    steps = wide.stride()
    view = wide.as_strided(
        (n, channels, *window, *positions),
        (
            steps[0],
            steps[1],
            *(step * d for step, d in zip(steps[2:], geometry.dilation, strict=True)),
            *(step * s for step, s in zip(steps[2:], geometry.stride, strict=True)),
        ),
        wide.storage_offset(),
    )
    if scratch is not None:
        view = scratch.take("patches", tuple(view.shape), images).copy_(view)
    patches = view.reshape(n, groups, channels // groups * math.prod(window), math.prod(positions))
    return patches.permute(0, 3, 1, 2)


def _padding(size: Sequence[int], window: Sequence[int], positions: Sequence[int], geometry: Geometry) -> list[int]:
    """What F.pad adds: the convolution's padding in front, and behind whatever the last window still reaches."""
    amounts: list[int] = []
    for axis in reversed(range(len(size))):
        step, front = geometry.stride[axis], geometry.padding[axis]
        reach = (positions[axis] - 1) * step + (window[axis] - 1) * geometry.dilation[axis] + 1
        amounts += [front, max(0, reach - size[axis] - front)]
    return amounts
