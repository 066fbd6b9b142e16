"""Counts and label suspects from sketches: the questions of all pairs, without a pass through the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kinsight.density import above, counted, powers
from kinsight.indexing.knn import sketches_of
from kinsight.indexing.queries import Queries, units_of
from kinsight.indexing.rows import ROWS, matrix_of
from kinsight.indexing.store import Store
from kinsight.progress import Advance

HALF_A_STEP = 0.52
"""Standard error of a count that may be off by one: 1.96 times it holds one."""

HELD = 4096
"""Rows whose sketches are compared with all others at once."""


def each_with_itself(store: Store, queries: Queries | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Sketches of all samples, or queries; those that the index has of them; and the rows of these. Block by block.

    Yields:
        Two of [q dim], float64, and one of [q]. The row of a query that the index has not is -1, its sketch there 0.
    """
    if queries is None:
        for first, values in sketches_of(store):
            wide = values.double()
            yield wide, wide, torch.arange(first, first + len(wide))
        return
    for start in range(0, len(queries), HELD):
        rows = queries.rows[start : start + HELD]
        known = matrix_of(store.take(ROWS, rows.clamp(min=0).tolist(), ["sketch"])["sketch"])
        known = torch.where(rows[:, None] >= 0, known, 0.0)
        yield queries.sketches[start : start + HELD].double(), known.double(), rows


def cosines(store: Store, rows: Tensor | Queries | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, cosines of sketches) of some samples, or of all, with all, block by block.

    Those of samples with zero gradient are nan.
    """
    n = store.n_rows(ROWS) if rows is None else len(rows)
    for start in range(0, n, HELD):
        if isinstance(rows, Queries):
            values = rows.sketches[start : start + HELD]
        elif rows is None:
            values = matrix_of(store.slice(ROWS, start, min(n, start + HELD), ["sketch"])["sketch"])
        else:
            values = matrix_of(store.take(ROWS, rows[start : start + HELD].tolist(), ["sketch"])["sketch"])
        held = _units_or_nan(values.float())
        for first, values in sketches_of(store):
            block = held @ _units_or_nan(values).T
            yield slice(start, start + len(held)), slice(first, first + len(values)), block


def _units_or_nan(values: Tensor) -> Tensor:
    units = units_of(values)
    units[~values.any(dim=1)] = torch.nan
    return units


def soft_counts(
    store: Store, excess: float, queries: Queries | None = None, *, include_self: bool
) -> tuple[Tensor, Tensor]:
    """s(x) . sum_j s(x_j) for every sample x, or query: a pass to add up, one to read; and its error. [n] each.

    Inner products of sketches are unbiased, and so is their sum. Its error is that of the inner product of u(x) with
    S = sum_j u(x_j): sqrt((|S|^2 + N_S(x)^2) / dim) for a dense projection, and `excess` times that for this one.
    """
    dim, total = store.about["dim"], torch.zeros(store.about["dim"], dtype=torch.float64)
    for _, values in sketches_of(store):
        total += values.double().sum(dim=0)
    counts, undefined = [], []
    for wide, itself, rows in each_with_itself(store, queries):
        is_there = (rows >= 0).double()
        others = wide @ total - is_there * (wide * itself).sum(dim=1)  # x itself is known exactly
        counts.append(others + is_there * include_self)
        undefined.append(~wide.any(dim=1))
    found, is_undefined = torch.cat(counts), torch.cat(undefined)
    errors = excess * ((total.square().sum() + found.square()) / dim).sqrt()
    found[is_undefined] = errors[is_undefined] = torch.nan
    return found, errors


def hard_counts(
    store: Store,
    taus: Tensor,
    error: float,
    queries: Queries | None = None,
    *,
    include_self: bool,
    advance: Advance,
) -> tuple[Tensor, Tensor]:
    """How many cosines are above each threshold, and the root mean square error of that. [n k] each.

    With normal errors of standard deviation `error`, a cosine is on the wrong side of tau with the probability
    p = Phi(-|cos - tau| / error). Were they independent, the count would vary by sum p (1 - p), and be off by sum +-p
    on average; were they one and the same for all neighbors of a sample, it would be off by half of what it changes by
    between tau - error and tau + error. They are something between: the squares of all three are added up. Where a
    change by one is to be expected in more than one of forty cases, it is within two errors.
    """
    at, below, beyond = (above(taus + move) for move in (0.0, -error, error))
    scale = max(error, 1e-12) * 2**0.5

    def chances(distance: Tensor) -> Tensor:
        """Bias, variance and expected changes of the counts of cosines at some distance of a threshold. [r 3]."""
        wrong = torch.special.erfc(distance.abs() / scale) / 2
        return torch.stack([torch.where(distance > 0, -wrong, wrong), wrong * (1 - wrong), wrong]).sum(dim=2).T

    def with_error(similarities: Tensor) -> Tensor:
        others = similarities.masked_fill(similarities == 1.0, -torch.inf)  # but x itself
        of_each = torch.stack([chances(others - tau) for tau in taus], dim=2)  # [r 3 k]; one after another, for memory
        return torch.cat([at(similarities), of_each.flatten(1), below(others) - beyond(others)], dim=1)

    values, bias, variance, flips, between = _counted(
        store, with_error, 5, queries, include_self=include_self, advance=advance
    )
    errors = (variance + bias.square() + between.square() / 4).sqrt()
    return values, torch.where(flips > 1 / 40, errors.clamp(min=HALF_A_STEP), errors)


def power_counts(
    store: Store,
    power: float,
    error: float,
    queries: Queries | None = None,
    *,
    include_self: bool,
    advance: Advance,
) -> tuple[Tensor, Tensor]:
    """Sums of powers of positive cosines, and half of what they change by when all are off by `error`. [n 1] each."""
    count = powers(power)

    def with_error(similarities: Tensor) -> Tensor:
        low, high = (torch.where(similarities == 1.0, 1.0, similarities + move) for move in (-error, error))
        return torch.cat([count(similarities), count(low), count(high.clamp(max=1))], dim=1)

    values, low, high = _counted(store, with_error, 3, queries, include_self=include_self, advance=advance)
    return values, (high - low) / 2


def _counted(
    store: Store,
    count: Callable[[Tensor], Tensor],
    n_parts: int,
    queries: Queries | None,
    *,
    include_self: bool,
    advance: Advance,
) -> tuple[Tensor, ...]:
    own = torch.arange(store.n_rows(ROWS)) if queries is None else queries.rows
    return counted(cosines(store, queries), own, count, include_self=include_self, advance=advance).chunk(
        n_parts, dim=1
    )
