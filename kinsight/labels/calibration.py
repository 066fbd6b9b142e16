"""Calibration: evidence for each label becomes probabilities that are right as often as they say.

    p = softmax(sharpness * evidence)    q = (1 - noise) p + noise (1 - p) / (number of labels - 1)

Sharpness and noise are those under which the labels, as they were given, are most likely; evidence about a sample must
not have seen its own label. Reference: Guo, Pleiss, Sun, Weinberger (2017), "On calibration of modern neural networks".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

N_FITTED = 20_000
"""Samples that the two numbers are fitted to, at most."""

MOST_NOISE = 0.5
"""More wrong labels than right ones would turn all evidence around."""

LEAST = 1e-12
"""Probabilities below it do not get any less likely."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Probabilities of labels.

    Args:
        values: q, [n b]; nan where there is no evidence.
        sharpness: what evidence is multiplied by.
        noise: share of labels that are as good as drawn at random.
    """

    values: Tensor
    sharpness: float
    noise: float


def calibrated(evidence: Tensor, labels: Tensor) -> Calibrated:
    """Probabilities of labels, such that the labels given are most likely.

    Args:
        evidence: for each label, [n b]; rows without evidence are nan.
        labels: place of each sample's label, [n].
    """
    n_labels = evidence.shape[1]
    known = (~evidence.isnan().any(dim=1)).nonzero().flatten()
    if n_labels == 1 or not len(known):
        return Calibrated(evidence * 0 + 1, 1.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    chosen = known[torch.randperm(len(known), generator=generator)[:N_FITTED]]
    few, own = evidence[chosen], labels[chosen]
    scale = float(few.std(dim=1).mean())
    logarithms = torch.tensor([-torch.tensor(max(scale, 1e-12)).log(), -3.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithms], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        q = _probabilities(few, logarithms[0].exp(), MOST_NOISE * logarithms[1].sigmoid())
        loss = -q.gather(1, own[:, None]).clamp(min=LEAST).log().mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    sharpness, noise = logarithms.detach()[0].exp(), MOST_NOISE * logarithms.detach()[1].sigmoid()
    return Calibrated(_probabilities(evidence, sharpness, noise), float(sharpness), float(noise))


def _probabilities(evidence: Tensor, sharpness: Tensor, noise: Tensor) -> Tensor:
    p = (sharpness * evidence).softmax(dim=1)
    return (1 - noise) * p + noise / (evidence.shape[1] - 1) * (1 - p)
