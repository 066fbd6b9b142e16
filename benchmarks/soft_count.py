"""Soft counts of n samples: `python -m benchmarks.soft_count [network ...] [--outputs 10]`.

One output, or ten of them, whitened. Compared with one epoch of training: a forward pass and a backward pass an
output through all samples, in batches of the same size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import floors, jobs, peers
from benchmarks.jobs import KINSIGHT
from benchmarks.timing import CPU, extra_bytes, interleaved
from kinsight import GradientKernel, Samples, soft_count

SIZES = {"mlp": 4096, "lenet": 2048, "resnet18": 256, "vit": 256, "encoder": 128}
SIZES_OF_TEN = {"mlp": 1024, "lenet": 512}
CHUNKS = {"resnet18": 8, "vit": 16, "encoder": 8}
"""Samples that torch.func takes at a time, where the networks are large."""

LEAST_BYTES = 2**20
"""Growth below which memory is not told from noise."""


def counts(kernel: GradientKernel, x: Tensor) -> Tensor:
    """The soft count of each sample. [n]."""
    return soft_count(kernel, x).values


def epochs(name: str, n: int, n_runs: int, device: torch.device = CPU) -> float:
    """kinsight over one epoch of training, one output, and nothing else timed."""
    model, x = jobs.inputs(name, n, device)
    kernel = jobs.kernel_of(model)
    batches = x.split(kernel.block_size(Samples(x)))
    ways: dict[str, Callable[[], object]] = {
        KINSIGHT: partial(counts, kernel, x),
        jobs.PLAIN: floors.plain(model, batches),
    }
    timings = interleaved(ways, n_runs=n_runs, device=device)
    return timings[KINSIGHT].median / timings[jobs.PLAIN].median


def measure(name: str, n: int, given: argparse.Namespace) -> None:
    """Time one network, and store it."""
    n_outputs = given.outputs
    model, x = jobs.inputs(name, n, given.device)
    kernel = jobs.kernel_of(model, n_outputs)
    size = kernel.block_size(Samples(x))
    batches = x.split(size)
    chunk = max(1, {**peers.CHUNKS, **CHUNKS}.get(name, peers.CHUNK) // n_outputs)
    ways: dict[str, Callable[[], object]] = {
        KINSIGHT: partial(counts, kernel, x),
        jobs.FIRST: lambda: counts(jobs.kernel_of(model, n_outputs), x),
        jobs.PLAIN: floors.plain(model, batches, n_outputs),
        jobs.PASSES: floors.passes(model, batches, n_outputs),
        "torch.func": partial(peers.soft_count_by_torch_func, model, x, n_outputs, chunk=chunk),
    }
    refused: dict[str, str] = {}
    jobs.leave_out(given.without, ways, refused)
    timings = interleaved(ways, n_runs=given.runs, device=given.device)
    facts = {
        **jobs.against_plain(timings, "epochs"),
        **jobs.against_peers(timings),
        **jobs.memory(timings, 8 * n),
        **growth(model, x, n_outputs, size),
        "batch_size": size,
        "route": soft_count(kernel, x).route,
        "refused": refused,
    }
    model, (x,) = jobs.in_float64(model, x)
    # Read from the captures, in float64: not by forward mode, which is what kinsight is timed with.
    kernel = jobs.kernel_of(model, n_outputs)
    truth = soft_count(kernel, x, route="captures").values
    for way in (KINSIGHT, *jobs.peers_of(timings)):
        timings[way].compare(truth)
    jobs.keep("soft_count", name, f"n{n}-c{n_outputs}", given, timings, facts)


def growth(model: nn.Module, x: Tensor, n_outputs: int, size: int) -> dict[str, float | int]:
    """Memory with all samples and with half of them, in batches of one size: at most `size`, at least two of a half.

    Captures that are kept for the second pass grow with the data up to half of the bound on memory: here the bound is
    so low that they reach it with half of the data.
    """
    size = max(1, min(size, len(x) // 4))
    each = jobs.kernel_of(model, n_outputs, size).gradients(x[:2]).n_bytes // 2
    kernel = jobs.kernel_of(model, n_outputs, size, max_bytes=each * len(x) // 2)
    peaks = {}
    for n in (len(x), len(x) // 2):
        run = partial(counts, kernel, x[:n])
        run()
        peaks[n] = extra_bytes(run, x.device)
    all_bytes, half_bytes = peaks.values()
    return {
        "bytes_of_all": all_bytes, "bytes_of_half": half_bytes, "batch_size_of_both": size,
        "memory_growth": max(all_bytes, LEAST_BYTES) / max(half_bytes, LEAST_BYTES),
    }  # fmt: skip


def main() -> None:
    """Read the command line."""
    parser = jobs.parser(__doc__)
    jobs.add_without(parser)
    parser.add_argument("--outputs", type=int, choices=(1, 10), default=1)
    given = jobs.parsed(parser)
    sizes = SIZES if given.outputs == 1 else SIZES_OF_TEN
    for name in jobs.chosen(given, sizes):
        measure(name, jobs.scaled(sizes[name], given), given)


if __name__ == "__main__":
    main()
