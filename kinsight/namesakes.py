"""Which queries are samples of the data themselves: those of the same id, and of the same inputs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from kinsight.batches import Batch, as_tensor, has_samples, is_same, leaves
from kinsight.errors import NamesakeWarning
from kinsight.samples import Samples

READ_AT_ONCE = 1024
"""Samples whose inputs are compared at once."""


def self_positions(rows: Samples, columns: Samples) -> Tensor:
    """Where each sample of the rows lies among the columns; -1 where it does not. [n].

    Ids name the same samples where both count the positions of the same data; or where both sides were given theirs,
    and the inputs are the same: two folders may hold other images of one name.

    Warns:
        NamesakeWarning: samples have the id of another one.
    """
    if rows is columns:
        return torch.arange(len(rows))
    if rows.numbered_by is not columns.numbered_by:
        return torch.full((len(rows),), -1)
    place = {id_: position for position, id_ in enumerate(columns.ids)}
    places = torch.tensor([place.get(id_, -1) for id_ in rows.ids])
    if rows.numbered_by is None:
        places = _without_namesakes(rows, columns, places)
    return places


def _without_namesakes(rows: Samples, columns: Samples, places: Tensor) -> Tensor:
    named = (places >= 0).nonzero().flatten()
    starts = range(0, len(named), READ_AT_ONCE)
    blocks = [named[start : start + READ_AT_ONCE] for start in starts]
    parts = [_are_same(rows, columns, block, places[block]) for block in blocks]
    namesakes = named[~torch.cat(parts)] if parts else named
    if len(namesakes):
        first = rows.ids[int(namesakes[0])]
        warnings.warn(
            f"{len(namesakes)} of {len(rows)} queries have the id of a sample of the data, and other inputs, such as "
            f"{first!r}: they are taken for other samples. Results name both alike; give the queries ids of their own.",
            NamesakeWarning,
            stacklevel=2,
        )
    return places.index_fill(0, namesakes, -1)


def _are_same(rows: Samples, columns: Samples, asked: Tensor, places: Tensor) -> Tensor:
    """Whether the inputs of some rows are those of some columns, one by one. [q]."""
    one, other = rows.take(asked), columns.take(places)
    if not _are_padded_apart(one, other):
        return same_inputs(one, other)
    pairs = zip(asked.tolist(), places.tolist(), strict=True)
    return torch.cat([same_inputs(rows.take([i]), columns.take([j])) for i, j in pairs])


def _are_padded_apart(one: Batch, other: Batch) -> bool:
    """Whether samples have other shapes in the two: then they may be as long as the longest of their batch."""
    shapes = [[leaf.shape[1:] for _, leaf in leaves(batch.inputs) if has_samples(leaf)] for batch in (one, other)]
    return shapes[0] != shapes[1]


def same_inputs(one: Batch, other: Batch) -> Tensor:
    """Whether each sample of a batch has the inputs of that of another, in the lesser precision of the two. [n].

    Example:
        >>> x = torch.tensor([[0.1, 2.0], [torch.nan, 4.0]])
        >>> same_inputs(Batch(x), Batch(x.double())).tolist()
        [True, True]
        >>> same_inputs(Batch(x), Batch(x.flip(0))).tolist()
        [False, False]
    """
    theirs = dict(leaves(other.inputs))
    found = torch.full((len(one),), dict(leaves(one.inputs)).keys() == theirs.keys())
    for name, leaf in leaves(one.inputs):
        found &= _same_rows(leaf, theirs.get(name))
    return found


def _same_rows(one: Any, other: Any) -> Tensor:
    if has_samples(one) != has_samples(other):
        return torch.as_tensor(False)
    if not has_samples(one):
        return torch.as_tensor(is_same(one, other))
    x, y = as_tensor(one).detach().cpu(), as_tensor(other).detach().cpu()
    if x.shape != y.shape:
        return torch.as_tensor(False)
    if x.dtype != y.dtype:
        both_float = x.is_floating_point() and y.is_floating_point()
        least = min((x.dtype, y.dtype), key=lambda dtype: dtype.itemsize)
        common = least if both_float else torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(common), y.to(common)
    differs: Tensor = (x != y) & ~((x != x) & (y != y))  # nan is nan
    return differs.reshape(len(x), -1).any(dim=1).logical_not()
