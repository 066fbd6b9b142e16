"""What is added to the loss in each arm: similarity, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.mnist.images import Images
from kinsight import GradientKernel, SimilarityLoss
from kinsight.batches import make_batch
from kinsight.outputs import OutputFunction
from kinsight.training.pairs import Augmented

Added = Callable[[Tensor, Tensor], Tensor]
"""From images and their classes to what is added to the loss."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where arms find more images than those of the step.

    Args:
        images: whose class is known.
        everything: all images, [n 1 28 28].
        generator: of what is taken.
        view: images as they are learned from: moved a little, or as they are.
    """

    images: Images
    everything: Tensor
    generator: torch.Generator
    view: Callable[[Tensor], Tensor] = torch.Tensor.contiguous

    def known(self, n: int) -> Images:
        """Some images whose class is known."""
        return self.images[torch.randint(len(self.images), (n,), generator=self.generator)]

    def draw(self, n: int) -> Tensor:
        """Some of all images."""
        return self.everything[torch.randint(len(self.everything), (n,), generator=self.generator)]


def network() -> nn.Sequential:
    """The paper's: 317,069 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.PReLU(), nn.AvgPool2d(2), nn.Conv2d(32, 64, 5), nn.PReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(1024, 256), nn.PReLU(), nn.Linear(256, 10),
    )  # fmt: skip


class OwnClass(OutputFunction):
    """The score of a sample's own class less the mean of the others, [n]."""

    needs_targets = True

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        assert isinstance(returned, Tensor)
        assert targets is not None
        own = (returned * F.one_hot(targets, returned.shape[1])).sum(dim=1)  # no gather: it may move samples
        return own - (returned.sum(dim=1) - own) / (returned.shape[1] - 1)


def nothing(model: nn.Sequential, weight: float, source: Source) -> Added:
    """The baseline."""
    return lambda x, y: torch.zeros(())


def similarity(model: nn.Sequential, weight: float, source: Source) -> Added:
    """Images of one class are made similar in the network's eyes."""
    return SimilarityLoss(model, OwnClass(), weight=weight)


def released(model: nn.Sequential, weight: float, source: Source) -> Added:
    """The sign of the released code: similarity itself is added to what is made small."""
    loss = SimilarityLoss(model, OwnClass(), weight=weight)
    return lambda x, y: -loss(x, y)


def random_pairs(model: nn.Sequential, weight: float, source: Source) -> Added:
    """As many pairs as there are of one class, in groups of the same sizes, but of images taken at random."""
    loss = SimilarityLoss(model, OwnClass(), weight=weight)

    def added(x: Tensor, y: Tensor) -> Tensor:
        others = source.known(len(y))
        return loss(source.view(others.x), others.y, groups=y)

    return added


def features(model: nn.Sequential, weight: float, source: Source) -> Added:
    """Images of one class are made to have features, before the last layer, of one direction."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        units = F.normalize(model[:-1](x), dim=1)
        is_pair = (y[:, None] == y).float().triu(diagonal=1)
        return weight * (1 - (is_pair * (units @ units.T)).sum() / is_pair.sum().clamp(min=1))

    return loss


def gradient_norm(model: nn.Sequential, weight: float, source: Source) -> Added:
    """Gradients are made small: the logarithm of their mean norm, so that their unit does not matter."""
    kernel = GradientKernel(model, OwnClass())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        gradients = kernel.gradients(make_batch(x, y), is_differentiable=True)
        return weight * gradients.self_blocks()[:, 0, 0].sqrt().mean().log()

    return loss


def augmentation_pairs(model: nn.Sequential, weight: float, source: Source) -> Added:
    """Two views of one image, whose class need not be known, are made similar."""
    loss = SimilarityLoss(model, "one_vs_rest", pairs=Augmented(source.view, is_batched=True), weight=weight)
    return lambda x, y: loss(source.draw(len(y)))


def pi_model(model: nn.Sequential, weight: float, source: Source) -> Added:
    """Two views of one image are told the same (Laine and Aila 2017): squares of differences of probabilities."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        images = source.draw(len(y))
        first, second = (model(source.view(images)).softmax(dim=1) for _ in range(2))
        apart: Tensor = (first - second).square().mean()
        return weight * apart

    return loss


ARMS: dict[str, Callable[[nn.Sequential, float, Source], Added]] = {
    "baseline": nothing, "similarity": similarity, "released-sign": released, "features": features,
    "gradient-norm": gradient_norm, "random-pairs": random_pairs, "augmentation-pairs": augmentation_pairs,
    "pi-model": pi_model,
}  # fmt: skip
