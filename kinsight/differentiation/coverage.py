"""The proof that nothing was left out, swapped or counted twice.

For random weights w [n c], sum_nc w_nc grad_nc is computed twice for every parameter: from the captures, and by ONE
ordinary backward pass of sum_nc w_nc f_nc. A missed use, a mis-read layout, permuted or mixed samples, a factor 2: all
of them make the two differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kinsight.captures.layouts import sample_tags
from kinsight.captures.nodes import widen
from kinsight.gradients import Built, Gradients
from kinsight.gradients.contractions import in_float64

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference allowed, in units of the sum were nothing to cancel. Honest errors: 1e-15, 1e-7, 1e-2, 1e-3."""


FLOOR = 1e-6
"""Samples with gradients smaller than this share of the largest are not weighted up further: theirs are rounding."""


def unexplained(
    outputs: Tensor, gradients: Mapping[str, Gradients], leaves: Mapping[str, Tensor], precision: torch.dtype
) -> dict[str, float]:
    """Parameters whose captured gradients contradict an ordinary backward pass, with the relative difference.

    The weights are w_n = r_n / bound_n, up to a common factor, with r distinct, spaced and of random sign: signs alone
    would miss half of all swaps of two samples, and unscaled weights would hide small gradients. bound_n is |g_n| were
    nothing to cancel. The scale of the comparison is sqrt(sum_n w_n^2 bound_n^2) over the parameter, not the result
    itself: the bias of attention keys has gradient 0. Where a generic path knows no such bound, that of all parameters
    stands in.

    Args:
        outputs: [n c], with their graph.
        gradients: what was captured, by parameter.
        precision: the coarsest any part of the model computes in.
        leaves: the parameters themselves, by name. One that was not captured has to have gradient 0.

    Returns:
        Name -> |difference| / scale for every parameter above `TOLERANCE`. Empty when all is explained.
    """
    n, c = outputs.shape
    generator = torch.Generator().manual_seed(1)
    bounds = {name: in_float64(each.bound().detach()).cpu() for name, each in gradients.items()}
    norms = torch.stack([torch.zeros(n, dtype=torch.float64), *(b**2 for b in bounds.values())]).sum(dim=0).sqrt()
    largest = float(norms.max())
    shares = (norms / largest).clamp(min=FLOOR) if largest > 0 else torch.ones_like(norms)
    scaled = sample_tags(n, generator) / shares
    across = sample_tags(c, generator)
    weights = scaled[:, None] * across
    expected = torch.autograd.grad(
        outputs,
        list(leaves.values()),
        weights.to(outputs),
        retain_graph=True,
        allow_unused=True,
    )
    failed = {}
    for (name, leaf), truth in zip(leaves.items(), expected, strict=True):
        captured = gradients.get(name)
        gap = in_float64(torch.zeros_like(leaf) if truth is None else widen(truth))
        if captured is not None:
            found = captured.weighted_sum(weights.to(captured.tensors[0])[None])[0].detach()
            gap = in_float64(found) - gap
        is_bounded = captured is not None and not (isinstance(captured, Built) and captured.uncancelled is None)
        bound = bounds[name] if is_bounded else norms
        scale = float((scaled * bound).norm() * across.abs().max())
        difference = float(gap.norm())
        if not difference <= TOLERANCE[precision] * scale:
            failed[name] = difference / scale if scale > 0 else float("inf")
    return failed
