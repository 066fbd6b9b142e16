"""Exact Gram block of n samples with themselves: `python -m benchmarks.gram [network ...]`.

One output for every network; with `--outputs 10`, the trace over ten.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import floors, optional_peers, peers
from benchmarks.networks import NETWORKS
from benchmarks.timing import interleaved, store
from kinsight import GradientKernel

SIZES = {"mlp": 1024, "lenet": 512, "vit": 64, "resnet18": 128, "encoder": 64}
SIZES_OF_TEN = {"mlp": 256, "lenet": 128}
MAX_BYTES = 3 * 2**29
CHUNKS = {"resnet18": 32}
"""Samples that torch.func takes at a time, where all at once do not fit in memory."""


def measure(name: str, n_outputs: int, n_runs: int) -> None:
    """Time one network, and store it."""
    network = NETWORKS[name]
    model = network.build()
    n = (SIZES if n_outputs == 1 else SIZES_OF_TEN)[name]
    x = network.batch(n)
    output = (lambda returned: returned[:, 0]) if n_outputs == 1 else "logits"
    kernel = GradientKernel(model, output, max_bytes=MAX_BYTES)
    kernel(x)  # the first call of a kernel proves itself: reported apart
    results: dict[str, Tensor] = {}

    def keep(way: str, job: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            results[way] = job()

        return run

    ways: dict[str, Callable[[], object]] = {
        "kinsight": keep("kinsight", partial(kernel, x)),
        "kinsight, first call": lambda: GradientKernel(model, output, max_bytes=MAX_BYTES)(x),
        "forward and backward": floors.plain(model, x, n_outputs),
        "without weight gradients": floors.passes(model, x, n_outputs),
    }
    if name != "encoder":  # tokens have no gradient to map over
        ways["torch.func"] = keep(
            "torch.func", partial(peers.gram_by_torch_func, model, x, n_outputs, chunk=CHUNKS.get(name))
        )
    if name in ("vit", "resnet18", "encoder"):
        ways["one sample at a time"] = keep(
            "one sample at a time", partial(peers.gram_one_at_a_time, model, x, n_outputs)
        )
    refused: dict[str, str] = {}
    others = optional_peers.gram_ways(model, x, n_outputs, refused=refused, chunk=CHUNKS.get(name))
    ways.update({way: keep(way, job) for way, job in others.items()})
    timings = interleaved(ways, n_runs=n_runs)
    truth = GradientKernel(network.build().double(), output, max_bytes=MAX_BYTES)(
        x.double() if x.is_floating_point() else x
    )
    for way, found in results.items():
        found = found / (n_outputs if way != "kinsight" else 1)
        timings[way].max_error = float((found - truth).norm() / truth.norm())
    work = floors.contraction(model, x[:2], n, n, n_outputs, is_same=True)
    floor = timings["without weight gradients"].median + work / floors.gemm_rate()
    fastest = min(
        (timings[peer].median, peer) for peer in ("torch.func", "one sample at a time", *others) if peer in timings
    )
    store(
        "gram", f"{name}-n{n}-c{n_outputs}", f"python -m benchmarks.gram {name} --outputs {n_outputs}", timings,
        floor_seconds=floor, times_floor=timings["kinsight"].median / floor,
        times_ahead=fastest[0] / timings["kinsight"].median, fastest_peer=fastest[1],
        peer_versions=optional_peers.versions(), refused=refused,
    )  # fmt: skip


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--outputs", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.networks or (SIZES if options.outputs == 1 else SIZES_OF_TEN):
        measure(name, options.outputs, options.runs)


if __name__ == "__main__":
    main()
