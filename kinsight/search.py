"""Searching sketches: the best of them first, then the similarities of those, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinsight.kernel import GradientKernel, Normalization
from kinsight.neighbors import merge_best
from kinsight.samples import Batch, Id

RANKED = 64
"""Queries whose candidates' similarities are computed together."""


@dataclass(frozen=True, eq=False)
class Queries:
    """What is searched for.

    Args:
        ids: of the queries.
        units: their sketches, of length 1 or 0, [q dim].
        rows: where they lie in the index themselves, [q]; -1 where they do not.
        batch: their inputs, where they are known.
    """

    ids: tuple[Id, ...]
    units: Tensor
    rows: Tensor
    batch: Batch | None


def nearest(parts: Iterable[tuple[int, Tensor]], queries: Tensor, k: int, own: Tensor) -> tuple[Tensor, Tensor]:
    """The k sketches with the largest cosines, by one pass over all of them.

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
    for first, values in parts:
        norms = values.norm(dim=1)
        scale = torch.where(norms > 0, 1 / norms, 0.0)
        found = torch.arange(first, first + len(values))
        cosines = (queries @ values.T).mul_(scale)
        cosines[:, norms == 0] = -torch.inf
        is_own = (own >= first) & (own < first + len(values))
        cosines[is_own, own[is_own] - first] = -torch.inf
        best, places = merge_best(best, places, cosines, found.expand_as(cosines), k)
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
    best = torch.full((len(candidates), k), -torch.inf, dtype=torch.float64)
    places = torch.full((len(candidates), k), -1)
    for start in range(0, len(candidates), RANKED):
        part = slice(start, start + RANKED)
        chosen = candidates[part]
        rows = torch.unique(chosen[chosen >= 0])
        if not len(rows):
            continue
        batch = take(queries.rows[part].tolist()) if queries.batch is None else queries.batch[part]
        similarities = torch.full((len(batch), len(rows)), torch.nan, dtype=torch.float64)
        for r, c, block in kernel.similarity_blocks(batch, take(rows.tolist()), normalization):
            similarities[r, c] = block.cpu().clamp(-1, 1)
        values = similarities.gather(1, torch.searchsorted(rows, chosen.clamp(min=int(rows[0]))))
        values = values.masked_fill((chosen < 0) | values.isnan(), -torch.inf)
        best[part], places[part] = merge_best(best[part], places[part], values, chosen, k)
    places[best == -torch.inf] = -1
    return best, places


def units_of(values: Tensor) -> Tensor:
    """Sketches divided by their lengths; zeros stay."""
    norms = values.norm(dim=1, keepdim=True)
    return values * torch.where(norms > 0, 1 / norms, 0.0)
