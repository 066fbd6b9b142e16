"""Which of two exact ways is cheaper: the one place where flops and bytes are weighed.

A layer with i inputs and o outputs in each of g groups, used at t positions of a sample, has c per-sample gradients of
g i o numbers. They can be multiplied out (built), or kept as factors: n (t g i + c t g o) numbers.

Costs are in multiply-adds. Moving a number through memory is counted as `MOVE` of them: on 2 cores with 250 GFLOP/s
of matrix products and some 20 GB/s of memory, a float32 read and written costs as much as about 25 multiply-adds.
"""

from __future__ import annotations

import math

MOVE = 25
"""Multiply-adds in the time it takes to read and write one number."""

BUILD = 2
"""Multiply-adds of building gradients, one small product a sample, next to those of one large matrix product."""


def is_gram_built(*, n: int, m: int, t: int, s: int, g: int, i: int, o: int, c: int, d: int = 0) -> bool:
    """Whether a Gram block [n m] costs less from built gradients than from their factors; see `gram_costs`."""
    if t == s == 1:
        return False
    built, factored = gram_costs(n=n, m=m, t=t, s=s, g=g, i=i, o=o, c=c, d=d)
    return built < factored


def gram_costs(*, n: int, m: int, t: int, s: int, g: int, i: int, o: int, c: int, d: int = 0) -> tuple[float, float]:
    """Cost of a Gram block [n m] from built gradients, and from their factors.

    Built: c t g i o to build each sample's gradients, then c g i o for each pair of samples. Factored: for each pair of
    samples, t s pairs of positions, of which each costs i for the inputs, c o for the output gradients, and one number
    moved to combine them.

    Args:
        n, m: samples on either side; m is 0 where both sides are the same.
        t, s: positions on either side.
        g, i, o: groups, input and output features of each.
        c: outputs.
        d: outputs of the other side where all c d pairs are wanted, else 0.
    """
    pairs = n * (m or n)
    n_outputs = c * max(d, 1)
    built = (n * t + m * s) * c * g * i * o * BUILD + pairs * n_outputs * g * i * o
    factored = pairs * t * s * g * (i + n_outputs * o + MOVE * max(d and n_outputs, 1))
    return float(built), float(factored)


def is_norm_built(*, t: int, g: int, i: int, o: int, c: int) -> bool:
    """Whether K(x, x) of one sample costs less from built gradients: the same weighing within one sample."""
    built, factored = _norm_costs(t=t, g=g, i=i, o=o, c=c)
    return t > 1 and built < factored


def _norm_costs(*, t: int, g: int, i: int, o: int, c: int) -> tuple[float, float]:
    """Cost of K(x, x) of one sample from built gradients, and from their factors."""
    built = g * c * i * o * (BUILD * t + MOVE + c)
    factored = g * t * t * (i + c * o + MOVE) + g * c * c * t * o
    return float(built), float(DOUBLE * factored)


def is_sketch_built(*, t: int, g: int, i: int, o: int, c: int, dim: int, has_squares: bool) -> bool:
    """Whether the sketch of one sample costs less from built gradients than from its factors' spectra.

    Built: c t g i o to build the gradients, and each of their numbers written and read. From spectra: at each position
    and in each group, two Fourier transforms of `dim` numbers, which are multiplied.

    Args:
        t: positions.
        g, i, o: groups, input and output features of each.
        c: outputs.
        dim: of the sketch.
        has_squares: whether norms are wanted, too: built gradients give them at little more.
    """
    built = c * g * i * o * (BUILD * t + 2 * MOVE)
    spectra = t * g * (dim * (2 * TRANSFORM * math.log2(dim) + 3 * MOVE) + (i + c * o) * MOVE)
    return built < spectra + (min(_norm_costs(t=t, g=g, i=i, o=o, c=c)) if has_squares else 0)


TRANSFORM = 8
"""Multiply-adds of a Fourier transform of real numbers, next to dim log2 dim."""


def is_rolled(*, n: int, run: float) -> bool:
    """Whether numbers whose buckets are consecutive are added run by run, rather than one by one, on a CPU.

    Args:
        n: samples.
        run: mean length of a run.
    """
    return run >= ROLLED


ROLLED = 64
"""Length of a run from which it costs less than its numbers one by one."""

DOUBLE = 4
"""Time of many small products in float64 next to that in float32. Norms from factors need float64: they are sums of
t^2 terms, of which most cancel."""

PASSING_BYTES = 24 * 2**20
"""Largest size of built gradients that only pass through a contraction. Larger tensors come fresh from the operating
system every time: writing 300 MB of them once cost 0.2 s, as much as computing them."""
