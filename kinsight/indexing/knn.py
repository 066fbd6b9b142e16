"""The neighbors of every sample of an index, as a table in it; and what they say of the data as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from kinsight.indexing.queries import units_of
from kinsight.indexing.rows import ROWS, matrix_of
from kinsight.indexing.search import nearest
from kinsight.indexing.store import Store
from kinsight.progress import progress_bar
from kinsight.samples import Id

TABLE = "neighbors"
"""The table of neighbors."""

BATCH = 4096
"""Sketches that are compared with those held at once."""


@dataclass(frozen=True, eq=False)
class NeighborTable:
    """The neighbors of every sample of an index, by the cosines of their sketches.

    Args:
        ids: of all samples, n of them.
        positions: rows of the neighbors, the most similar first, [n k]; -1 where there are fewer.
        similarities: [n k], float32; nan where there are fewer.
        error: root mean square error of the similarities.
    """

    columns: ClassVar = ("query", "rank", "neighbor", "similarity")
    ids: tuple[Id, ...]
    positions: Tensor
    similarities: Tensor
    error: float

    def __len__(self) -> int:
        return len(self.ids)

    def occurrences(self) -> Tensor:
        """Of how many samples each one is among the nearest k: k on average; a hub has many more. [n]."""
        found = self.positions[self.positions >= 0]
        return torch.bincount(found, minlength=len(self))

    def hubs(self, n: int = 20) -> list[tuple[int, int]]:
        """The rows of the samples that are among the nearest k of most others, and of how many; the first n."""
        counts = self.occurrences()
        rows = counts.argsort(descending=True, stable=True)[:n]
        return list(zip(rows.tolist(), counts[rows].tolist(), strict=True))

    @property
    def skewness(self) -> float:
        """Skewness of `occurrences`: 0 where none is preferred, above 1 where a few samples are everybody's neighbors.

        Reference:
            Radovanović, Nanopoulos, Ivanović (2010), "Hubs in space", Journal of Machine Learning Research.
        """
        counts = self.occurrences().double()
        off = counts - counts.mean()
        spread = off.square().mean().sqrt()
        return float((off**3).mean() / spread**3) if spread > 0 else 0.0

    def rows(self) -> Iterator[dict[str, Id | int | float]]:
        """One record a pair: query, rank (from 1), neighbor, similarity."""
        for query, places, values in zip(self.ids, self.positions.tolist(), self.similarities.tolist(), strict=True):
            for rank, (place, value) in enumerate(zip(places, values, strict=True), 1):
                if place >= 0:
                    yield dict(zip(self.columns, (query, rank, self.ids[place], value), strict=True))

    def summary(self) -> str:
        """In words."""
        if not int((self.positions >= 0).sum()):
            return f"None of {len(self):,} samples has a neighbor."
        ((row, n),) = self.hubs(1)
        preferred = "a few are everybody's" if self.skewness > 1 else "none is everybody's"
        return (
            f"Neighbors of {len(self):,} samples, {self.positions.shape[1]} each: {preferred} (skewness "
            f"{self.skewness:.2g}), and the first hub, {self.ids[row]!r}, is among those of {n:,}. Similarities are "
            f"off by {self.error:.2g} (root mean square)."
        )

    def duplicates(self, least: float) -> list[list[int]]:
        """Groups of samples that chains of neighbors with at least this similarity connect, the largest first."""
        rows, columns = torch.nonzero(self.similarities >= least, as_tuple=True)
        others = self.positions[rows, columns]
        first = torch.arange(len(self))  # the first row that each is known to be connected with
        while True:
            least_of_pair = torch.minimum(first[rows], first[others])
            found = first.scatter_reduce(0, rows, least_of_pair, "amin").scatter_reduce(
                0, others, least_of_pair, "amin"
            )
            found = found[found]
            if torch.equal(found, first):
                break
            first = found
        groups: dict[int, list[int]] = {}
        for row in torch.unique(torch.cat([rows, others])).tolist():
            groups.setdefault(int(first[row]), []).append(row)
        return sorted(groups.values(), key=lambda group: (-len(group), group))


def fill_neighbors(store: Store, k: int, *, max_bytes: int, progress: bool) -> None:
    """Commit the neighbors of every sample, a group of rows at a time; go on where an earlier call stopped.

    Args:
        store: the index, open for writing.
        k: neighbors of each.
        max_bytes: of the sketches held at once.
        progress: whether to show a progress bar.
    """
    n, dim = store.n_rows(ROWS), store.about["dim"]
    wanted = {"k": k, "n": n}
    if store.about.get(TABLE) != wanted:
        store.drop(TABLE, **{TABLE: wanted})
    size = max(1, min(n, max_bytes // (4 * (dim + BATCH + 4 * k))))
    with progress_bar("neighbors", n, is_shown=progress) as advance:
        done = store.n_rows(TABLE)
        advance(done)
        for start in range(done, n, size):
            rows = torch.arange(start, min(n, start + size))
            held = matrix_of(store.slice(ROWS, start, start + len(rows), ["sketch"])["sketch"]).float()
            values, places = nearest(sketches_of(store), units_of(held), k, rows)
            values[places < 0] = torch.nan
            table = pa.table(
                {
                    "row": rows.numpy(),
                    "neighbors": pa.FixedSizeListArray.from_arrays(pa.array(places.flatten().numpy()), k),
                    "similarities": pa.FixedSizeListArray.from_arrays(pa.array(values.flatten().numpy()), k),
                }
            )
            store.append(TABLE, table, start=start)
            advance(len(rows))


def sketches_of(store: Store) -> Iterator[tuple[int, Tensor]]:
    """(first row, sketches [n dim], float32) of all samples, batch by batch."""
    first = 0
    for part in store.scan(ROWS, ["sketch"], BATCH):
        values = matrix_of(part["sketch"]).float()
        yield first, values
        first += len(values)
