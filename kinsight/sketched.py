"""Sums over all samples of an index, weighted by the similarities of its sketches."""

from __future__ import annotations

import torch
from torch import Tensor

from kinsight.audits import cosines
from kinsight.averages import Averages, Labels
from kinsight.contents import Contents
from kinsight.errors import InputError
from kinsight.kernel_products import KernelProducts
from kinsight.progress import progress_bar
from kinsight.uncertainty import Support
from kinsight.unit_gradients import warn_undefined


def averages_of(index: Contents, labels: Labels, *, include_self: bool) -> Averages:
    """Means of labels around every sample, in two passes over sketches.

    sum_j s_i . s_j v_j = s_i . T with T = sum_j s_j v_j, v being 1, labels, predictions and residuals. It is without
    bias, and its standard error that of s_i . T: sqrt((|T|^2 + (s_i . T)^2) / dim), times what the index's sketches
    were measured to be worse than a dense projection.
    """
    outputs = index.outputs.double()
    total = torch.zeros(index.dim, labels.n_columns, dtype=torch.float64)
    for first, values in index.sketches():
        rows = slice(first, first + len(values))
        total += values.double().T @ labels.columns(rows, outputs[rows])
    sums, is_known = [], []
    for first, values in index.sketches():
        rows, wide, known = slice(first, first + len(values)), values.double(), values.any(dim=1)
        own = labels.columns(rows, outputs[rows])
        of_others = wide @ total - wide.square().sum(dim=1)[:, None] * own
        sums.append((of_others + own * include_self).masked_fill(~known[:, None], torch.nan))
        is_known.append(known)
    is_zero = ~torch.cat(is_known)
    warn_undefined([index.ids[row] for row in is_zero.nonzero().flatten().tolist()])
    found, known = torch.cat(sums), torch.cat(is_known).double()
    errors = index.excess * ((total.square().sum(dim=0) + found.square()) / index.dim).sqrt()
    products = KernelProducts(found, known, outputs, float(known.sum()))
    return labels.averaged(found, products, index.ids, index.normalization, len(index), errors)


def support_of(index: Contents, *, is_signed: bool, progress: bool) -> Support:
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
    sums, errors = _signed_sums(index, norms) if is_signed else _absolute_sums(index, norms, progress=progress)
    divisor = norms.masked_fill(norms == 0, torch.nan)
    warn_undefined([index.ids[row] for row in (norms == 0).nonzero().flatten().tolist()])
    return Support(index.ids, sums / divisor, is_signed, len(index), errors / divisor)


def _signed_sums(index: Contents, norms: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j |g_j| cos_ij, and its standard error. [n] each."""
    total, found = torch.zeros(index.dim, dtype=torch.float64), []
    for first, values in index.sketches():
        total += norms[first : first + len(values)] @ values.double()
    for first, values in index.sketches():
        wide = values.double()
        found.append(wide @ total + norms[first : first + len(wide)] * (1 - wide.square().sum(dim=1)))
    sums = torch.cat(found)
    return sums, index.excess * ((total.square().sum() + sums.square()) / index.dim).sqrt()


def _absolute_sums(index: Contents, norms: Tensor, *, progress: bool) -> tuple[Tensor, Tensor]:
    """sum_j |g_j| |cos_ij|, and what it changes by when all cosines are off by the index's error. [n] each."""
    sums = torch.zeros(len(index), dtype=torch.float64)
    with progress_bar("support", len(index) ** 2, is_shown=progress) as advance:
        for r, c, block in cosines(index.store):
            is_self = torch.arange(c.start, c.stop) == torch.arange(r.start, r.stop)[:, None]
            sums[r] += block.double().nan_to_num(nan=0.0).abs().masked_fill(is_self, 1.0) @ norms[c]
            advance(block.numel())
    return sums, index.error * (norms.sum() - norms)
