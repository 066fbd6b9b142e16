"""Exact Gram block of n samples with themselves: `python -m benchmarks.gram [network ...]`.

One output for every network. With `--outputs 10`, over ten of them: the trace, or with `--form blocks` every output
with every other one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import floors, jobs, optional_peers, peers
from benchmarks.jobs import KINSIGHT
from benchmarks.timing import CPU, Timing, interleaved
from kinsight import GradientKernel, Samples

SIZES = {"mlp": 1024, "lenet": 512, "vit": 64, "resnet18": 128, "encoder": 64}
SIZES_OF_TEN = {"mlp": 256, "lenet": 128}
CHUNKS = {"resnet18": 32}
"""Samples that torch.func takes at a time, where all at once do not fit in memory."""


def floor_of(
    model: nn.Module, x: Tensor, timings: dict[str, Timing], n_outputs: int = 1, *, is_blocks: bool = False
) -> float:
    """Seconds of the passes without weight gradients, and of the contraction at the GEMM's rate."""
    n = len(x)
    work = floors.contraction(model, x[:2], n, n, n_outputs, is_same=True, is_blocks=is_blocks)
    return timings[jobs.PASSES].median + work / floors.gemm_rate(device=x.device)


def times_floor(name: str, n: int, n_runs: int, device: torch.device = CPU) -> float:
    """kinsight over its floor, one output, and nothing else timed."""
    model, x = jobs.inputs(name, n, device)
    kernel = jobs.kernel_of(model)
    ways: dict[str, Callable[[], object]] = {KINSIGHT: partial(kernel, x), jobs.PASSES: floors.passes(model, [x])}
    timings = interleaved(ways, n_runs=n_runs, device=device)
    return timings[KINSIGHT].median / floor_of(model, x, timings)


def measure(name: str, n: int, given: argparse.Namespace) -> None:
    """Time one network, and store it."""
    n_outputs, is_blocks = given.outputs, given.form == "blocks"
    model, x = jobs.inputs(name, n, given.device)
    batches = x.split(jobs.kernel_of(model, n_outputs).block_size(Samples(x)))

    def ask(kernel: GradientKernel, x: Tensor) -> Tensor:
        return kernel.blocks(x) if is_blocks else kernel(x)

    refused: dict[str, str] = {}
    ways: dict[str, Callable[[], object]] = {
        KINSIGHT: partial(ask, jobs.kernel_of(model, n_outputs), x),
        jobs.FIRST: lambda: ask(jobs.kernel_of(model, n_outputs), x),
        jobs.PLAIN: floors.plain(model, batches, n_outputs),
        jobs.PASSES: floors.passes(model, batches, n_outputs),
        **peers_of(name, model, x, n_outputs, refused, is_blocks=is_blocks),
    }
    jobs.leave_out(given.without, ways, refused)
    timings = interleaved(ways, n_runs=given.runs, device=given.device)
    facts = {
        **jobs.against_floor(timings, floor_of(model, x, timings, n_outputs, is_blocks=is_blocks)),
        **jobs.against_plain(timings),
        **jobs.against_peers(timings),
        **jobs.memory(timings, 8 * n**2 * (n_outputs**2 if is_blocks else 1), n_outputs if is_blocks else 1),
        "peer_versions": optional_peers.versions(),
        "refused": refused,
    }
    model, (x,) = jobs.in_float64(model, x)
    truth = ask(jobs.kernel_of(model, n_outputs), x)
    for way in (KINSIGHT, *jobs.peers_of(timings)):
        timings[way].compare(truth)
    form = "" if n_outputs == 1 else f"-{given.form}"
    jobs.keep("gram", name, f"n{n}-c{n_outputs}{form}", given, timings, facts)


def peers_of(
    name: str, model: nn.Module, x: Tensor, n_outputs: int, refused: dict[str, str], *, is_blocks: bool
) -> dict[str, Callable[[], Tensor]]:
    """Who else does it; of the trace, the mean over outputs, as kinsight gives it. And why others do not."""
    chunk = CHUNKS.get(name)
    if is_blocks:
        others = optional_peers.blocks_ways(model, x, n_outputs, refused=refused)
        return {"torch.func": partial(peers.blocks_by_torch_func, model, x, n_outputs, chunk=chunk), **others}
    ways: dict[str, Callable[[], Tensor]] = {
        "torch.func": lambda: peers.gram_by_torch_func(model, x, n_outputs, chunk=chunk) / n_outputs
    }
    if n_outputs == 1:
        ways["one sample at a time"] = lambda: peers.gram_one_at_a_time(model, x, n_outputs) / n_outputs
    if name in ("vit", "encoder"):  # vmap runs fused attention one sample at a time
        ways["torch.func, attention by its formula"] = partial(_with_plain_attention, ways["torch.func"])
    others = optional_peers.gram_ways(model, x, n_outputs, refused=refused, chunk=chunk)
    ways.update({way: partial(_mean, job, n_outputs) for way, job in others.items()})
    return ways


def _with_plain_attention(job: Callable[[], Tensor]) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return job()


def _mean(job: Callable[[], Tensor], n_outputs: int) -> Tensor:
    return job() / n_outputs


def main() -> None:
    """Read the command line."""
    parser = jobs.parser(__doc__)
    jobs.add_without(parser)
    parser.add_argument("--outputs", type=int, choices=(1, 10), default=1)
    parser.add_argument("--form", choices=("trace", "blocks"), default="trace")
    given = jobs.parsed(parser)
    if given.form == "blocks" and given.outputs == 1:
        parser.error("--form blocks needs --outputs 10: of one output, the blocks are the Gram block itself")
    sizes = SIZES if given.outputs == 1 else SIZES_OF_TEN
    for name in jobs.chosen(given, sizes):
        measure(name, jobs.scaled(sizes[name], given), given)


if __name__ == "__main__":
    main()
