"""What a network finds alike, logged while a Hugging Face Trainer trains it. Needs kinsight[transformers]."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kinsight.training.running import unwrapped
from kinsight.training.watching import SimilarityWatcher


class SimilarityCallback(TrainerCallback):
    """Logs a `SimilarityWatcher` every so many optimizer steps, as the trainer logs its loss, in the first process.

    `SimilarityCallback(trainer, probe)` adds itself to the trainer; what is logged goes to `trainer.state.log_history`
    and to whatever the trainer reports to (TensorBoard, W&B). The network is the one that the trainer has when training
    begins; whether it can take the probe is seen then, before the first step.

    Args:
        trainer: of the network; its model has to take the probe's inputs.
        probe: whatever `Samples` takes, up to 1,024 samples: for models that take keywords, a dict of tensors with
            `labels`.
        every: optimizer steps from one look to the next, as the trainer counts them (`state.global_step`): a training
            that is resumed goes on where it was.
        options: as in `SimilarityWatcher`.
    """

    def __init__(self, trainer: Trainer, probe: Any, *, every: int = 100, **options: Any) -> None:
        super().__init__()
        assert trainer.model is not None
        self.trainer, self.every, self.options = trainer, every, options
        self.watcher = SimilarityWatcher(trainer.model, probe, every=every, **options)
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the network that is going to be trained: a trainer with `model_init` makes a new one every time."""
        if unwrapped(kwargs["model"]) is not self.watcher.kernel.model:
            self.watcher = SimilarityWatcher(kwargs["model"], self.watcher.probe, every=self.every, **self.options)
        self.watcher.n_steps = state.global_step
        self.watcher.check()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look where it is time."""
        found = self.watcher.step(state.global_step)
        if found is None:
            return
        # Whoever logs takes it that the loss has been: the trainer would not log its own in this process, and the
        # others, which go on to add theirs up, would wait for it forever.
        is_due = control.should_log
        try:
            self.trainer.log(found)
        finally:
            control.should_log = is_due
