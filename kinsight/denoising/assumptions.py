"""What self-denoising rests on: the assumptions, each with what was measured of it, and what follows where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from kinsight.denoising.least_squares import LEAST_UNEXPLAINED, Noise
from kinsight.denoising.misfit import Misfit
from kinsight.denoising.smoother import Smoother

MOST_RESIDUAL = 0.2
"""Of the noise in means of labels, that a network may be off a stationary point."""

LEAST_FREEDOM = 0.4
"""Share of the labels that has to be left. A network that follows its labels more closely has moved its own features to
do so, which the linearized smoother does not see: with 0.56 to 0.64 left, the noise was found 4 to 11 % too small, with
0.3 left 20 % (small tanh networks, three seeds)."""

MOST_UNDEFINED = 0.01
"""Share of samples without a mean."""

MOST_ALIKE = 3.0
"""Standard deviations that the residuals of neighbors may be more alike than those of noise: by chance in 1 of 700."""


@dataclass(frozen=True)
class Check:
    """An assumption, and how well it holds.

    Args:
        name: of the assumption.
        value: what was measured.
        limit: up to which, or from which on, it holds.
        is_at_most: whether the value is to be at most the limit; else at least.
        meaning: what follows where it fails.
    """

    name: str
    value: float
    limit: float
    is_at_most: bool
    meaning: str

    @property
    def is_met(self) -> bool:
        """Whether it holds; what is not a number does not."""
        return self.value <= self.limit if self.is_at_most else self.value >= self.limit


def checks(
    noise: Noise, residuals: Tensor, factors: Tensor, smoother: Smoother, missed: Misfit | None
) -> Iterator[Check]:
    """What has to hold for the numbers to mean what they say.

    Args:
        noise: of the labels.
        residuals: E_k[f - y], [q c].
        factors: D, [q].
        smoother: H.
        missed: how far residuals of neighbors are alike; None where there is no noise to be told.
    """
    scale = noise.value if noise.value == noise.value else (noise.unexplained / noise.n_labels) ** 0.5
    ratios = residuals.square().mean(dim=1) / (scale * factors).square().clamp(min=1e-300)
    yield Check(
        "stationarity", float(ratios.nanmean().sqrt()), MOST_RESIDUAL, True,
        "E_k[f - y] over the noise in E_k[y], root mean square over samples. Above, the network is not at a minimum of "
        "the squared error on this data (another loss, early stopping, other data, weight decay or sample weights that "
        "were not passed): its predictions are no means of these labels.",
    )  # fmt: skip
    yield Check(
        "no interpolation", noise.share, LEAST_UNEXPLAINED, False,
        "share of the labels' variance that is left unexplained. Below, every label is reproduced with its noise: the "
        "identity holds for any kernel, and nothing is denoised.",
    )  # fmt: skip
    yield Check(
        "degrees of freedom", noise.freedom / noise.n_labels, LEAST_FREEDOM, False,
        "share of the labels that is left to tell their noise by. Below, the network follows its labels so closely "
        "that their noise is found too small, and so are errors of predictions.",
    )  # fmt: skip
    yield Check(
        "sums that do not cancel", float(factors.isnan().double().mean()), MOST_UNDEFINED, True,
        "share of samples whose sum of the kernel is as good as singular: their means are nan.",
    )  # fmt: skip
    if missed is not None and missed.deviation > 0:
        yield Check(
            "no misfit", missed.score, MOST_ALIKE, True,
            "how much more alike the residuals of neighbors are than what is left of noise alone would be, in standard "
            "deviations. Above, the network misses what such samples share (it is too small, decays too much, or "
            "stopped early): what is called noise has that in it and is too large, and predictions are off by more "
            "than the noise left in them.",
        )  # fmt: skip
    if smoother.n_doubtful:
        yield Check(
            "precision", float(smoother.n_doubtful), 0.0, True,
            "eigenvalues of the kernel that single precision cannot tell from rounding, which were left out. They may "
            "be directions that the network has fitted: take the model and the data to float64.",
        )  # fmt: skip
    if smoother.n_steps:
        yield Check(
            "smoother", smoother.left, smoother.most_left, True,
            f"what is left of the equations after {smoother.n_steps} products with the kernel. Above, the noise left "
            "in predictions is a lower bound: directions of small eigenvalues are missing.",
        )  # fmt: skip
