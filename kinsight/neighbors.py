"""Nearest neighbors through the network's eyes, exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kinsight.batches import checked_count
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.namesakes import self_positions
from kinsight.normalization import Normalization
from kinsight.progress import progress_bar
from kinsight.samples import Id, Samples


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The most similar samples of each query, the most similar first.

    Args:
        query_ids: ids of the queries, q of them.
        ids: ids of their neighbors, q tuples of at most k.
        positions: where the neighbors lie in the data, [q k]; -1 where there are fewer than k.
        similarities: [q k]; nan where there are fewer than k.
        normalization: which similarity.
        is_own: whether the queries are the data itself, in its order.
        error: root mean square error of the similarities, where they are estimates from sketches; None: exact.
    """

    columns: ClassVar = ("query", "rank", "neighbor", "similarity")
    query_ids: tuple[Id, ...]
    ids: tuple[tuple[Id, ...], ...]
    positions: Tensor
    similarities: Tensor
    normalization: Normalization
    is_own: bool
    error: float | None = None

    def __len__(self) -> int:
        return len(self.query_ids)

    def rows(self) -> Iterator[dict[str, Id | int | float]]:
        """One record a pair: query, rank (from 1), neighbor, similarity."""
        for query, ids, values in zip(self.query_ids, self.ids, self.similarities.tolist(), strict=True):
            for rank, (neighbor, value) in enumerate(zip(ids, values, strict=False), 1):
                yield dict(zip(self.columns, (query, rank, neighbor, value), strict=True))

    def summary(self) -> str:
        """In words."""
        first = self.similarities[:, :1].flatten()
        first = first[~first.isnan()]
        if not len(first):
            return f"None of {len(self):,} queries has a neighbor: there is no sample, or gradients are zero."
        least = float(first.min())
        text = (
            f"Half of {len(self):,} queries have a nearest neighbor of similarity {float(first.median()):.3f} or more; "
            f"the one that is most alone has {least:.3f}"
        )
        text += "" if self.error is None else f", each off by {self.error:.2g} (root mean square)"
        n_alone = len(self) - len(first)
        return f"{text}; {n_alone:,} have none, their gradients being zero." if n_alone else f"{text}."


def neighbors(
    kernel: GradientKernel,
    queries: Any,
    data: Any,
    n_neighbors: int = 10,
    *,
    normalization: Normalization = "whitened",
    progress: bool = False,
) -> Neighbors:
    """The samples of `data` that the network finds most similar to each query: exact, streamed, block by block.

    A query that is itself in the data is not its own neighbor: when `queries` is `data`, or a part of it (`data.take`,
    `data.first`), or by id where both were given ids. Other queries are strangers, whatever their numbers. Samples with
    zero gradient are nobody's neighbor.

    Args:
        kernel: the gradient kernel of the network.
        queries: whatever `Samples` takes, q samples; `data` itself for the neighbors of every sample.
        data: whatever `Samples` takes, n samples.
        n_neighbors: k.
        normalization: 'whitened' or 'flat' similarity.
        progress: whether to show a progress bar.

    Returns:
        `Neighbors`, [q k]. Equal similarities come in the order of the data.

    Raises:
        InputError: k is not a whole number above 0.
        UnknownNameError: there is no such normalization.

    Example:
        >>> data = Samples(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]))
        >>> neighbors(GradientKernel(torch.nn.Linear(2, 1)), data.take([0]), data, 2).ids
        ((1, 2),)

    Reference:
        Charpiat, Girard, Felardos, Tarabalka (2019), "Input Similarity from the Neural Network Perspective".
    """
    check_kernel(kernel, normalization)
    n_neighbors = checked_count("n_neighbors", n_neighbors)
    columns = Samples.wrap(data)
    rows = columns if queries is data else Samples.wrap(queries)
    same = self_positions(rows, columns)
    k = min(n_neighbors, len(columns))
    best = torch.full((len(rows), k), -torch.inf, dtype=torch.float64)
    places = torch.full((len(rows), k), -1)
    pairs = kernel.similarity_blocks(rows, None if rows is columns else columns, normalization)
    with progress_bar("neighbors", len(rows) * len(columns), is_shown=progress) as advance:
        for r, c, block in pairs:
            values = block.cpu().clamp(-1, 1)  # what rounding put above 1 is a tie
            found = torch.arange(c.start, c.stop)
            values = values.masked_fill(values.isnan() | (found == same[r, None]), -torch.inf)
            best[r], places[r] = merge_best(best[r], places[r], values, found.expand_as(values), k)
            advance(values.numel())
    missing = best == -torch.inf
    places[missing] = -1
    best[missing] = torch.nan
    ids = tuple(tuple(columns.ids[place] for place in row if place >= 0) for row in places.tolist())
    return Neighbors(rows.ids, ids, places, best.clamp(-1, 1), normalization, are_all(same, len(columns)))


def are_all(places: Tensor, n: int) -> bool:
    """Whether places are those of all n samples, in order."""
    return torch.equal(places, torch.arange(n))


def merge_best(best: Tensor, places: Tensor, values: Tensor, found: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of two lists, by value, then by place."""
    if values.shape[1] > k:  # what cannot be among the k best is dropped before the sorts; ties are kept for them
        kth = values.topk(k, dim=1).values[:, -1:]
        keep = int((values >= kth).sum(dim=1).max())
        values, order = values.sort(dim=1, descending=True, stable=True)
        values, found = values[:, :keep], found.gather(1, order)[:, :keep]
    values, found = torch.cat([best, values], dim=1), torch.cat([places, found], dim=1)
    by_place = found.argsort(dim=1, stable=True)
    values, found = values.gather(1, by_place), found.gather(1, by_place)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], found.gather(1, order)[:, :k]
