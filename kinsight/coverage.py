"""The proof that nothing was left out, swapped or counted twice.

For random weights w [n c], sum_nc w_nc grad_nc is computed twice for every parameter: from the captures, and by ONE
ordinary backward pass of sum_nc w_nc f_nc. A missed use, a mis-read layout, permuted or mixed samples, a factor 2: all
of them make the two differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kinsight.capture import sample_tags, widen
from kinsight.contractions import in_float64
from kinsight.gradients import Gradients

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference allowed, in units of the sum were nothing to cancel. Honest errors: 1e-15, 1e-7, 1e-2, 1e-3."""


def unexplained(outputs: Tensor, gradients: Mapping[str, Gradients], leaves: Mapping[str, Tensor]) -> dict[str, float]:
    """Parameters whose captured gradients contradict an ordinary backward pass, with the relative difference.

    The weights are w_n = r_n / |g_n| with r distinct, spaced and of random sign: signs alone would miss half of
    all swaps of two samples, and unscaled weights would hide small gradients. The scale of the comparison is
    sqrt(sum_n w_n^2 bound_n^2), not the result itself: the bias of attention keys has gradient 0.

    Args:
        outputs: [n c], with their graph.
        gradients: what was captured, by parameter.
        leaves: the parameters themselves, by name.

    Returns:
        Name -> |difference| / scale for every parameter above `TOLERANCE`. Empty when all is explained.
    """
    n, c = outputs.shape
    generator = torch.Generator().manual_seed(1)
    squares = [in_float64(each.bound()).cpu() ** 2 for each in gradients.values()]
    norms = torch.stack(squares).sum(dim=0).sqrt()
    scaled = sample_tags(n, generator) / torch.where(norms > 0, norms, 1.0)
    across = sample_tags(c, generator)
    weights = scaled[:, None] * across
    expected = torch.autograd.grad(
        outputs,
        [leaves[name] for name in gradients],
        weights.to(outputs),
        retain_graph=True,
        allow_unused=True,
    )
    failed = {}
    for (name, captured), truth in zip(gradients.items(), expected, strict=True):
        found = in_float64(captured.weighted_sum(weights.to(captured.tensors[0])[None])[0])
        scale = float((scaled.square() * in_float64(captured.bound()).cpu().square()).sum().sqrt() * across.abs().max())
        truth = torch.zeros_like(found) if truth is None else in_float64(widen(truth))
        difference = float((found - truth).norm())
        if not difference <= TOLERANCE[outputs.dtype] * scale:
            failed[name] = difference / scale if scale > 0 else float("inf")
    return failed
