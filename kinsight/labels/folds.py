"""Folds: parts of a data set that are held out in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kinsight.errors import InputError
from kinsight.samples import Samples


@dataclass(frozen=True, eq=False)
class Folds:
    """Which fold each sample of a data set is in.

    Args:
        numbers: from 0 on, [n].
        n_folds: how many there are.
    """

    numbers: Tensor
    n_folds: int

    @staticmethod
    def random(n: int, n_folds: int = 5, *, seed: int = 0) -> Folds:
        """Folds of as equal size as can be.

        Raises:
            InputError: fewer than 2, or more than samples.
        """
        if not 2 <= n_folds <= n:
            raise InputError(f"n_folds is {n_folds}, for {n} samples: ask for 2 to {n}.")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return Folds((torch.arange(n) % n_folds)[order.argsort()], n_folds)

    def held_out(self, fold: int) -> Tensor:
        """Positions of the samples in a fold."""
        return (self.numbers == fold).nonzero().flatten()

    def training(self, data: Samples, fold: int) -> Samples:
        """All samples but those of a fold."""
        return Samples(data.take((self.numbers != fold).nonzero().flatten().tolist()), class_names=data.class_names)
