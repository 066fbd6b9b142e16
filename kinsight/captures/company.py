"""A sample's output must not depend on the company it is in: which other samples are in its batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
    """Raise where outputs change when samples are in other company: every second sample, then the rest.

    A lone sample is run again in the company of a copy: that shows noise.

    Args:
        model: the module.
        output: what is differentiated.
        batch: the samples.
        outputs: their outputs, [n c].
        precision: the coarsest any part of the model computes in.
        first: look at some `FEW` samples only, spread over the batch from this number on (modulo their distance).

    Raises:
        MixedSamplesError: an output differs, with the sample's id.
    """
    n = len(batch)
    parts = [range(0, n, 2), range(1, n, 2)] if n > 1 else [range(1)]
    if first is not None and n > 2 * FEW:
        parts = [range(first % (n // FEW), n, n // FEW)]
    scale = float(outputs.detach().abs().max()) if outputs.numel() else 0.0
    for part in parts:
        places = list(part) if len(part) > 1 else [part[0], part[0]]
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
