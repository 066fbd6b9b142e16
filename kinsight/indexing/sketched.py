"""Sums over all samples of an index, weighted by the similarities of its sketches."""

from __future__ import annotations

import torch
from torch import Tensor

from kinsight.averages import Averages, Labels
from kinsight.differentiation.unit_gradients import warn_undefined
from kinsight.errors import InputError
from kinsight.indexing.audits import cosines, each_with_itself
from kinsight.indexing.contents import Contents
from kinsight.indexing.queries import Queries, SketchedQueries
from kinsight.kernel_products import KernelProducts, Weighting
from kinsight.progress import progress_bar
from kinsight.uncertainty import Support


def check_kernel_known(index: Contents, what: str) -> None:
    """Raise where sketches say nothing of the kernel itself.

    Raises:
        InputError: they are of whitened gradients of several outputs.
    """
    c = index.outputs.shape[1]
    if index.normalization != "flat" and c > 1:
        raise InputError(
            f"{what} need the kernel itself, and this index has sketches of whitened gradients of {c} outputs: build "
            "one with normalization='flat'."
        )


def averages_of(
    index: Contents, labels: Labels, queries: SketchedQueries | None = None, *, weighting: Weighting, include_self: bool
) -> Averages:
    """Means of labels around every sample, or query, in two passes over sketches.

    sum_j s_i . s_j v_j = s_i . T with T = sum_j s_j v_j, v being 1, labels, predictions and residuals; for the kernel
    itself, each sketch is as long as the gradient. It is without bias, and its standard error that of s_i . T:
    sqrt((|T|^2 + (s_i . T)^2) / dim), times what the sketches were measured to be worse than a dense projection.
    """
    outputs, norms = index.outputs.double(), index.norms
    lengths, asked = norms, norms if queries is None else queries.norms
    if weighting != "kernel":
        lengths, asked = (lengths > 0).double(), (asked > 0).double()
    total = torch.zeros(index.dim, labels.n_columns, dtype=torch.float64)
    for first, values in index.sketches():
        rows = slice(first, first + len(values))
        total += values.double().T @ (lengths[rows, None] * labels.columns(rows, outputs[rows]))
    sums = []
    for wide, itself, places in each_with_itself(index.store, queries):
        there, is_there = places.clamp(min=0), (places >= 0).double()[:, None]
        own = is_there * lengths[there, None] * labels.columns(there, outputs[there])
        sums.append(wide @ total + own * (float(include_self) - (wide * itself).sum(dim=1, keepdim=True)))
    found = torch.cat(sums)
    errors = index.excess * ((total.square().sum(dim=0) + found.square()) / index.dim).sqrt() * asked[:, None]
    found = found * asked[:, None]
    is_zero = asked == 0
    if weighting != "kernel":
        found[is_zero] = torch.nan
    ids, own_outputs = (index.ids, outputs) if queries is None else (queries.ids, queries.outputs.double())
    warn_undefined([ids[row] for row in is_zero.nonzero().flatten().tolist()])
    products = KernelProducts(found, asked, own_outputs, float(lengths.sum()))
    return labels.averaged(found, products, ids, weighting, len(index), errors)


def support_of(index: Contents, queries: SketchedQueries | None = None, *, is_signed: bool, progress: bool) -> Support:
    """How much of the data moves along with each sample: sum_j |g_j| |cos_ij| / |g_i|, or, in linear time, with signs.

    With absolute values the error is what it changes by when all cosines are off by the index's error: random errors of
    cosines near 0 add up, too.

    Raises:
        InputError: the index is of several outputs, whose influences sketches of sums over them do not tell.
    """
    if index.outputs.shape[1] > 1:
        raise InputError(
            f"The index is of {index.outputs.shape[1]} outputs: how they move each other is not in its sketches. Ask "
            "the kernel, or build an index of one output, such as one_vs_rest."
        )
    norms = index.norms
    if is_signed:
        sums, errors = _signed_sums(index, norms, queries)
    else:
        sums, errors = _absolute_sums(index, norms, queries, progress=progress)
    ids, asked = (index.ids, norms) if queries is None else (queries.ids, queries.norms)
    divisor = asked.masked_fill(asked == 0, torch.nan)
    warn_undefined([ids[row] for row in (asked == 0).nonzero().flatten().tolist()])
    return Support(ids, sums / divisor, is_signed, len(index), errors / divisor)


def _signed_sums(index: Contents, norms: Tensor, queries: Queries | None) -> tuple[Tensor, Tensor]:
    """sum_j |g_j| cos_ij, and its standard error. [n] each."""
    total, found = torch.zeros(index.dim, dtype=torch.float64), []
    for first, values in index.sketches():
        total += norms[first : first + len(values)] @ values.double()
    for wide, itself, places in each_with_itself(index.store, queries):
        own = torch.where(places >= 0, norms[places.clamp(min=0)], 0.0)
        found.append(wide @ total + own * (1 - (wide * itself).sum(dim=1)))
    sums = torch.cat(found)
    return sums, index.excess * ((total.square().sum() + sums.square()) / index.dim).sqrt()


def _absolute_sums(index: Contents, norms: Tensor, queries: Queries | None, *, progress: bool) -> tuple[Tensor, Tensor]:
    """sum_j |g_j| |cos_ij|, and what it changes by when all cosines are off by the index's error. [n] each."""
    places = torch.arange(len(index)) if queries is None else queries.rows
    sums = torch.zeros(len(places), dtype=torch.float64)
    with progress_bar("support", len(places) * len(index), is_shown=progress) as advance:
        for r, c, block in cosines(index.store, queries):
            is_self = torch.arange(c.start, c.stop) == places[r, None]
            sums[r] += block.double().nan_to_num(nan=0.0).abs().masked_fill(is_self, 1.0) @ norms[c]
            advance(block.numel())
    own = torch.where(places >= 0, norms[places.clamp(min=0)], 0.0)
    return sums, index.error * (norms.sum() - own)
