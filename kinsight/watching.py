"""Watching a network while it is trained: what it finds alike among a few samples, every so many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kinsight.agreement import nearest, shared
from kinsight.errors import InputError
from kinsight.kernel import GradientKernel, Normalization
from kinsight.outputs import OutputFunction
from kinsight.samples import Samples
from kinsight.second_order import as_used, unwrapped

MAX_PROBE = 1024
"""Samples that are watched at most: all their pairs are looked at, every time."""


class SimilarityWatcher:
    """Every so many steps, numbers about how similar a network finds the samples of a fixed probe set.

    Nothing of the training changes: weights, gradients, modes, batch statistics and random numbers stay as they are. In
    distributed training only the first process looks.

    Args:
        model: the network that is being trained, wrapped or not.
        probe: whatever `Samples` takes, up to 1,024 samples; with classes as targets, similarities within and between
            them are told apart.
        every: steps from one look to the next; the first step is looked at.
        output: what is differentiated, as in `GradientKernel`.
        normalization: which similarity.
        n_neighbors: of each sample, compared with those at the last look.
        prefix: of the numbers' names.

    Raises:
        InputError: there are less than 2 or more than 1,024 samples, or steps or neighbors below 1.

    Example:
        >>> import torch, kinsight
        >>> model, probe = torch.nn.Linear(2, 2), kinsight.Samples(torch.randn(8, 2), torch.arange(8) % 2)
        >>> watcher = kinsight.SimilarityWatcher(model, probe, every=10)
        >>> [name.removeprefix("similarity/") for name in watcher.step()]
        ['soft_count', 'within_classes', 'between_classes', 'denoising_factor']
        >>> watcher.step() is None  # not yet
        True
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        every: int = 100,
        output: str | OutputFunction | Callable[[Any], Tensor] = "logits",
        normalization: Normalization = "flat",
        n_neighbors: int = 10,
        prefix: str = "similarity/",
    ) -> None:
        self.probe = Samples.wrap(probe)
        if not 2 <= len(self.probe) <= MAX_PROBE:
            raise InputError(
                f"The probe set has {len(self.probe)} samples: 2 to {MAX_PROBE:,} can be watched, all pairs of them "
                "every time. Take some: samples.take(range(256))."
            )
        for name, value in (("every", every), ("n_neighbors", n_neighbors)):
            if value < 1:
                raise InputError(f"{name} is {value}: it is at least 1.")
        self.kernel = GradientKernel(unwrapped(model), output)
        self.every, self.normalization, self.prefix = every, normalization, prefix
        self.n_neighbors = min(n_neighbors, len(self.probe) - 1)
        self.n_steps = 0
        self._nearest: Tensor | None = None

    def step(self) -> dict[str, float] | None:
        """To be called once a step: the numbers, by name, where it is time for a look; else None."""
        is_due = self.n_steps % self.every == 0
        self.n_steps += 1
        return self.look() if is_due and is_first_process() else None

    def look(self) -> dict[str, float]:
        """The numbers as they are now, by name.

        - soft_count: mean over samples of the mean similarity to all of them;
        - within_classes, between_classes: mean similarity of two samples, where targets are classes;
        - neighbor_overlap: share of each sample's nearest neighbors that were so at the last look;
        - denoising_factor: median over samples of the norm of their kernel weights.

        Undefined similarities, of samples without a gradient, are left out; what is not a number is absent.
        """
        batch = self.probe.take(range(len(self.probe)))
        with torch.inference_mode(False), as_used(self.kernel.model):
            gram = self.kernel(batch).cpu()
            whitened = self.normalization == "whitened" and self.kernel.n_outputs != 1
            similarities = self.kernel.similarity(batch).cpu() if whitened else _cosines(gram)
        found = {"soft_count": similarities.nanmean(), **self._by_class(similarities)}
        weights = gram / gram.sum(dim=1, keepdim=True)
        found["denoising_factor"] = weights.norm(dim=1)[gram.diagonal() > 0].nanmedian()
        ranked = nearest(similarities.nan_to_num(nan=-2.0).fill_diagonal_(-3.0), self.n_neighbors)
        ranked[gram.diagonal() == 0] = torch.nan
        if self._nearest is not None:
            found["neighbor_overlap"] = shared(ranked, self._nearest).nanmean()
        self._nearest = ranked
        return {self.prefix + name: float(value) for name, value in found.items() if bool(value.isfinite())}

    def _by_class(self, similarities: Tensor) -> dict[str, Tensor]:
        targets = self.probe.targets
        if targets is None or targets.is_floating_point() or targets.dim() != 1:
            return {}
        same = targets[:, None] == targets
        others = ~torch.eye(len(targets), dtype=torch.bool)
        pairs = {"within_classes": same & others, "between_classes": ~same}
        return {name: similarities[which].nanmean() for name, which in pairs.items()}


def _cosines(gram: Tensor) -> Tensor:
    """Similarities from inner products, nan where a length is 0. [n n]."""
    lengths = gram.diagonal().sqrt()
    return gram / torch.where(lengths > 0, lengths, torch.nan)[:, None] / torch.where(lengths > 0, lengths, torch.nan)


def is_first_process() -> bool:
    """Whether this process is the first of a distributed training, or the only one."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not is_distributed or torch.distributed.get_rank() == 0
