"""Seeded random projections of per-sample gradients whose inner products estimate the kernel without bias.

The projection is a count sketch: parameter entry (i, j), read as a matrix of shape[0] rows, adds to one of `dim`
buckets with a sign, bucket(i, j) = (row_bucket[i] + column_bucket[j]) mod dim, sign(i, j) = row_sign[i] column_sign[j].
An outer product a g^T is then the circular convolution of the sketches of a and of g, so that a gradient that is a
sum of outer products is sketched without ever being built (TensorSketch). Buckets and signs depend on the seed, the
parameter's name and the output's number alone: never on batch, order or device.

Reference: Pham and Pagh (2013), "Fast and scalable polynomial kernels via explicit feature maps".
"""

from __future__ import annotations

import hashlib
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

    def hashes(self, size: int, side: str, output: int) -> tuple[Tensor, Tensor]:
        """Buckets and signs of the rows or columns, for one output. [size] each."""
        key = f"{self.seed}/{self.parameter}/{side}/{output}".encode()
        number = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
        generator = torch.Generator().manual_seed(number)
        buckets = torch.randint(0, self.dim, (size,), generator=generator)
        signs = torch.randint(0, 2, (size,), generator=generator) * 2 - 1
        return buckets, signs

    def of_built(self, values: Tensor) -> Tensor:
        """Sketch of built gradients. [n c *shape] -> [n c dim]."""
        n, c = values.shape[:2]
        matrices = values.reshape(n, c, values.shape[2] if values.dim() > 2 else 1, -1)
        sketches = []
        for output in range(c):
            (row_buckets, row_signs), (buckets, signs) = (
                tuple(part.to(values.device) for part in self.hashes(size, side, output))
                for size, side in zip(matrices.shape[2:], ("rows", "columns"), strict=True)
            )
            places = (row_buckets[:, None] + buckets) % self.dim
            signed = matrices[:, output] * (row_signs[:, None] * signs)
            empty = values.new_zeros(n, self.dim)
            sketches.append(empty.index_add(1, places.flatten(), signed.flatten(1)))
        return torch.stack(sketches, dim=1)

    def of_factored(self, inputs: Tensor, gradients: Tensor, gradient_first: bool) -> Tensor:
        """Sketch of sum_t input_t x output_gradient_t. [n t g i], [n c t g o] -> [n c dim]."""
        g, i, o = inputs.shape[2], inputs.shape[3], gradients.shape[4]
        sketches = []
        for output in range(gradients.shape[1]):
            rows = self.hashes(g * (o if gradient_first else i), "rows", output)
            columns = self.hashes(i if gradient_first else o, "columns", output)
            total: Tensor | float = 0.0
            for group in range(g):
                size = o if gradient_first else i
                part = slice(group * size, (group + 1) * size)
                own_rows = (rows[0][part], rows[1][part])
                of_input = self._spectrum(inputs[:, :, group], columns if gradient_first else own_rows)
                of_output = self._spectrum(gradients[:, output, :, group], own_rows if gradient_first else columns)
                total = total + (of_input * of_output).sum(dim=1)
            assert isinstance(total, Tensor)
            sketches.append(torch.fft.irfft(total, n=self.dim))
        return torch.stack(sketches, dim=1)

    def of_looked_up(self, tokens: Tensor, gradients: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Sketch of gradients over an embedding table. [n t], [n c t i] -> [n c dim]."""
        n = tokens.shape[0]
        sketches = []
        for output in range(gradients.shape[1]):
            buckets, signs = (part.to(tokens.device) for part in self.hashes(shape[0], "rows", output))
            columns, column_signs = (part.to(tokens.device) for part in self.hashes(shape[1], "columns", output))
            known = tokens.clamp(min=0)
            places = (buckets[known][:, :, None] + columns) % self.dim
            signed = gradients[:, output] * (signs[known] * (tokens >= 0))[:, :, None] * column_signs
            empty = gradients.new_zeros(n, self.dim)
            sketches.append(empty.scatter_add(1, places.flatten(1), signed.flatten(1)))
        return torch.stack(sketches, dim=1)

    def _spectrum(self, vectors: Tensor, hashes: tuple[Tensor, Tensor]) -> Tensor:
        buckets, signs = (part.to(vectors.device) for part in hashes)
        empty = vectors.new_zeros(*vectors.shape[:-1], self.dim)
        spectrum: Tensor = torch.fft.rfft(empty.index_add(-1, buckets, vectors * signs))
        return spectrum
