"""Watchers: numbers by hand, nothing of the training changed; and one worked example a host."""

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kinsight
from kinsight.errors import InputError

NAMES = {"soft_count", "within_classes", "between_classes", "denoising_factor"}


def model(c: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, c)).double()


def probe(n: int = 12) -> kinsight.Samples:
    x = torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return kinsight.Samples(x, torch.arange(n) % 3)


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
    assert first["similarity/soft_count"] == pytest.approx(float(k.mean()))
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
    monkeypatch.setattr("kinsight.watching.is_first_process", lambda: False)
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
    with pytest.raises(InputError, match="every is 0"):
        kinsight.SimilarityWatcher(silent, torch.randn(3, 4), every=0)


# ---------------------------------------------------------------------------------------------------- examples


def check_history(history: list[dict[str, float]]) -> None:
    """Watched three times in 57 steps; similarity within classes has grown, and is above that between them."""
    assert len(history) == 3
    first, last = history[0], history[-1]
    assert "similarity/neighbor_overlap" not in first
    assert 0 < last["similarity/neighbor_overlap"] <= 1
    assert last["similarity/within_classes"] > last["similarity/between_classes"]


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
