"""The same with Lightning: `python -m examples.with_lightning`. Needs kinsight[lightning]."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import kinsight
from examples.digits import accuracy, digits, network
from kinsight.callbacks.lightning import SimilarityCallback


class Digits(lightning.LightningModule):
    """A classifier with a loss on the similarity of digits of one class."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.net = network()
        self.alike = kinsight.SimilarityLoss(self.net, "one_vs_rest", weight=weight)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return cross_entropy(self.net(x), y) + self.alike(x, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def main(folder: str | Path, n_epochs: int = 3, weight: float = 0.1) -> tuple[Path, float]:
    """Train; the CSV file of what was logged, and the share of test images that are told right."""
    train, test, probe = digits()
    module, logger = Digits(weight), CSVLogger(folder)
    trainer = lightning.Trainer(
        max_epochs=n_epochs, accelerator="cpu", logger=logger, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, log_every_n_steps=5,
        callbacks=[SimilarityCallback(probe, every=20, network=lambda module: module.net)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*train), batch_size=64, shuffle=True))
    return Path(logger.log_dir) / "metrics.csv", accuracy(module.net, test)


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        path, share = main(temporary)
        print(path.read_text())
        print(f"{share:.1%} of the test images are told right")
