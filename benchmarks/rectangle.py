"""Queries against data, one output: `python -m benchmarks.rectangle [network ...] [--job block|neighbors]`.

The Gram block of 256 samples with 2,048 others, and the nearest neighbors of 64 queries among 4,096 samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from torch import Tensor

from benchmarks import floors, jobs, peers
from benchmarks.jobs import KINSIGHT
from benchmarks.timing import interleaved
from kinsight import GradientKernel, Samples, neighbors

NAMES = ("lenet", "mlp")
SIZES = {"block": (256, 2048), "neighbors": (64, 4096)}
N_NEIGHBORS = 10


def measure(name: str, job: str, given: argparse.Namespace) -> None:
    """Time one network and job, and store it."""
    n, m = (jobs.scaled(size, given) for size in SIZES[job])
    k = min(N_NEIGHBORS, m)
    model, both = jobs.inputs(name, n + m, given.device)
    x, y = both[:n], both[n:]

    def ask(kernel: GradientKernel, x: Tensor, y: Tensor) -> Tensor:
        return kernel(x, y) if job == "block" else neighbors(kernel, x, y, k, normalization="flat").similarities

    kernel = jobs.kernel_of(model)
    chunk = peers.CHUNKS.get(name, peers.CHUNK)
    batches = [part for each in (x, y) for part in each.split(kernel.block_size(Samples(each)))]
    peer = {
        "block": partial(peers.rectangle_by_torch_func, model, x, y, chunk=chunk),
        "neighbors": partial(peers.neighbors_by_torch_func, model, x, y, k, chunk=chunk),
    }
    ways: dict[str, Callable[[], object]] = {
        KINSIGHT: partial(ask, kernel, x, y),
        jobs.FIRST: lambda: ask(jobs.kernel_of(model), x, y),
        jobs.PLAIN: floors.plain(model, batches),
        jobs.PASSES: floors.passes(model, batches),
        "torch.func": peer[job],
    }
    timings = interleaved(ways, n_runs=given.runs, device=given.device)
    work = floors.contraction(model, x[:2], n, m) / floors.gemm_rate(device=given.device)
    facts = {
        **jobs.against_floor(timings, timings[jobs.PASSES].median + work),
        **jobs.against_plain(timings),
        **jobs.against_peers(timings),
        **jobs.memory(timings, 8 * n * (m if job == "block" else 2 * k)),
    }
    model, (x, y) = jobs.in_float64(model, x, y)
    truth = ask(jobs.kernel_of(model), x, y)
    for way in (KINSIGHT, *jobs.peers_of(timings)):
        timings[way].compare(truth)
    jobs.keep("rectangle", name, f"{job}-{n}x{m}", given, timings, facts, f"--job {job}")


def main() -> None:
    """Read the command line."""
    parser = jobs.parser(__doc__)
    parser.add_argument("--job", choices=tuple(SIZES), action="append", help="both where left out")
    given = jobs.parsed(parser)
    for name in jobs.chosen(given, NAMES):
        for job in given.job or SIZES:
            measure(name, job, given)


if __name__ == "__main__":
    main()
