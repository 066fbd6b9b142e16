"""What a network finds alike, logged while Lightning trains it. Needs kinsight[lightning]."""

from __future__ import annotations

from typing import Any

import lightning
from torch import nn

from kinsight.errors import InputError
from kinsight.watching import SimilarityWatcher


class SimilarityCallback(lightning.Callback):
    """Logs a `SimilarityWatcher` every so many optimizer steps, with the trainer's own loggers, in the first process.

    Args:
        probe: whatever `Samples` takes, up to 1,024 samples.
        every: steps from one look to the next.
        network: from the LightningModule to the network that is looked at; the module itself where left out. Its
            `forward` has to take the probe's inputs, and return what `output` is told from.
        options: as in `SimilarityWatcher`.

    Example:
        >>> from kinsight.callbacks.lightning import SimilarityCallback
        >>> callback = SimilarityCallback(kinsight.Samples(x, labels), every=50)  # doctest: +SKIP
        >>> trainer = lightning.Trainer(callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(self, probe: Any, *, every: int = 100, network: Any = None, **options: Any) -> None:
        super().__init__()
        if network is not None and not callable(network):
            raise InputError(
                "network is a function from the LightningModule to the network: lambda module: module.net."
            )
        self.probe, self.every, self.network, self.options = probe, every, network, options
        self.watcher: SimilarityWatcher | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Make the watcher, so that what it cannot take is said before training."""
        model: nn.Module = pl_module if self.network is None else self.network(pl_module)
        self.watcher = SimilarityWatcher(model, self.probe, every=self.every, **self.options)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look where it is time."""
        assert self.watcher is not None
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        found = self.watcher.step() if is_step else None
        if found is not None:
            for logger in trainer.loggers:
                logger.log_metrics(found, step=trainer.global_step)
