"""The same with the Trainer of Hugging Face: `python -m examples.with_trainer`. Needs kinsight[transformers]."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import kinsight
from examples.digits import accuracy, digits, network
from kinsight.callbacks.transformers import SimilarityCallback


class Classifier(nn.Module):
    """Takes keywords and returns a loss and logits, as models of that library do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixels)
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


class Images(Dataset[dict[str, Tensor]]):
    """Images and labels, by keyword."""

    def __init__(self, data: tuple[Tensor, Tensor]) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"pixels": self.data[0][place], "labels": self.data[1][place]}


class AlikeTrainer(Trainer):
    """Adds a loss on the similarity of digits of one class."""

    alike: kinsight.SimilarityLoss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        found = super().compute_loss(model, dict(inputs), return_outputs, num_items_in_batch)
        if not model.training:
            return found
        added = self.alike({"pixels": inputs["pixels"]}, inputs["labels"])
        # With gradient accumulation, the trainer divides a batch's loss by the number of batches; but not where the
        # model (or compute_loss_func) has divided it by the number of labels in all of them: then that is ours to do.
        is_accepted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        if is_accepted or self.compute_loss_func is not None:
            added = added / self.current_gradient_accumulation_steps
        return (found[0] + added, *found[1:]) if isinstance(found, tuple) else found + added


def main(folder: str | Path, n_epochs: int = 3, weight: float = 0.1) -> tuple[list[dict[str, float]], float]:
    """Train; what was logged, and the share of test images that are told right."""
    train, test, probe = digits()
    batch = probe.take(range(len(probe)))
    model = Classifier()
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=n_epochs, per_device_train_batch_size=64, learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=5, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = AlikeTrainer(model=model, args=arguments, train_dataset=Images(train))
    trainer.alike = kinsight.SimilarityLoss(model, "one_vs_rest", weight=weight)
    SimilarityCallback(trainer, {"pixels": batch.inputs, "labels": batch.targets}, every=20)
    trainer.train()
    return trainer.state.log_history, accuracy(model.net, test)


if __name__ == "__main__":
    torch.manual_seed(0)
    with TemporaryDirectory() as temporary:
        history, share = main(temporary)
        for record in history:
            print(record)
        print(f"{share:.1%} of the test images are told right")
