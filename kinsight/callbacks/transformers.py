"""What a network finds alike, logged while a Hugging Face Trainer trains it. Needs kinsight[transformers]."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kinsight.watching import SimilarityWatcher


class SimilarityCallback(TrainerCallback):
    """Logs a `SimilarityWatcher` every so many optimizer steps, as the trainer logs its loss, in the first process.

    `SimilarityCallback(trainer, probe)` adds itself to the trainer; what is logged goes to `trainer.state.log_history`
    and to whatever the trainer reports to (TensorBoard, W&B).

    Args:
        trainer: of the network; its model has to take the probe's inputs.
        probe: whatever `Samples` takes, up to 1,024 samples: for models that take keywords, a dict of tensors with
            `labels`.
        every: steps from one look to the next.
        options: as in `SimilarityWatcher`.
    """

    def __init__(self, trainer: Trainer, probe: Any, *, every: int = 100, **options: Any) -> None:
        super().__init__()
        assert trainer.model is not None
        self.trainer = trainer
        self.watcher = SimilarityWatcher(trainer.model, probe, every=every, **options)
        trainer.add_callback(self)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look where it is time."""
        found = self.watcher.step()
        if found is not None:
            self.trainer.log(found)
