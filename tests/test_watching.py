"""Watchers: numbers by hand, nothing of the training changed; and one worked example a host."""

import copy
import csv
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import kinsight
from kinsight.errors import (
    InputError,
    MixedSamplesError,
    ModelCallError,
    NonFiniteWarning,
    OutputCountError,
    ShapeError,
    UnknownNameError,
)

NAMES = {"soft_count", "within_classes", "between_classes", "denoising_factor"}


def model(c: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, c)).double()


def probe(n: int = 12) -> kinsight.Samples:
    x = torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return kinsight.Samples(x, torch.arange(n) % 3)


def names(found: dict[str, float]) -> set[str]:
    return {name.removeprefix("similarity/") for name in found}


@pytest.mark.parametrize("normalization", ["flat", "whitened"])
def test_numbers_by_hand(normalization: Any) -> None:
    network, data = model(), probe()
    watcher = kinsight.SimilarityWatcher(network.train(), data, normalization=normalization, n_neighbors=3)
    first = watcher.look()
    assert {name.removeprefix("similarity/") for name in first} == NAMES
    kernel = kinsight.GradientKernel(copy.deepcopy(network).eval())
    batch = data.take(range(12))
    gram = kernel(batch)
    k = kernel.flat_similarity(batch) if normalization == "flat" else kernel.similarity(batch)
    same = (batch.targets[:, None] == batch.targets) & ~torch.eye(12, dtype=torch.bool)
    assert first["similarity/soft_count"] == pytest.approx(float(k.sum(dim=1).mean()))
    counts = kinsight.soft_count(kernel, data, normalization=normalization).values
    assert first["similarity/soft_count"] == pytest.approx(float(counts.mean()))
    assert first["similarity/within_classes"] == pytest.approx(float(k[same].mean()))
    assert first["similarity/between_classes"] == pytest.approx(
        float(k[batch.targets[:, None] != batch.targets].mean())
    )
    factors = (gram / gram.sum(dim=1, keepdim=True)).norm(dim=1)
    assert first["similarity/denoising_factor"] == pytest.approx(float(factors.median()))
    assert watcher.look()["similarity/neighbor_overlap"] == 1
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    moved = kinsight.GradientKernel(copy.deepcopy(network).eval())
    later = moved.flat_similarity(batch) if normalization == "flat" else moved.similarity(batch)
    ours, theirs = ([set(row.topk(3).indices.tolist()) for row in each.fill_diagonal_(-2)] for each in (k, later))
    overlap = sum(len(a & b) for a, b in zip(ours, theirs, strict=True)) / 36
    assert watcher.look()["similarity/neighbor_overlap"] == pytest.approx(overlap)


def test_nothing_of_the_training_changes() -> None:
    network = model().train()
    network[4].eval()
    network(torch.randn(6, 4).double()).sum().backward()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    modes, state = [module.training for module in network.modules()], torch.get_rng_state()
    kinsight.SimilarityWatcher(network, probe()).look()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, network.parameters(), strict=True))
    assert modes == [module.training for module in network.modules()]
    assert torch.equal(torch.get_rng_state(), state)


def test_looks_come_every_so_many_steps_in_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = kinsight.SimilarityWatcher(model(), probe(), every=3)
    assert [watcher.step() is not None for _ in range(7)] == [True, False, False, True, False, False, True]
    monkeypatch.setattr("kinsight.training.watching.is_first_process", lambda: False)
    assert all(watcher.step() is None for _ in range(7))


def test_probes_without_classes_or_gradients() -> None:
    data = probe().take(range(12))
    data.inputs[2] = 0
    silent = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 1, bias=False)).double()
    watcher = kinsight.SimilarityWatcher(silent, data.inputs)
    found = watcher.look()
    assert {name.removeprefix("similarity/") for name in found} == {"soft_count", "denoising_factor"}
    assert watcher.look()["similarity/neighbor_overlap"] == 1
    for n in (1, 1025):
        with pytest.raises(InputError, match=f"has {n} samples"):
            kinsight.SimilarityWatcher(silent, torch.randn(n, 4))


@pytest.mark.usefixtures("without_type_checks")
def test_options_that_make_no_sense() -> None:
    for every in (0, 2.5, True):
        with pytest.raises(InputError, match=f"every is {every}: it has to be a whole number"):
            kinsight.SimilarityWatcher(model(), probe(), every=every)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="normalization 'cos' is unknown: use 'whitened' or 'flat'"):
        kinsight.SimilarityWatcher(model(), probe(), normalization="cos")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prefix is None"):
        kinsight.SimilarityWatcher(model(), probe(), prefix=None)  # type: ignore[arg-type]


def test_options_are_those_of_the_kernel() -> None:
    wide = nn.Linear(4, 40).double()
    with pytest.raises(OutputCountError, match="max_outputs"):
        kinsight.SimilarityWatcher(wide, probe()).look()
    assert kinsight.SimilarityWatcher(wide, probe(), max_outputs=40).look()
    network = model()
    last = kinsight.SimilarityWatcher(
        network, probe(), parameters=lambda name: name.startswith("4."), batch_size=5, max_bytes=2**20
    )
    kernel = kinsight.GradientKernel(copy.deepcopy(network).eval(), parameters=["4.weight", "4.bias"])
    found = kernel.flat_similarity(probe().take(range(12))).sum(dim=1).mean()
    assert last.look()["similarity/soft_count"] == pytest.approx(float(found))
    assert last.kernel.batch_size == 5


class Jittered(Dataset[tuple[Tensor, int]]):
    """Every sample is another one each time it is read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        jitter = torch.rand(4).double() + random.random() + float(np.random.rand())
        return torch.full((4,), place / 12, dtype=torch.float64) + jitter, place % 3


@pytest.mark.usefixtures("without_type_checks")  # which draw random numbers of their own
def test_the_probe_is_read_once() -> None:
    network = model()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    watcher = kinsight.SimilarityWatcher(network, Jittered())
    first, again = watcher.look(), watcher.look()
    assert again.pop("similarity/neighbor_overlap") == 1
    assert first == again
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_samples_whose_kernel_values_cancel_have_no_denoising_factor() -> None:
    x = torch.tensor([[1.0, 0], [1.0, 0], [-1.0, 0], [-1.0001, 0]], dtype=torch.float64)
    line = nn.Linear(2, 1, bias=False).double()
    assert "similarity/denoising_factor" not in kinsight.SimilarityWatcher(line, x).look()
    mixed = torch.cat([x, torch.tensor([[0.0, 3], [0.0, 1]], dtype=torch.float64)])  # these two do not cancel
    gram = mixed @ mixed.T
    factors = (gram / gram.sum(dim=1, keepdim=True)).norm(dim=1)[4:]
    found = kinsight.SimilarityWatcher(line, mixed).look()["similarity/denoising_factor"]
    assert found == pytest.approx(float(factors.median()))
    assert found < 1.5


def test_negative_targets_are_of_no_class() -> None:
    network, data = model(), probe().take(range(12))
    data.targets[3:5], data.targets[7] = -1, -100
    found = kinsight.SimilarityWatcher(network, data).look()
    kept = [0, 1, 2, 5, 6, 8, 9, 10, 11]
    alone = kinsight.SimilarityWatcher(network, data[kept]).look()
    for name in ("similarity/within_classes", "similarity/between_classes"):
        assert found[name] == pytest.approx(alone[name])
    none = kinsight.Batch(data.inputs, targets=torch.full((12,), -100))
    assert not {"within_classes", "between_classes"} & names(kinsight.SimilarityWatcher(network, none).look())
    for targets in (torch.randn(12), torch.zeros(12, 2).long()):
        watched = kinsight.SimilarityWatcher(network, kinsight.Batch(data.inputs, targets=targets))
        assert not {"within_classes", "between_classes"} & names(watched.look())


def test_what_is_not_finite_does_not_end_a_training() -> None:
    network = model()
    watcher = kinsight.SimilarityWatcher(network, probe(), every=1)
    finite = watcher.step()
    assert finite is not None
    before = copy.deepcopy(network.state_dict())
    network[4].weight.data.fill_(torch.nan)
    with pytest.warns(
        NonFiniteWarning, match=r"after 2 steps.*1 of 6 parameters hold nan or inf: \['4.weight'\]\. Train"
    ):
        found = watcher.step()
    assert found is not None
    assert names(found) == NAMES | {"neighbor_overlap"}
    assert all(math.isnan(value) for value in found.values())
    assert watcher.step() is not None  # no second warning
    network.load_state_dict(before)
    again = watcher.look()
    assert again.pop("similarity/neighbor_overlap") == 1
    assert again == finite


@pytest.mark.parametrize("normalization", ["flat", "whitened"])
def test_a_sample_that_is_not_finite_is_named(normalization: Any) -> None:
    data = probe().take(range(12))
    data.inputs[2, 1] = torch.inf
    watcher = kinsight.SimilarityWatcher(model(), data, normalization=normalization)
    with pytest.warns(NonFiniteWarning, match=r"of 1 of 12 samples are nan or inf: \[2\]"):
        found = watcher.look()
    assert names(found) == NAMES
    assert all(math.isnan(value) for value in found.values())


def test_weights_that_were_never_finite() -> None:
    network = model()
    network[0].weight.data.fill_(torch.nan)
    watcher = kinsight.SimilarityWatcher(network, probe())
    with pytest.warns(NonFiniteWarning, match="after 0 steps"):
        watcher.check()
    found = watcher.step()
    assert found is not None
    assert all(math.isnan(value) for value in found.values())
    network[0].weight.data.fill_(0.5)
    assert names(watcher.look()) == NAMES
    assert all(route.startswith("rule") for route in watcher.kernel.routes.values())


def test_the_probe_is_given_in_the_precision_of_the_model() -> None:
    inputs = {"x": probe().take(range(12)).inputs.float(), "labels": torch.arange(12) % 3}
    for dtype in (torch.bfloat16, torch.float64):
        network = Named().to(dtype)
        watcher = kinsight.SimilarityWatcher(network, inputs)
        fine = kinsight.SimilarityWatcher(copy.deepcopy(network).double(), inputs).look()
        found = watcher.look()
        assert {name: found[name] for name in fine} == pytest.approx(fine, rel=0.05)


class Mixing(nn.Module):
    """One sample's output depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x - x.mean(dim=0)).square()
        return found


def test_what_is_finite_and_wrong_is_an_error() -> None:
    with pytest.raises(MixedSamplesError):
        kinsight.SimilarityWatcher(Mixing().double(), probe()).check()


class Named(nn.Module):
    """Takes its input by keyword, and whole numbers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found


def test_a_watcher_goes_on_from_its_state(tmp_path: Path) -> None:
    network = model()
    watcher = kinsight.SimilarityWatcher(network, probe(), every=3, n_neighbors=3)
    fresh = watcher.state_dict()
    looks = [watcher.step() for _ in range(5)]
    torch.save(watcher.state_dict(), tmp_path / "state")
    resumed = kinsight.SimilarityWatcher(network, probe(), every=3, n_neighbors=3)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    looks += [resumed.step() for _ in range(3)]
    assert [found is not None for found in looks] == [True, False, False, True, False, False, True, False]
    assert looks[6] is not None
    assert looks[6]["similarity/neighbor_overlap"] == 1
    resumed.load_state_dict(fresh)
    assert resumed.n_steps == 0
    assert "similarity/neighbor_overlap" not in resumed.look()
    other = kinsight.SimilarityWatcher(network, probe(9), n_neighbors=3)
    with pytest.raises(InputError, match="The state has no 'n_steps'"):
        other.load_state_dict({})
    with pytest.raises(ShapeError, match="of 12 samples, with 3 neighbors of each; this one has 9 and 3"):
        other.load_state_dict(watcher.state_dict())


def test_layers_that_are_replaced_or_thawed_are_looked_at() -> None:
    network = model()
    network[0].requires_grad_(False)
    watcher = kinsight.SimilarityWatcher(network, probe(), n_neighbors=3)

    def is_as_new() -> bool:
        found = watcher.look()
        overlap = found.pop("similarity/neighbor_overlap", None)
        assert (overlap is None) == (watcher.n_steps == 0)
        watcher.n_steps = 1
        return found == kinsight.SimilarityWatcher(network, probe(), n_neighbors=3).look()

    assert is_as_new()
    network[0].requires_grad_(True)
    assert is_as_new()
    network[4] = nn.Linear(8, 2).double()
    assert is_as_new()
    network.append(nn.Linear(2, 2).double())
    assert is_as_new()
    network.load_state_dict({name: each.clone() for name, each in network.state_dict().items()}, assign=True)
    assert is_as_new()


def test_numbers_are_those_of_full_precision() -> None:
    network = model().float()
    plain = kinsight.SimilarityWatcher(network, probe()).look()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kinsight.SimilarityWatcher(network, probe()).look() == plain


def test_steps_that_somebody_else_counts() -> None:
    watcher = kinsight.SimilarityWatcher(model(), probe(), every=3)
    assert [n for n in (1, 1, 2, 3, 4, 6, 8, 10, 12, 20) if watcher.step(n) is not None] == [1, 4, 8, 10, 20]


def test_a_check_keeps_nothing() -> None:
    watcher = kinsight.SimilarityWatcher(model(), probe())
    watcher.check()
    assert watcher.n_steps == 0
    assert "similarity/neighbor_overlap" not in watcher.look()
    with pytest.raises(ModelCallError, match="Linear"):
        kinsight.SimilarityWatcher(nn.Linear(5, 2), torch.randn(3, 4)).check()


# ---------------------------------------------------------------------------------------------------- examples


def check_history(history: list[dict[str, float]]) -> None:
    """Watched three times in 57 steps; classes have moved apart: what is more alike within them than between grows."""
    assert len(history) == 3
    first, last = history[0], history[-1]
    assert "similarity/neighbor_overlap" not in first
    assert 0 < last["similarity/neighbor_overlap"] <= 1
    gaps = [each["similarity/within_classes"] - each["similarity/between_classes"] for each in history]
    assert 0 < gaps[0] < gaps[-1]


def test_a_plain_loop() -> None:
    from examples.plain import main

    torch.manual_seed(0)
    history, share = main()
    check_history(history)
    assert share > 0.9


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch 2.13, at what Lightning 2.6 does
def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from examples.with_lightning import main

    torch.manual_seed(0)
    path, share = main(tmp_path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    watched = [
        {name: float(value) for name, value in row.items() if value and name.startswith("similarity/")} for row in rows
    ]
    check_history([row for row in watched if row])
    assert share > 0.9


def test_the_trainer_of_hugging_face(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from examples.with_trainer import main

    torch.manual_seed(0)
    history, share = main(tmp_path)
    check_history([row for row in history if "similarity/soft_count" in row])
    assert share > 0.9
