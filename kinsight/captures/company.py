"""A sample's output must not depend on the company it is in: which other samples are in its batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kinsight.batches import has_samples, leaves
from kinsight.captures.running import call_model
from kinsight.errors import MixedSamplesError
from kinsight.outputs import OutputFunction, evaluate
from kinsight.samples import Batch

ALONE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest difference, relative to the largest output, between a sample's output in one company and in another."""

FEW = 8
"""Samples that are looked at again where the graph itself says that samples stay apart."""


def refuse_mixed(
    model: nn.Module,
    output: OutputFunction,
    batch: Batch,
    outputs: Tensor,
    precision: torch.dtype,
    *,
    first: int | None = None,
) -> None:
    """Raise where outputs change when samples are in other company: those with small inputs, then the rest.

    Such halves are unlike the whole: what depends on a mean over a batch depends on which of them it is. A lone sample
    is run again in the company of a copy: that shows noise.

    Args:
        model: the module.
        output: what is differentiated.
        batch: the samples.
        outputs: their outputs, [n c].
        precision: the coarsest any part of the model computes in.
        first: look at few samples only: `FEW` that are spread over the batch from this number on (modulo their
            distance), half of them with as many of the smallest inputs, half with the largest.

    Raises:
        MixedSamplesError: an output differs, with the sample's id.
    """
    n = len(batch)
    order = _sums(batch).argsort(stable=True).tolist()
    parts = [order[: n // 2], order[n // 2 :]] if n > 1 else [order]
    if first is not None and n > 2 * FEW:
        spread = list(range(first % (n // FEW), n, n // FEW))
        parts = [[*spread[::2], *order[: FEW // 2]], [*spread[1::2], *order[-FEW // 2 :]]]
    scale = float(outputs.detach().abs().max()) if outputs.numel() else 0.0
    for part in parts:
        places = part if len(part) > 1 else 2 * part
        company = batch[places]
        other = evaluate(output, call_model(model, company.inputs), company.targets, len(places)).detach()
        gaps = (other - outputs.detach()[places]).abs().amax(dim=1) if other.shape[1:] == outputs.shape[1:] else None
        worst = math.inf if gaps is None else float(gaps.max())
        if not worst <= ALONE_TOLERANCE[precision] * scale:
            place = 0 if gaps is None else int(gaps.argmax())
            raise MixedSamplesError(
                f"The output for sample {company.ids[place]!r} differs by {worst:.1e} between a batch of {n} and "
                f"one of {len(places)} (outputs are up to {scale:.1e}): one sample's output depends on the others, "
                "so it has no gradient of its own. Is some layer using batch statistics? Call model.eval(), or "
                "replace that layer."
            )


def _sums(batch: Batch) -> Tensor:
    """Of all numbers that a sample is made of, [n]: roughly, for an order."""
    total = torch.zeros(len(batch))
    for _, leaf in leaves(batch.inputs):
        if isinstance(leaf, Tensor) and has_samples(leaf) and not leaf.is_complex():
            rows = leaf.detach().reshape(len(leaf), -1)
            rows = rows.float() if rows.is_floating_point() and rows.element_size() == 1 else rows  # it has no sums
            total += rows.sum(dim=1, dtype=torch.float32).cpu()
    return total
