"""Searching an index: `python -m benchmarks.search [mnist | fashion-mnist ...]` measures recall, `--job million` time.

Recall: a small network is trained, its training data indexed as `Index.build` does where nothing is said, and held-out
images are asked for their ten nearest neighbors: candidates from sketches, true similarities of those. Compared with
the neighbors among all samples, by their true similarities. A neighbor is right where none of the ten true ones is
more than 1e-3 more similar.

A million: images of Fashion-MNIST, moved, turned and scaled at random, sketched by a network that was trained on them;
single queries, by approximate search and by a scan of all sketches, and what true similarities take beside.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks import jobs
from benchmarks.jobs import KINSIGHT
from benchmarks.timing import Timing, timed
from demo.network import convnet
from kinsight import GradientKernel, Index, Samples, neighbors
from kinsight.sources import load_samples

K, TIE = 10, 1e-3
N_QUERIES = {"mnist": 500, "fashion-mnist": 100}
N_HELD_OUT = 1000
DIM, N_MILLION = 1024, 1_000_000
N_TIMED = 200

EXACT, SCAN, RANKED = "all true similarities", "a scan of all sketches", "with true similarities"


def images(name: str) -> tuple[Samples, Samples]:
    """What a network is trained on, and what is held out."""
    if name == "mnist":
        batch = load_samples("mnist5k").take(torch.randperm(5000, generator=torch.Generator().manual_seed(0)))
        train, rest = batch[: 5000 - N_HELD_OUT], batch[5000 - N_HELD_OUT :]
        return Samples(train.inputs, train.targets), Samples(rest.inputs, rest.targets)
    os.environ.setdefault("KINSIGHT_FASHION_MNIST", str(Path(__file__).parent.parent / "data" / "fashion-mnist"))
    return load_samples("fashion-mnist"), load_samples("fashion-mnist:test")


def trained(samples: Samples, n_steps: int = 1500) -> nn.Module:
    """The demo's network, trained on these images."""
    torch.manual_seed(0)
    model = convnet()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batch = samples.take(range(len(samples)))
    inputs, targets = batch.inputs, batch.targets
    assert isinstance(inputs, Tensor)
    assert targets is not None
    for _ in range(n_steps):
        rows = torch.randint(len(samples), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    return model.eval()


def recall(found: Tensor, truth: Tensor) -> float:
    """The share of neighbors found that are as similar as the last true one, but for 1e-3. [q k] each."""
    return float((found >= truth[:, -1:] - TIE).double().mean())


def measure_recall(name: str, given: argparse.Namespace, folder: Path) -> None:
    """How many of the true neighbors an index finds."""
    data, held_out = images(name)
    data = data.first(jobs.scaled(len(data), given))
    model = trained(data)
    queries = held_out.take(range(N_QUERIES[name]))
    kernel = GradientKernel(model, max_bytes=jobs.MAX_BYTES)
    accuracy = float((model(queries.inputs).argmax(dim=1) == queries.targets).double().mean())
    began = time.perf_counter()
    index = Index.build(folder / name, kernel, data, overwrite=True)
    built = time.perf_counter() - began
    exact, ours = Timing(), Timing()
    seconds, truth = timed(functools.partial(neighbors, kernel, queries, data, K))
    exact.seconds.append(seconds)
    for _ in range(given.runs):
        seconds, found = timed(functools.partial(index.neighbors, queries, n_neighbors=K, kernel=kernel, data=data))
        ours.seconds.append(seconds)
    sketched = index.neighbors(queries, n_neighbors=K, kernel=kernel)
    facts = {
        "recall": recall(found.similarities, truth.similarities),
        "recall_of_sketches": recall(_true(kernel, queries, data, sketched.positions), truth.similarities),
        "n": len(data), "n_queries": len(queries), "k": K, "dim": index.dim, "error_of_cosines": index.error,
        "accuracy": accuracy, "build_seconds": built, "samples_per_second": len(data) / built,
    }  # fmt: skip
    jobs.keep("search", name, f"recall-n{len(data)}", given, {KINSIGHT: ours, EXACT: exact}, facts)


def _true(kernel: GradientKernel, queries: object, data: Samples, rows: Tensor) -> Tensor:
    """The true similarities of what sketches find alone."""
    found = torch.empty(rows.shape, dtype=torch.float64)
    batch = Samples.wrap(queries).take(range(len(rows)))
    for row in range(len(rows)):
        found[row] = kernel.similarity(batch[row : row + 1], data.take(rows[row].tolist()))[0]
    return found.sort(dim=1, descending=True).values


class Moved(Dataset[Tensor]):
    """Images, moved, turned and scaled at random: the same ones every time.

    Args:
        source: [n 1 28 28].
        n: how many there are to be.
    """

    def __init__(self, source: Tensor, n: int) -> None:
        self.source, self.n = source, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, place: int) -> Tensor:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int]) -> Tensor:
        chance = torch.stack([torch.rand(4, generator=torch.Generator().manual_seed(place)) for place in places])
        angle, scale = (chance[:, 0] - 0.5) * 0.6, 0.85 + 0.3 * chance[:, 1]
        cos, sin, move = angle.cos() * scale, angle.sin() * scale, (chance[:, 2:] - 0.5) * 0.4
        turns = torch.stack([torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)], 1)
        grid = nn.functional.affine_grid(turns, [len(places), 1, 28, 28], align_corners=False)
        chosen = self.source[torch.tensor(places) % len(self.source)]
        return nn.functional.grid_sample(chosen, grid, align_corners=False)


def own_class(returned: Tensor) -> Tensor:
    """The largest logit."""
    return returned.max(dim=1).values


def measure_million(n: int, given: argparse.Namespace, folder: Path) -> None:
    """Single queries among n sketches."""
    data, held_out = images("fashion-mnist")
    inputs = data.take(range(len(data))).inputs
    assert isinstance(inputs, Tensor)
    model = trained(data)
    kernel = GradientKernel(model, own_class, max_bytes=jobs.MAX_BYTES)
    many = Samples(Moved(inputs, n))
    began = time.perf_counter()
    index = Index.build(
        folder / "million", kernel, many, dim=DIM, previews=False, search=False, resume=True, progress=True
    )
    built = time.perf_counter() - began
    began = time.perf_counter()
    if index.info()["recall"] is None:
        index = index.build_search()
    partitioned = time.perf_counter() - began
    queries = held_out.take(range(N_TIMED))
    ways = {name: Timing() for name in (KINSIGHT, SCAN, RANKED)}
    n_right = 0
    for row in range(N_TIMED):
        query = queries[row : row + 1]
        seconds, found = timed(functools.partial(index.neighbors, query, n_neighbors=K, kernel=kernel))
        ways[KINSIGHT].seconds.append(seconds)
        if row < 4 * given.runs:
            seconds, scanned = timed(
                functools.partial(index.neighbors, query, n_neighbors=K, kernel=kernel, is_exhaustive=True)
            )
            ways[SCAN].seconds.append(seconds)
            n_right += int((found.similarities >= scanned.similarities[:, -1:] - TIE).sum())
            seconds, _ = timed(functools.partial(index.neighbors, query, n_neighbors=K, kernel=kernel, data=many))
            ways[RANKED].seconds.append(seconds)
    facts = {
        "query_seconds": ways[KINSIGHT].median, "ranked_seconds": ways[RANKED].median, "n": n, "dim": DIM, "k": K,
        "recall": n_right / (K * len(ways[SCAN].seconds)), "recall_stored": index.info()["recall"],
        "n_probes": index.about["search"]["n_probes"], "n_partitions": index.about["search"]["n_partitions"],
        "build_seconds": built, "search_build_seconds": partitioned, "disk_bytes": index.info()["bytes"],
    }  # fmt: skip
    jobs.keep("search", "fashion-mnist", f"query-n{n}-dim{DIM}", given, ways, facts, "--job million")


def main() -> None:
    """Read the command line."""
    parser = jobs.parser(__doc__)
    parser.add_argument("--job", choices=("recall", "million"), default="recall")
    parser.add_argument("--folder", type=Path, default=None, help="keep indexes here, and go on with them")
    given = jobs.parsed(parser)
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        if given.job == "million":
            measure_million(jobs.scaled(N_MILLION, given), given, folder)
            return
        for network in jobs.chosen(given, N_QUERIES):
            measure_recall(network, given, folder)


if __name__ == "__main__":
    main()
