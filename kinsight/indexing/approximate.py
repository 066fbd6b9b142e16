"""Approximate search of sketches: an index of partitions, and how many of the true neighbors it finds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kinsight.indexing.knn import sketches_of
from kinsight.indexing.queries import units_of
from kinsight.indexing.rows import ROWS, matrix_of
from kinsight.indexing.search import nearest
from kinsight.indexing.store import Store
from kinsight.plan import some_of

SEARCH = "search"
"""What the manifest calls it."""

LEAST_ROWS = 256
"""Samples below which there is nothing to partition."""

N_QUERIES, K = 100, 10
"""Samples whose neighbors are searched for to measure the recall, and how many of each."""

PROBES = (8, 16, 32, 64, 128, 256)
"""Numbers of partitions that are tried, until the recall is as asked for."""

REFINE = 10
"""Times as many sketches are compared in full as neighbors are asked for."""


def build_search(store: Store, least_recall: float) -> dict[str, Any]:
    """Commit a search index, with as many probes as the recall asked for needs, or all of them; and what it then is."""
    n = store.n_rows(ROWS)
    n_partitions = max(1, min(n // 64, math.isqrt(n)))
    store.index_vectors(ROWS, "sketch", n_partitions)
    rows = torch.tensor(some_of(n, N_QUERIES, store.about["seed"]))
    queries = units_of(matrix_of(store.take(ROWS, rows.tolist(), ["sketch"])["sketch"]).float())
    truth, _ = nearest(sketches_of(store), queries, K, rows)
    found: dict[str, Any] = {}
    for n_probes in [each for each in PROBES if each < n_partitions] + [n_partitions]:
        found = {"n_probes": n_probes, "refine": REFINE, "n_partitions": n_partitions, "n_rows": n}
        values, _ = search(store, queries, K, rows, found)
        # ties count: a neighbor is found where one as close is
        recall = float((values >= truth - TIE).double().mean())
        found |= {"recall": recall, "k": K, "n_queries": len(rows)}
        if recall >= least_recall:
            break
    store.update(**{SEARCH: found})
    return found


TIE = 1e-3
"""Similarities that differ by less are one as good as the other."""


def search(store: Store, queries: Tensor, k: int, own: Tensor, how: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """`nearest` of search.py, approximately: cosines, [q k], -inf where fewer were found, and rows, [q k]."""
    best = torch.full((len(queries), k), -torch.inf)
    places = torch.full((len(queries), k), -1)
    for number, (query, row) in enumerate(zip(queries, own.tolist(), strict=True)):
        if not bool(query.any()):
            continue
        found = store.nearest(ROWS, "sketch", query, k + 1, n_probes=how["n_probes"], refine=how["refine"])
        rows = torch.tensor(found["row"].to_numpy())
        values = 1 - torch.tensor(found["_distance"].to_numpy())
        is_other = (rows != row) & ~values.isnan()
        rows, values = rows[is_other][:k], values[is_other][:k]
        best[number, : len(rows)], places[number, : len(rows)] = values, rows
    return best, places
