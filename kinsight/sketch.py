"""Seeded random projections of per-sample gradients whose inner products estimate the kernel without bias.

The projection is a count sketch: the parameter's entry (i, j, k), k all axes after the second, adds to one of `dim`
buckets with a sign: bucket(i, j, k) = (b_0[i] + b_1[j] + b_2[k]) mod dim, sign(i, j, k) = s_0[i] s_1[j] s_2[k].
An outer product a g^T is then the circular convolution of the sketches of a and of g, so that a gradient that is a
sum of outer products is sketched without ever being built (TensorSketch). Buckets and signs depend on the seed, the
parameter's name and the output's number alone: never on batch, order or device.

Reference: Pham and Pagh (2013), "Fast and scalable polynomial kernels via explicit feature maps".
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """The projection of one parameter's gradients to `dim` numbers.

    Args:
        seed: of all buckets and signs.
        parameter: the parameter's name.
        dim: number of buckets; the variance of an inner product falls as 1/dim.
    """

    seed: int
    parameter: str
    dim: int

    def hashes(self, shape: tuple[int, ...], output: int, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """Buckets and signs of all entries over some axes, in row-major order.

        Args:
            shape: sizes of these axes.
            output: number of the output.
            first: which axis of the parameter the first of them is.
        """
        sizes = (*shape[: 2 - first], math.prod(shape[2 - first :])) if len(shape) > 2 - first else shape
        buckets, signs = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
        for axis, size in enumerate(sizes, start=first):
            key = f"{self.seed}/{self.parameter}/{axis}/{output}".encode()
            number = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
            generator = torch.Generator().manual_seed(number)
            own = torch.randint(0, self.dim, (size,), generator=generator)
            buckets = ((buckets[:, None] + own) % self.dim).flatten()
            signs = (signs[:, None] * (torch.randint(0, 2, (size,), generator=generator) * 2 - 1)).flatten()
        return buckets, signs

    def of_built(self, values: Tensor) -> Tensor:
        """Sketch of built gradients. [n c *shape] -> [n c dim]."""
        n, c = values.shape[:2]
        sketches = []
        for output in range(c):
            buckets, signs = (part.to(values.device) for part in self.hashes(tuple(values.shape[2:]), output))
            empty = values.new_zeros(n, self.dim)
            sketches.append(empty.index_add(1, buckets, values[:, output].reshape(n, -1) * signs))
        return torch.stack(sketches, dim=1)

    def of_factored(
        self, inputs: Tensor, gradients: Tensor, shape: tuple[int, ...], *, gradient_first: bool
    ) -> Tensor | None:
        """Sketch of sum_t input_t x output_gradient_t; None where the factors do not meet between two axes.

        Args:
            inputs: [n t g i].
            gradients: [n c t g o].
            shape: of the parameter, [g i o] or [g o i] read row by row.
            gradient_first: whether the output gradient's features come first.

        Returns:
            [n c dim].
        """
        g, i, o = inputs.shape[2], inputs.shape[3], gradients.shape[4]
        size = o if gradient_first else i
        n_axes = next((n for n in (1, 2) if math.prod(shape[:n]) == g * size), None)
        if n_axes is None:
            return None
        sketches = []
        for output in range(gradients.shape[1]):
            rows = self.hashes(shape[:n_axes], output)
            columns = self.hashes(shape[n_axes:], output, first=n_axes)
            total = torch.zeros((), device=inputs.device)
            for group in range(g):
                own = tuple(part[group * size : (group + 1) * size] for part in rows)
                of_input = self._spectrum(inputs[:, :, group], columns if gradient_first else own)
                of_output = self._spectrum(gradients[:, output, :, group], own if gradient_first else columns)
                total = total + (of_input * of_output).sum(dim=1)
            sketches.append(torch.fft.irfft(total, n=self.dim))
        return torch.stack(sketches, dim=1)

    def of_looked_up(self, tokens: Tensor, gradients: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Sketch of gradients over an embedding table. [n t], [n c t i] -> [n c dim]."""
        n = tokens.shape[0]
        sketches = []
        for output in range(gradients.shape[1]):
            buckets, signs = (part.to(tokens.device) for part in self.hashes(shape[:1], output))
            columns, column_signs = (part.to(tokens.device) for part in self.hashes(shape[1:], output, first=1))
            known = tokens.clamp(min=0)
            places = (buckets[known][:, :, None] + columns) % self.dim
            signed = gradients[:, output] * (signs[known] * (tokens >= 0))[:, :, None] * column_signs
            empty = gradients.new_zeros(n, self.dim)
            sketches.append(empty.scatter_add(1, places.flatten(1), signed.flatten(1)))
        return torch.stack(sketches, dim=1)

    def _spectrum(self, vectors: Tensor, hashes: tuple[Tensor, ...]) -> Tensor:
        buckets, signs = (part.to(vectors.device) for part in hashes)
        empty = vectors.new_zeros(*vectors.shape[:-1], self.dim)
        spectrum: Tensor = torch.fft.rfft(empty.index_add(-1, buckets, vectors * signs))
        return spectrum
