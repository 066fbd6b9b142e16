"""Seeded random projections of per-sample gradients whose inner products estimate the kernel without bias.

The projection is a count sketch: every entry of a parameter is multiplied by a sign and added to one of `dim` buckets.
The entry (r, j) of output c's gradient over a parameter read as a matrix, r its first axis, goes to the bucket

    (row bucket[c, r] + column bucket[j]) mod dim,   with the sign   s[c, r] s[j].

Rows, of all outputs, get different buckets, at random; columns of one row get different, mostly consecutive ones, as
far as there are `dim` of them. Two entries then share a bucket with probability 1 / dim, and never in one row or one
column, which is what makes a product of signs as good as a sign of its own an entry: the inner product of two sketches
has the variance (1 + cos^2) / dim of a dense projection, relative to the norms. Outputs add up in one sketch.

An outer product a g^T is the circular convolution of the sketches of a and of g (TensorSketch): a gradient that is a
sum of outer products is sketched without being built, where that is cheaper. Buckets and signs depend on the seed, the
parameter's name and shape and the output's number alone, never on batch, order or device; they are made of a counter-
based generator whose stream is fixed, so that a sketch can be compared with those of years ago.

Reference: Charikar, Chen and Farach-Colton (2002), "Finding frequent items in data streams"; Pham and Pagh (2013),
"Fast and scalable polynomial kernels via explicit feature maps".
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinsight.gradients.contractions import chunks
from kinsight.gradients.costs import is_rolled


@dataclass(frozen=True, eq=False)
class Hashes:
    """Buckets and signs of the entries along some axes of a parameter, in row-major order.

    Args:
        buckets: [k], from 0 to dim - 1.
        signs: [k], 1 or -1.
        dim: number of buckets.
    """

    buckets: Tensor
    signs: Tensor
    dim: int

    def __len__(self) -> int:
        return len(self.buckets)

    def cross(self, other: Hashes) -> Hashes:
        """Those of all pairs of entries, one of each. [k l] flat."""
        buckets = (self.buckets[:, None] + other.buckets) % self.dim
        return Hashes(buckets.flatten(), (self.signs[:, None] * other.signs).flatten(), self.dim)

    def part(self, start: int, stop: int) -> Hashes:
        """Those of entries start:stop."""
        return Hashes(self.buckets[start:stop], self.signs[start:stop], self.dim)

    def of_group(self, group: int, c: int, g: int) -> Hashes:
        """Of c outputs' entries in g groups each, those of one group. [c g k] -> [c k], flat."""
        buckets, signs = (each.view(c, g, -1)[:, group].flatten() for each in (self.buckets, self.signs))
        return Hashes(buckets, signs, self.dim)

    def add_up(self, values: Tensor) -> Tensor:
        """The sketch of vectors: entries with their signs, added up by bucket. [... k] -> [... dim]."""
        buckets = self.buckets.to(values.device).expand(values.shape)
        total = values.new_zeros(*values.shape[:-1], self.dim)
        return total.scatter_add(-1, buckets, values * self.signs.to(values))

    def runs(self) -> Iterator[tuple[int, int]]:
        """Entries start:stop whose buckets are consecutive (after the last comes the first)."""
        is_next = (self.buckets[1:] - self.buckets[:-1]) % self.dim == 1
        ends = [*((~is_next).nonzero().flatten() + 1).tolist(), len(self)]
        start = 0
        for end in ends:
            for first in range(start, end, self.dim):
                yield first, min(end, first + self.dim)
            start = end


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

    def rows(self, shape: tuple[int, ...], c: int, n_axes: int = 1) -> Hashes:
        """Buckets and signs of c outputs' entries along the first axis, or the first two. [c * rows], by output."""
        size = shape[0] if shape else 1
        found = Hashes(*_spread(f"{self.seed}/{self.parameter}/0", c * size, self.dim), self.dim)
        return found if n_axes == 1 else found.cross(self._along(shape, 1))

    def columns(self, shape: tuple[int, ...], n_axes: int = 1) -> Hashes:
        """Buckets and signs along the axes after the first, or after the first two. [columns]."""
        last = self._along(shape, 2)
        return self._along(shape, 1).cross(last) if n_axes == 1 else last

    def _along(self, shape: tuple[int, ...], axis: int) -> Hashes:
        """Those of the second axis (1), or of all after it as one (2)."""
        sizes = (*shape[1:2], 1)[0], math.prod(shape[2:])
        return _consecutive(self.seed, self.parameter, self.dim, axis, sizes)

    def of_built(self, values: Tensor) -> Tensor:
        """Sketch of built gradients. [n c *shape] -> [n dim]."""
        n, c, *shape = values.shape
        rows, columns = self.rows(tuple(shape), c), self.columns(tuple(shape))
        matrices = values.reshape(n, len(rows), len(columns))
        runs = list(columns.runs())
        if is_rolled(n=n, run=len(columns) / len(runs)) and not values.is_cuda and not values.requires_grad:
            return _rolled(matrices, rows, columns, runs)
        return rows.cross(columns).add_up(matrices.flatten(1))

    def of_factored(self, inputs: Tensor, gradients: Tensor, shape: tuple[int, ...], *, gradient_first: bool) -> Tensor:
        """Sketch of sum_t input_t x output_gradient_t, of factors that meet between two axes (`axes_of`).

        Args:
            inputs: [n t g i].
            gradients: [n c t g o].
            shape: of the parameter, [g i o] or [g o i] read row by row.
            gradient_first: whether the output gradient's features come first.

        Returns:
            [n dim].
        """
        (n, t, g, i), (c, o) = inputs.shape, (gradients.shape[1], gradients.shape[4])
        size = o if gradient_first else i
        n_axes = axes_of(shape, g * size)
        assert n_axes is not None
        rows, columns = self.rows(shape, c, n_axes), self.columns(shape, n_axes)
        parts = []
        for part in chunks(n, 24 * t * self.dim):
            total = torch.zeros((), device=inputs.device)
            for group in range(g):
                own, a, grads = rows.of_group(group, c, g), inputs[part, :, group], gradients[part, :, :, group]
                if gradient_first:
                    together = grads.transpose(1, 2).flatten(2)  # [n t (c o)]
                    total = total + _convolved(columns, a, own, together)
                    continue
                for output in range(c):
                    of_input = own.part(output * size, (output + 1) * size)
                    total = total + _convolved(of_input, a, columns, grads[:, output])
            parts.append(torch.fft.irfft(total, n=self.dim))
        return torch.cat(parts)

    def of_looked_up(self, tokens: Tensor, gradients: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Sketch of gradients over an embedding table; tokens of -1 add nothing. [n t], [n c t i] -> [n dim]."""
        n, c = gradients.shape[:2]
        rows, columns = self.rows(shape, c), self.columns(shape)
        row_buckets, row_signs = rows.buckets.to(tokens.device).view(c, -1), rows.signs.to(gradients).view(c, -1)
        column_buckets, column_signs = columns.buckets.to(tokens.device), columns.signs.to(gradients)
        parts = []
        for part in chunks(n, 24 * tokens.shape[1] * c * len(columns)):
            known = tokens[part].clamp(min=0)
            signs = (row_signs[:, known] * (tokens[part] >= 0)).transpose(0, 1)  # [n c t]
            values = gradients[part] * signs[..., None] * column_signs
            places = (row_buckets[:, known].transpose(0, 1)[..., None] + column_buckets) % self.dim
            total = gradients.new_zeros(len(known), self.dim)
            parts.append(total.scatter_add(1, places.flatten(1), values.flatten(1)))
        return torch.cat(parts)


def axes_of(shape: tuple[int, ...], size: int) -> int | None:
    """How many axes of a parameter have that many entries together: one or two of them; None where neither has."""
    return next((n_axes for n_axes in (1, 2) if math.prod(shape[:n_axes]) == size), None)


def _rolled(matrices: Tensor, rows: Hashes, columns: Hashes, runs: list[tuple[int, int]]) -> Tensor:
    """The sketch of matrices [n r k], run by run of consecutive buckets: memory is read once, in order. [n dim]."""
    dim, signs = rows.dim, columns.signs.to(matrices)
    starts = [(start, stop, int(columns.buckets[start]), signs[start:stop]) for start, stop in runs]
    wide = matrices.new_zeros(len(matrices), 2 * dim)  # what goes beyond the last bucket lies behind it
    for row, (bucket, sign) in enumerate(zip(rows.buckets.tolist(), rows.signs.tolist(), strict=True)):
        for start, stop, first, own in starts:
            place = (bucket + first) % dim
            wide[:, place : place + stop - start].addcmul_(matrices[:, row, start:stop], own, value=sign)
    return wide[:, :dim] + wide[:, dim:]


def _convolved(of_input: Hashes, inputs: Tensor, of_output: Hashes, gradients: Tensor) -> Tensor:
    """Spectrum of the sum of outer products. [n t i], [n t o] -> [n dim/2 + 1]."""
    spectrum: Tensor = torch.fft.rfft(of_input.add_up(inputs)) * torch.fft.rfft(of_output.add_up(gradients))
    return spectrum.sum(dim=1)


@functools.lru_cache(maxsize=4096)
def _consecutive(seed: int, parameter: str, dim: int, axis: int, sizes: tuple[int, int]) -> Hashes:
    """Buckets and signs along axis 1 or 2 of a parameter [a b k]. Columns (b, k) of a row lie one after another."""
    size, inner = sizes[axis - 1], sizes[1]
    key = f"{seed}/{parameter}/{axis}"
    if axis == 1 and inner > dim:
        return Hashes(*_spread(key, size, dim), dim)
    step = inner if axis == 1 else 1
    per_block = max(1, dim // step)  # columns that fit into all buckets: then the next block of them starts anew
    number = torch.arange(size)
    first, _ = _spread(f"{key}/blocks", -(-size // per_block), dim)
    buckets = (first[number // per_block] + number % per_block * step) % dim
    return Hashes(buckets, _signs(key, size), dim)


@functools.lru_cache(maxsize=4096)
def _spread(key: str, size: int, dim: int) -> tuple[Tensor, Tensor]:
    """Random buckets, each taken once before any is taken again, and signs. [size] each."""
    blocks = [np.argsort(_random(f"{key}/buckets/{block}", dim), kind="stable") for block in range(-(-size // dim))]
    buckets = np.concatenate([np.empty(0, dtype=np.int64), *blocks])[:size]
    return torch.from_numpy(buckets.astype(np.int64)), _signs(key, size)


def _signs(key: str, size: int) -> Tensor:
    return torch.from_numpy((_random(f"{key}/signs", size) >> np.uint64(63)).astype(np.int64) * 2 - 1)


def _random(key: str, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Numbers of 64 bits that are the same in all versions: a generator's raw stream is."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")
    return np.random.Philox(key=number).random_raw(size)
