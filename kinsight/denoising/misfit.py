"""Misfit: are the residuals of samples that the network finds alike alike themselves? Noise would not be.

What a fit by least squares leaves of independent noise e is r = (1 - H) e, hardly correlated between samples. What a
network cannot express, or was not given the time to, is shared by samples that it finds alike. The statistic is that of
Moran, over pairs of a sample and its nearest neighbors,

    I = mean over pairs of r_i . r_j / mean over samples of |r_i|^2

beside its mean and standard deviation over draws of e.

Reference: Moran (1950), "Notes on continuous stochastic phenomena"; Cliff and Ord (1981), "Spatial processes", for the
residuals of regressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kinsight.kernel import GradientKernel
from kinsight.neighbors import neighbors
from kinsight.samples import Samples

N_ANCHORS, N_NEIGHBORS = 1000, 3
"""Samples at most whose neighbors are looked at, which keeps it linear in the number of samples; neighbors of each."""


@dataclass(frozen=True)
class Misfit:
    """How far the residuals of neighbors are alike.

    Args:
        correlation: I, of the residuals there are.
        of_noise: its mean, were they nothing but what is left of noise.
        deviation: its standard deviation then.
    """

    correlation: float
    of_noise: float
    deviation: float

    @property
    def score(self) -> float:
        """How far the correlation is above that of noise, in standard deviations; nan where there are no pairs."""
        return (self.correlation - self.of_noise) / self.deviation if self.deviation > 0 else float("nan")


def misfit(
    kernel: GradientKernel,
    samples: Samples,
    residuals: Tensor,
    of_noise: Tensor,
    counts: Tensor | None = None,
    *,
    seed: int = 0,
) -> Misfit:
    """Whether residuals are what least squares leave of noise.

    Args:
        kernel: says what is alike, by its flat similarity.
        samples: n of them.
        residuals: f - y, [n c].
        of_noise: (1 - H) e for m draws of independent noise e of any size, [n c m].
        counts: which samples take part, [n]; all where left out.
        seed: of the anchors' choice.
    """
    n = len(samples)
    takes_part = torch.ones(n, dtype=torch.bool) if counts is None else counts
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    chosen = order[takes_part[order]][:N_ANCHORS].sort().values
    found = neighbors(kernel, samples.take(chosen.tolist()), samples, N_NEIGHBORS, normalization="flat").positions
    is_pair = (found >= 0) & takes_part[found]
    first, second = chosen[:, None].expand_as(found)[is_pair], found[is_pair]

    def correlation(values: Tensor) -> Tensor:
        products = (values[first] * values[second]).sum(dim=1).mean(dim=0)
        return products / values[takes_part].square().sum(dim=1).mean(dim=0)

    draws = correlation(of_noise)
    return Misfit(float(correlation(residuals)), float(draws.mean()), float(draws.std()))
