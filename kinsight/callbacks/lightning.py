"""What a network finds alike, logged while Lightning trains it. Needs kinsight[lightning]."""

from __future__ import annotations

from typing import Any

import lightning
from torch import nn

from kinsight.errors import InputError
from kinsight.training.watching import SimilarityWatcher


class SimilarityCallback(lightning.Callback):
    """Logs a `SimilarityWatcher` every so many optimizer steps, with the trainer's own loggers, in the first process.

    Whether the network can take the probe is seen when training begins, before the first step. Without a logger
    (`logger=False`) there is nothing to tell, and nothing is looked at. Checkpoints hold the neighbors at the last
    look, so that a training that is resumed goes on; of several callbacks each needs a prefix of its own.

    Args:
        probe: whatever `Samples` takes, up to 1,024 samples.
        every: steps from one look to the next. Steps are those of `trainer.global_step`, of all optimizers together:
            with two that step in every batch, every=100 is a look every 50 batches. Logs are numbered by them, too.
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
        self._state: dict[str, Any] = {}  # of a checkpoint, until training begins

    @property
    def state_key(self) -> str:
        """What the state is called in a checkpoint."""
        return self._generate_state_key(prefix=self.options.get("prefix"))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on from."""
        return self._state or ({} if self.watcher is None else self.watcher.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, when training begins."""
        self._state = state_dict

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Make the watcher, so that what it cannot take is said before training."""
        model: nn.Module = pl_module if self.network is None else self.network(pl_module)
        self.watcher = SimilarityWatcher(model, self.probe, every=self.every, **self.options)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on where training does, and try the probe."""
        assert self.watcher is not None
        if self._state:
            self.watcher.load_state_dict(self._state)
            self._state = {}
        self.watcher.n_steps = trainer.global_step
        if trainer.loggers:
            self.watcher.check()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look where it is time."""
        assert self.watcher is not None
        found = self.watcher.step(trainer.global_step) if trainer.loggers else None
        if found is not None:
            for logger in trainer.loggers:
                logger.log_metrics(found, step=trainer.global_step)
