"""Indexes: `python -m benchmarks.index [network ...]` builds one; `--job all` searches the neighbors of every sample.

Building is compared with one epoch of training on the same samples: forward, backward with weight gradients, and a step
of SGD with momentum, in batches of the same size. The neighbors of all samples are compared with the matrix products
that they need, of the same sizes, in the same run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from benchmarks import jobs
from benchmarks.jobs import KINSIGHT
from benchmarks.timing import extra_bytes, interleaved
from kinsight import Index, Samples
from kinsight.indexing.knn import BATCH, TABLE, fill_neighbors
from kinsight.indexing.store import Store

SIZES = {"resnet18": 1024, "lenet": 4096, "mlp": 8192}
DIM = 4096
N_ALL, DIM_ALL, K_ALL = 60_000, 1024, 10

TRAINING, PRODUCTS = "one epoch of training", "matrix products"


def training(model: nn.Module, batches: list[Tensor]) -> Callable[[], None]:
    """One epoch of SGD with momentum on the first logit."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)

    def run() -> None:
        for x in batches:
            optimizer.zero_grad()
            model(x)[:, 0].sum().backward()
            optimizer.step()

    return run


def measure_build(name: str, n: int, given: argparse.Namespace, folder: Path) -> None:
    """Build an index of n samples, again and again, and of half as many."""
    model, x = jobs.inputs(name, n, given.device)
    trained, _ = jobs.inputs(name, n, given.device)
    kernel = jobs.kernel_of(model)
    size = kernel.block_size(Samples(x))

    def build(x: Tensor) -> Index:
        return Index.build(folder / name, kernel, x, dim=DIM, previews=False, overwrite=True)

    build(x[: min(n, 8)])
    ways: dict[str, Callable[[], object]] = {
        KINSIGHT: partial(build, x),
        TRAINING: training(trained, list(x.split(size))),
    }
    timings = interleaved(ways, n_runs=given.runs, device=given.device)
    index = timings[KINSIGHT].result
    assert isinstance(index, Index)
    half = extra_bytes(partial(build, x[: n // 2]), given.device)
    error = index.about["parts"][0]["error"]
    facts = {
        "times_training": timings[TRAINING].median / timings[KINSIGHT].median,
        "samples_per_second": n / timings[KINSIGHT].median,
        "bytes_of_all": timings[KINSIGHT].extra_bytes, "bytes_of_half": half,
        "memory_growth": timings[KINSIGHT].extra_bytes / max(1, half),
        "dim": DIM, "batch_size": size, "error_of_sums": error["inner"], "error_of_cosines": error["cosine"],
        "error_times_root_dim": error["inner"] * DIM**0.5, "disk_bytes": index.info()["bytes"],
    }  # fmt: skip
    jobs.keep("index", name, f"build-n{n}-dim{DIM}", given, timings, facts)


def sketches_on_disk(folder: Path, n: int, dim: int) -> None:
    """A store with random sketches and nothing else."""
    generator = torch.Generator().manual_seed(0)
    with Store.create(folder, {"dim": dim}) as store:
        for start in range(0, n, 8192):
            values = torch.randn(min(8192, n - start), dim, generator=generator) / dim**0.5
            flat = pa.array(values.to(torch.float16).numpy().reshape(-1))
            rows = {
                "row": np.arange(start, start + len(values)),
                "sketch": pa.FixedSizeListArray.from_arrays(flat, dim),
            }
            store.append("rows", pa.table(rows))


def measure_all(n: int, given: argparse.Namespace, folder: Path) -> None:
    """The neighbors of n samples, and the same products of matrices that are in memory."""
    sketches_on_disk(folder / "all", n, DIM_ALL)

    def search() -> int:
        with Store.open(folder / "all", for_writing=True) as store:
            store.drop(TABLE, **{TABLE: None})
            fill_neighbors(store, K_ALL, max_bytes=2**30, progress=False)
            return store.n_rows(TABLE)

    rows, columns = torch.randn(n, DIM_ALL), torch.randn(BATCH, DIM_ALL)

    def products() -> None:
        product = torch.empty(BATCH, BATCH)
        for start in range(0, n, BATCH):
            held = rows[start : start + BATCH]
            for first in range(0, n, BATCH):
                m = min(BATCH, n - first)
                torch.mm(held, columns[:m].T, out=product[: len(held), :m])

    timings = interleaved({KINSIGHT: search, PRODUCTS: products}, n_runs=given.runs)
    facts = {
        "times_products": timings[KINSIGHT].median / timings[PRODUCTS].median,
        "gflop_per_second": 2e-9 * n**2 * DIM_ALL / timings[PRODUCTS].median, "dim": DIM_ALL, "k": K_ALL,
    }  # fmt: skip
    jobs.keep("index", "sketches", f"all-n{n}-dim{DIM_ALL}", given, timings, facts, "--job all")


def main() -> None:
    """Read the command line."""
    parser = jobs.parser(__doc__)
    parser.add_argument("--job", choices=("build", "all"), default="build")
    given = jobs.parsed(parser)
    with tempfile.TemporaryDirectory() as name:
        if given.job == "all":
            measure_all(max(2, round(N_ALL * given.scale)), given, Path(name))
            return
        for network in jobs.chosen(given, SIZES):
            measure_build(network, jobs.scaled(SIZES[network], given), given, Path(name))


if __name__ == "__main__":
    main()
