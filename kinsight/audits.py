"""Counts and label suspects from sketches: the questions of all pairs, without a pass through the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kinsight.building import ROWS
from kinsight.density import counted
from kinsight.knn import sketches_of
from kinsight.progress import Advance
from kinsight.rows import matrix_of
from kinsight.search import units_of
from kinsight.store import Store

HELD = 4096
"""Rows whose sketches are compared with all others at once."""


def cosines(store: Store, rows: Tensor | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, cosines of sketches) of some samples, or of all, with all, block by block.

    Those of samples with zero gradient are nan.
    """
    chosen = torch.arange(store.n_rows(ROWS)) if rows is None else rows
    for start in range(0, len(chosen), HELD):
        held = matrix_of(store.take(ROWS, chosen[start : start + HELD].tolist(), ["sketch"])["sketch"]).float()
        held = _units_or_nan(held)
        for first, values in sketches_of(store):
            block = held @ _units_or_nan(values).T
            yield slice(start, start + len(held)), slice(first, first + len(values)), block


def _units_or_nan(values: Tensor) -> Tensor:
    units = units_of(values)
    units[~values.any(dim=1)] = torch.nan
    return units


def soft_counts(store: Store, *, include_self: bool) -> tuple[Tensor, Tensor]:
    """s(x) . sum_j s(x_j) for every sample x, one pass to add up and one to read; and its standard error. [n] each.

    Inner products of sketches are unbiased, and so is their sum. Its error is that of the inner product of u(x) with
    S = sum_j u(x_j): sqrt((|S|^2 + N_S(x)^2) / dim).
    """
    dim, total = store.about["dim"], torch.zeros(store.about["dim"], dtype=torch.float64)
    for _, values in sketches_of(store):
        total += values.double().sum(dim=0)
    counts, undefined = [], []
    for _, values in sketches_of(store):
        wide = values.double()
        others = wide @ total - wide.square().sum(dim=1)  # x itself is known exactly
        counts.append(others + (1.0 if include_self else 0.0))
        undefined.append(~values.any(dim=1))
    found, is_undefined = torch.cat(counts), torch.cat(undefined)
    errors = ((total.square().sum() + found.square()) / dim).sqrt()
    found[is_undefined] = errors[is_undefined] = torch.nan
    return found, errors


def counts_between(
    store: Store, count: Callable[[Tensor], Tensor], error: float, *, include_self: bool, advance: Advance
) -> tuple[Tensor, Tensor]:
    """A count of cosines, and half of what it changes by when all of them are off by `error` either way. [n k] each."""
    n = store.n_rows(ROWS)

    def shifted(similarities: Tensor) -> Tensor:
        """The count as it is, with cosines lower, and with cosines higher; x itself, 1, stays."""
        moves = (0.0, -error, error)
        each = [count(torch.where(similarities == 1.0, 1.0, (similarities + move).clamp(max=1.0))) for move in moves]
        return torch.cat(each, dim=1)

    found = counted(cosines(store), torch.arange(n), shifted, include_self=include_self, advance=advance)
    values, low, high = found.chunk(3, dim=1)
    return values, (high - low).abs() / 2
