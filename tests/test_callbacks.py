"""Watchers in training loops of other libraries: those train as they do without one, and say early what cannot be."""

import math
import socket
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import kinsight
from kinsight.errors import ModelCallError, NonFiniteWarning

N_PROCESSES = 2

transformers = pytest.importorskip("transformers")
lightning = pytest.importorskip("lightning")
event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")

from kinsight.callbacks import lightning as of_lightning  # noqa: E402
from kinsight.callbacks import transformers as of_transformers  # noqa: E402

ignores_future = pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch 2.13, at what Lightning 2.6 does


def data(n: int = 32) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


# ------------------------------------------------------------------------------------------------- Hugging Face


class Classifier(nn.Module):
    """Takes keywords and returns the mean loss of a batch, which the trainer divides by those that it accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixels)
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


def rows(n: int = 32) -> list[dict[str, Tensor]]:
    return [{"pixels": x, "labels": y} for x, y in zip(*data(n), strict=True)]


def arguments(folder: Path, **options: Any) -> Any:
    options = {"max_steps": 8, "logging_steps": 1, "save_strategy": "no", "learning_rate": 0.05, **options}
    options = {"report_to": "none", **options}
    return transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, **options,
    )  # fmt: skip


def trainer_of(folder: Path, model: nn.Module | None = None, **options: Any) -> Any:
    model = Classifier() if model is None else model
    return transformers.Trainer(model=model, args=arguments(folder, **options), train_dataset=rows())


def inputs(n: int = 12) -> dict[str, Tensor]:
    x, y = data(n)
    return {"pixels": x, "labels": y}


def own_entries(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [
        {name: value for name, value in record.items() if name not in timed}
        for record in history
        if "similarity/soft_count" not in record
    ]


def looks(history: list[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in history if "similarity/soft_count" in record]


@pytest.mark.parametrize("every", [1, 2])
def test_the_trainer_logs_what_it_does_without_a_watcher(tmp_path: Path, every: int) -> None:
    alone, watched = trainer_of(tmp_path), trainer_of(tmp_path)
    alone.train()
    of_transformers.SimilarityCallback(watched, inputs(), every=every)
    watched.train()
    assert own_entries(watched.state.log_history) == own_entries(alone.state.log_history)
    assert len(own_entries(alone.state.log_history)) == 9
    assert looks(watched.state.log_history) == list(range(1, 9, every))


def test_the_network_is_the_one_that_is_trained(tmp_path: Path) -> None:
    trainer = transformers.Trainer(model_init=Classifier, args=arguments(tmp_path), train_dataset=rows())
    callback = of_transformers.SimilarityCallback(trainer, inputs(), every=4)
    for _ in range(2):  # each time with a network of its own
        trainer.train()
        assert callback.watcher.kernel.model is trainer.model
        first, last = [each for each in trainer.state.log_history if "similarity/soft_count" in each]
        assert first["similarity/within_classes"] != last["similarity/within_classes"]
        now = kinsight.SimilarityWatcher(trainer.model, inputs()).look()
        callback.watcher.load_state_dict({**callback.watcher.state_dict(), "nearest": None})
        assert callback.watcher.look() == now


def test_a_resumed_trainer_goes_on_looking_where_it_was(tmp_path: Path) -> None:
    def trainer(max_steps: int) -> Any:
        made = trainer_of(tmp_path, max_steps=max_steps, save_strategy="steps", save_steps=5)
        of_transformers.SimilarityCallback(made, inputs(), every=3)
        return made

    trainer(5).train()
    resumed = trainer(11)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert looks(resumed.state.log_history) == [1, 4, 7, 10]


def test_mixed_precision_of_the_trainer_is_stepped_around(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2, bf16=True)
    of_transformers.SimilarityCallback(trainer, inputs(), every=1)
    trainer.train()
    (last,) = (
        record for record in trainer.state.log_history if record["step"] == 2 and "similarity/soft_count" in record
    )
    same = Classifier()
    same.load_state_dict(trainer.model.state_dict())
    alone = kinsight.SimilarityWatcher(same, inputs())
    assert last["similarity/soft_count"] == pytest.approx(alone.look()["similarity/soft_count"], rel=1e-6)
    loss = kinsight.SimilarityLoss(trainer.model)
    assert float(loss(inputs(), groups=[0] * 12).detach()) == pytest.approx(
        float(kinsight.SimilarityLoss(same)(inputs(), groups=[0] * 12).detach()), rel=1e-6
    )
    assert loss.kernel.precision == torch.float32


def test_a_probe_that_does_not_fit_is_refused_before_the_first_step(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    of_transformers.SimilarityCallback(trainer, {"pixels": torch.randn(4, 7)})
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(ModelCallError, match="Classifier"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_training_goes_on_over_a_sample_that_is_not_finite(tmp_path: Path) -> None:
    probe = inputs()
    probe["pixels"][2, 1] = torch.inf
    trainer = trainer_of(tmp_path)
    of_transformers.SimilarityCallback(trainer, probe, every=4)
    with pytest.warns(NonFiniteWarning, match=r"after 0 steps.*1 of 12 samples are nan or inf: \[2\]"):
        trainer.train()
    assert looks(trainer.state.log_history) == [1, 5]
    seen = [
        record["similarity/soft_count"] for record in trainer.state.log_history if "similarity/soft_count" in record
    ]
    assert all(map(math.isnan, seen))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def work(rank: int, folder: str, ports: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", N_PROCESSES),
            ("MASTER_PORT", ports[0]),
        ):
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        trainer = trainer_of(Path(folder), max_steps=4, ddp_backend="gloo")
        of_transformers.SimilarityCallback(trainer, inputs(), every=2)
        trainer.train()
        history = trainer.state.log_history
        found = [looks(history), [each["loss"] for each in history if "loss" in each]]
        torch.distributed.destroy_process_group()
        patch.setenv("NODE_RANK", "0")
        patch.setenv("MASTER_PORT", str(ports[1]))
        warnings.filterwarnings("ignore")  # of Lightning, in this process alone
        log = Log()
        fit(of_lightning.SimilarityCallback(samples(), every=2), logger=log, max_steps=4, devices=2, strategy="ddp")
        torch.save([*found, list(log.seen)], f"{folder}/found{rank}")
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_wait_for_each_other_and_end(tmp_path: Path) -> None:
    context = torch.multiprocessing.start_processes(
        work, (str(tmp_path), (free_port(), free_port())), nprocs=N_PROCESSES, join=False, start_method="spawn"
    )
    end = time.monotonic() + 90
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, "training does not end: processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    found = [torch.load(tmp_path / f"found{rank}", weights_only=True) for rank in range(N_PROCESSES)]
    assert [seen for seen, _, _ in found] == [[1, 3], []]  # the first process alone looks
    assert [seen for _, _, seen in found] == [[1, 3], []]  # with Lightning, too
    assert found[0][1] == found[1][1]
    assert len(found[0][1]) == 4


class Dividing(Classifier):
    """Divides its loss by the number of labels in all accumulated batches, as language models of that library do."""

    def forward(self, pixels: Tensor, labels: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        logits = self.net(pixels)
        if labels is None:
            return {"logits": logits}
        total = cross_entropy(logits, labels, reduction="sum")
        return {"loss": total / kwargs.get("num_items_in_batch", len(labels)), "logits": logits}


def test_the_example_weighs_similarity_alike_however_a_model_divides_its_loss(tmp_path: Path) -> None:
    from examples.with_trainer import AlikeTrainer, Images

    trained = []
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "optim": "sgd", "max_grad_norm": 0.0}
    for model in (Classifier(), Dividing()):
        trainer = AlikeTrainer(model=model, args=arguments(tmp_path, **options), train_dataset=Images(data()))
        trainer.alike = kinsight.SimilarityLoss(model, "one_vs_rest", weight=1.0)
        trainer.train()
        trained.append(list(model.parameters()))
    for averaged, divided in zip(*trained, strict=True):
        torch.testing.assert_close(averaged, divided, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- Lightning


class Module(lightning.LightningModule):
    """A classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


class Alternating(Module):
    """Two optimizers that both step in every batch, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[place].parameters(), 0.05) for place in (0, 2)]


class Log(lightning.pytorch.loggers.logger.DummyLogger):
    """Remembers what is logged of similarities."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int | None, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "similarity/soft_count" in metrics:
            self.seen[step] = metrics


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What event files of TensorBoard hold, by name and step."""
    found = {}
    for path in folder.rglob("events.out.tfevents.*"):
        content, start = path.read_bytes(), 0
        while start < len(content):
            length = int.from_bytes(content[start : start + 8], "little")  # then its checksum, the event, its checksum
            event = event_pb2.Event.FromString(content[start + 12 : start + 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            start += 16 + length
    return found


def fit(callback: Any, *, module: Any = None, logger: Any = None, path: Any = None, **options: Any) -> Any:
    trainer = lightning.Trainer(
        accelerator="cpu", logger=logger, enable_progress_bar=False, enable_model_summary=False,
        log_every_n_steps=1, enable_checkpointing=False, callbacks=[callback], **options,
    )  # fmt: skip
    trainer.fit(
        Module() if module is None else module, DataLoader(TensorDataset(*data()), batch_size=4), ckpt_path=path
    )
    return trainer


def samples() -> kinsight.Samples:
    return kinsight.Samples(*data(12))


@ignores_future
def test_steps_of_two_optimizers_are_counted_and_logged_as_the_trainer_counts_them() -> None:
    log = Log()
    fit(of_lightning.SimilarityCallback(samples(), every=4), module=Alternating(), logger=log, max_epochs=1)
    assert list(log.seen) == [2, 6, 10, 14]


@ignores_future
def test_tensorboard_shows_what_is_watched(tmp_path: Path) -> None:
    board, log = lightning.pytorch.loggers.TensorBoardLogger(tmp_path / "lightning"), Log()
    fit(of_lightning.SimilarityCallback(samples(), every=4), logger=[board, log], max_epochs=1)
    found = scalars(tmp_path / "lightning")
    assert set(log.seen) == {1, 5}
    for step, metrics in log.seen.items():
        for name, value in metrics.items():
            if name.startswith("similarity/"):
                assert found[name, step] == pytest.approx(value, nan_ok=True), name
    trainer = transformers.Trainer(
        model=Classifier(), args=arguments(tmp_path, report_to="tensorboard"), train_dataset=rows()
    )
    of_transformers.SimilarityCallback(trainer, inputs(), every=4)
    trainer.train()
    found = scalars(tmp_path / "runs")
    for record in trainer.state.log_history:
        if "similarity/soft_count" in record:
            written = found["train/similarity/soft_count", record["step"]]
            assert written == pytest.approx(record["similarity/soft_count"])
    assert looks(trainer.state.log_history) == [1, 5]


@ignores_future
def test_accumulated_batches_are_one_step() -> None:
    log = Log()
    fit(of_lightning.SimilarityCallback(samples(), every=2), logger=log, max_epochs=1, accumulate_grad_batches=2)
    assert list(log.seen) == [1, 3]


@ignores_future
def test_a_resumed_training_goes_on_looking_where_it_was(tmp_path: Path) -> None:
    first, later, whole = Log(), Log(), Log()
    trainer = fit(of_lightning.SimilarityCallback(samples(), every=3), logger=first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    callback = of_lightning.SimilarityCallback(samples(), every=3)
    fit(callback, logger=later, max_epochs=2, path=tmp_path / "saved.ckpt")
    assert (list(first.seen), list(later.seen)) == ([1, 4, 7], [10, 13, 16])
    fit(of_lightning.SimilarityCallback(samples(), every=3), logger=whole, max_epochs=2)
    assert later.seen[10] == pytest.approx(whole.seen[10])  # the overlap with what was seen before the checkpoint, too
    assert "similarity/neighbor_overlap" in later.seen[10]


@ignores_future
def test_two_callbacks_have_states_of_their_own() -> None:
    log = Log()
    callbacks = [of_lightning.SimilarityCallback(samples(), prefix=prefix) for prefix in ("similarity/", "others/")]
    trainer = lightning.Trainer(logger=log, accelerator="cpu", enable_checkpointing=False, callbacks=callbacks)
    assert len({callback.state_key for callback in trainer.callbacks}) == len(trainer.callbacks)


@ignores_future
def test_nothing_is_looked_at_without_a_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinsight.SimilarityWatcher, "look", lambda watcher: pytest.fail("nobody can see this"))
    monkeypatch.setattr(kinsight.SimilarityWatcher, "check", lambda watcher: pytest.fail("nobody can see this"))
    fit(of_lightning.SimilarityCallback(samples(), every=1), logger=False, max_epochs=1)


@ignores_future
def test_the_probe_is_in_the_precision_of_the_training() -> None:
    log = Log()
    fit(of_lightning.SimilarityCallback(samples(), every=4), logger=log, max_epochs=1, precision="bf16-true")
    assert [math.isfinite(found["similarity/soft_count"]) for found in log.seen.values()] == [True, True]


@ignores_future
def test_a_probe_that_does_not_fit_is_refused_before_training() -> None:
    module = Module()
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(ModelCallError, match="Module"):
        fit(of_lightning.SimilarityCallback(torch.randn(4, 7)), module=module, logger=Log(), max_epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
