"""Cross-validation: networks trained without the samples that they judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kinsight.errors import ShapeError, TargetError
from kinsight.kernel import GradientKernel
from kinsight.labels.folds import Folds
from kinsight.labels.votes import Ballots, known_targets
from kinsight.samples import Samples


class OutOfFold:
    """How little of its own label a network says that was trained without the sample.

    Args:
        fit: what trains a network on some samples, as many times as there are folds; in eval mode when it returns.
        n_folds: parts that are held out in turn.
        seed: of the folds.

    Reference:
        Northcutt, Jiang, Chuang (2021), "Confident learning: estimating uncertainty in dataset labels".
    """

    def __init__(self, fit: Callable[[Samples], nn.Module], *, n_folds: int = 5, seed: int = 0) -> None:
        self.fit = fit
        self.n_folds = n_folds
        self.seed = seed

    def predictions(self, data: Any) -> Tensor:
        """What networks say of samples that they have not seen: probabilities of classes, or values. [n c]."""
        samples = Samples.wrap(data)
        is_classes = Ballots.of(known_targets(samples)).classes is not None
        folds, found = Folds.random(len(samples), self.n_folds, seed=self.seed), None
        for fold in range(folds.n_folds):
            kernel = GradientKernel(self.fit(folds.training(samples, fold)))
            places = folds.held_out(fold)
            batches = Samples(samples.take(places.tolist())).batches()
            said = torch.cat([kernel.outputs(batch).detach().cpu().double() for batch in batches])
            found = said.new_empty(len(samples), said.shape[1]) if found is None else found
            found[places] = said.softmax(dim=1) if is_classes else said
        assert found is not None
        return found

    def label_scores(self, data: Any) -> Tensor:
        """One less the probability of the label given; of values, the distance from what is said. [n].

        Raises:
            TargetError: the data has no targets, or classes that the networks have no output for.
            ShapeError: values are not as many as the networks' outputs.
        """
        samples = Samples.wrap(data)
        targets, said = known_targets(samples), self.predictions(samples)
        if targets.is_floating_point():
            values = targets.double().reshape(len(targets), -1)
            if values.shape != said.shape:
                raise ShapeError(
                    f"The networks say {said.shape[1]} numbers a sample and the targets have {values.shape[1]}: they "
                    "would broadcast to something else than a distance. Return as many as targets have."
                )
            distance: Tensor = (said - values).norm(dim=1)
            return distance
        if int(targets.max()) >= said.shape[1]:
            raise TargetError(f"Class {int(targets.max())} has no output: the networks have {said.shape[1]}.")
        return 1 - said.gather(1, targets.long()[:, None])[:, 0]
