"""Searching sketches: the best of them first, then the similarities of those, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from kinsight.gradients.scratch import Scratch
from kinsight.indexing.queries import Queries, SketchedQueries, units_of
from kinsight.kernel import GradientKernel
from kinsight.neighbors import Neighbors, are_all, merge_best
from kinsight.normalization import Normalization
from kinsight.samples import Batch, Id

RANKED = 64
"""Queries whose candidates' similarities are computed together, at least."""

PAIRS_A_GRADIENT = 100
"""About as many pairs of samples take as long as the gradient of one."""

MAX_PAIRS = 2**25
"""Similarities that are held at once."""


def as_neighbors(
    asked: Queries, values: Tensor, rows: Tensor, ids: Sequence[Id], normalization: Normalization, error: float | None
) -> Neighbors:
    """What was found, with the ids of an index's samples; nan where a query has zero gradient, or too few were found.

    Args:
        asked: the queries.
        values: similarities, [q k], -inf for none.
        rows: of the neighbors, [q k], -1 for none.
        ids: of all samples of the index.
        normalization: which similarity.
        error: of the similarities; None where they are exact.
    """
    values = values.double().masked_fill(values == -torch.inf, torch.nan).clamp(-1, 1)
    is_undefined = ~asked.sketches.any(dim=1)
    values[is_undefined], rows[is_undefined] = torch.nan, -1
    found = tuple(tuple(ids[row] for row in line if row >= 0) for line in rows.tolist())
    return Neighbors(asked.ids, found, rows, values, normalization, are_all(asked.rows, len(ids)), error)


def nearest(parts: Iterable[tuple[int, Tensor]], queries: Tensor, k: int, own: Tensor) -> tuple[Tensor, Tensor]:
    """The k sketches with the largest cosines, by one pass over all of them; of equal ones, any.

    Args:
        parts: (first row, sketches [n dim]) of all samples, in order.
        queries: unit sketches, [q dim].
        k: neighbors of each.
        own: rows that are left out, one a query, [q]; -1 for none.

    Returns:
        Cosines, [q k], -inf where there are fewer than k; and rows, [q k].
    """
    best = torch.full((len(queries), k), -torch.inf)
    places = torch.full((len(queries), k), -1)
    scratch = Scratch()
    for first, values in parts:
        units = units_of(values)
        cosines = scratch.take("cosines", (len(queries), len(units)), queries)
        torch.mm(queries, units.T, out=cosines)
        is_zero = (units[:, 0] == 0) & ~units.any(dim=1)
        if bool(is_zero.any()):
            cosines[:, is_zero] = -torch.inf
        is_own = (own >= first) & (own < first + len(units))
        cosines[is_own, own[is_own] - first] = -torch.inf
        found = cosines.topk(min(k, len(units)), dim=1)
        merged = torch.cat([best, found.values], dim=1).topk(k, dim=1)
        places = torch.cat([places, found.indices + first], dim=1).gather(1, merged.indices)
        best = merged.values
    places[best == -torch.inf] = -1
    return best, places


def exactly(
    kernel: GradientKernel,
    normalization: Normalization,
    queries: Queries,
    candidates: Tensor,
    k: int,
    take: Callable[[Sequence[int]], Batch],
) -> tuple[Tensor, Tensor]:
    """The k best of each query's candidates, by their true similarities.

    Args:
        kernel: the gradient kernel.
        normalization: which similarity.
        queries: what is searched for.
        candidates: rows, [q m]; -1 for none.
        k: neighbors of each.
        take: the samples of some rows.

    Returns:
        Similarities, [q k], -inf where there are fewer than k; and rows, [q k].
    """
    samples = queries.samples if isinstance(queries, SketchedQueries) else None
    best = torch.full((len(candidates), k), -torch.inf, dtype=torch.float64)
    places = torch.full((len(candidates), k), -1)
    for part, rows in grouped(candidates):
        if not len(rows):
            continue
        chosen = candidates[part]
        batch = take(queries.rows[part].tolist()) if samples is None else samples.take(range(len(samples))[part])
        similarities = torch.full((len(batch), len(rows)), torch.nan, dtype=torch.float64)
        for r, c, block in kernel.similarity_blocks(batch, take(rows.tolist()), normalization):
            similarities[r, c] = block.cpu().clamp(-1, 1)
        values = similarities.gather(1, torch.searchsorted(rows, chosen.clamp(min=int(rows[0]))))
        values = values.masked_fill((chosen < 0) | values.isnan(), -torch.inf)
        best[part], places[part] = merge_best(best[part], places[part], values, chosen, k)
    places[best == -torch.inf] = -1
    return best, places


def grouped(candidates: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(queries, rows of their candidates) of all queries, group by group.

    Within a group every gradient is computed once, and all pairs, needed or not. So queries that share candidates stay
    together as long as the gradients this saves are dearer than the pairs that nobody asked for.

    Args:
        candidates: rows, [q m]; -1 for none.
    """
    start, rows = 0, candidates.new_empty(0)
    for first in range(0, len(candidates), RANKED):
        stop = min(first + RANKED, len(candidates))
        chosen = candidates[first:stop]
        new = torch.unique(chosen[chosen >= 0])
        both = torch.unique(torch.cat([rows, new]))
        n_pairs = (stop - start) * len(both)
        n_apart = (first - start) * len(rows) + (stop - first) * len(new)
        n_saved = len(rows) + len(new) - len(both)
        if n_pairs - n_apart > PAIRS_A_GRADIENT * n_saved or n_pairs > MAX_PAIRS:
            yield slice(start, first), rows
            start, both = first, new
        rows = both
    yield slice(start, len(candidates)), rows
