"""The loss of each sample, and the length of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from kinsight.kernel import GradientKernel
from kinsight.labels.votes import known_targets
from kinsight.outputs import loss
from kinsight.samples import Samples

Kind: TypeAlias = Literal["cross_entropy", "mse"] | Callable[[Any, Tensor], Tensor]


class LossValue:
    """The loss of each sample.

    Args:
        model: any module, in eval mode. It comes back as it was.
        kind: of loss: 'cross_entropy', 'mse', or a callable (what the model returned, targets) -> [n].
    """

    def __init__(self, model: nn.Module, kind: Kind = "cross_entropy") -> None:
        self.kernel = GradientKernel(model, loss(kind))

    def label_scores(self, data: Any) -> Tensor:
        """The loss. [n].

        Raises:
            TargetError: the data has no targets.
        """
        samples = Samples.wrap(data)
        known_targets(samples)
        return torch.cat([self.kernel.outputs(batch)[:, 0].detach().cpu().double() for batch in samples.batches()])


class SelfInfluence:
    """The squared length of the loss's gradient over the parameters: what a sample does to itself.

    Args:
        model: any module, in eval mode. It comes back as it was.
        kind: of loss, as for `LossValue`.

    Reference:
        Koh and Liang (2017), "Understanding black-box predictions via influence functions"; Pruthi, Liu, Sundararajan,
        Kale (2020), "Estimating training data influence by tracing gradient descent".
    """

    def __init__(self, model: nn.Module, kind: Kind = "cross_entropy") -> None:
        self.kernel = GradientKernel(model, loss(kind))

    def label_scores(self, data: Any) -> Tensor:
        """The squared length. [n].

        Raises:
            TargetError: the data has no targets.
        """
        samples = Samples.wrap(data)
        known_targets(samples)
        size = self.kernel.block_size(samples)
        return torch.cat([self.kernel.diag(batch).cpu().double() for batch in samples.batches(size)])
