"""Checkpoints: weights fit the model name by name, or are refused; no code in them is run."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kinsight.errors import CheckpointError
from kinsight.sources import load_model
from tests.sources import Bomb, write_factories


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    return write_factories(tmp_path)


class TestCheckpoints:
    @pytest.fixture
    def source(self, made: str) -> str:
        return f"{made}:model"

    def weights(self) -> dict[str, Tensor]:
        return {"weight": torch.arange(6.0).view(3, 2), "bias": torch.tensor([1.0, 2.0, 3.0])}

    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
    @pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
    def test_containers_and_prefixes(self, source: str, tmp_path: Path, prefix: str, container: str | None):
        weights = OrderedDict((prefix + name, value) for name, value in self.weights().items())
        found = weights if container is None else {container: weights, "epoch": 3, "optimizer": {"lr": 0.1}}
        torch.save(found, tmp_path / "a.pt")
        model = load_model(source, checkpoint=tmp_path / "a.pt", device="cpu")
        assert torch.equal(model.weight, self.weights()["weight"])
        assert torch.equal(model.bias, self.weights()["bias"])
        assert not model.training

    def test_safetensors(self, source: str, tmp_path: Path):
        save_file({f"module.{name}": value for name, value in self.weights().items()}, tmp_path / "a.safetensors")
        model = load_model(source, checkpoint=str(tmp_path / "a.safetensors"), device="cpu")
        assert torch.equal(model.weight, self.weights()["weight"])

    def test_a_prefix_that_the_model_has_too_stays(self, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        wrapped = nn.Sequential(OrderedDict(module=nn.Linear(2, 3)))
        torch.save(wrapped.state_dict(), tmp_path / "a.pt")
        (tmp_path / f"{made}_2.py").write_text(
            "from collections import OrderedDict\nfrom torch import nn\n"
            "def model(): return nn.Sequential(OrderedDict(module=nn.Linear(2, 3)))\n"
        )
        model = load_model(f"{made}_2:model", checkpoint=tmp_path / "a.pt", device="cpu")
        assert torch.equal(model.module.weight, wrapped.module.weight)

    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_what_does_not_fit(self, source: str, tmp_path: Path, suffix: str):
        weights = {"weight": torch.zeros(3, 4), **{f"layer{i}": torch.zeros(1) for i in range(7)}}
        path = tmp_path / f"a.{suffix}"
        save_file(weights, path) if suffix == "safetensors" else torch.save(weights, path)
        message = (
            r"Linear with its 2 tensors: 1 missing \('bias'\); 7 unexpected \('layer0', 'layer1', "
            r"'layer2', 'layer3', 'layer4', ...\); 1 of another shape \('weight' \[3, 4\] for \[3, 2\]\)"
        )
        with pytest.raises(CheckpointError, match=message):
            load_model(source, checkpoint=path, device="cpu")

    def test_one_missing_tensor_is_enough(self, source: str, tmp_path: Path):
        torch.save({"weight": torch.zeros(3, 2)}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"1 missing \('bias'\)\. A model that is partly random"):
            load_model(source, checkpoint=tmp_path / "a.pt", device="cpu")

    def test_pickle_is_not_run(self, source: str, tmp_path: Path):
        torch.save({**self.weights(), "extra": Bomb(tmp_path / "ran")}, tmp_path / "a.pt")
        (tmp_path / "b.pt").write_bytes(pickle.dumps({"weight": Bomb(tmp_path / "ran")}))
        for name in "ab":
            message = r"more than tensors \((Unsupported|pickle protocol 4).*runs code.*allow_pickle=True"
            with pytest.raises(CheckpointError, match=message):
                load_model(source, checkpoint=tmp_path / f"{name}.pt", device="cpu")
        assert not (tmp_path / "ran").exists()

    def test_pickle_is_run_where_it_is_allowed(self, source: str, tmp_path: Path):
        linear = nn.Linear(2, 3)
        torch.save(linear, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"holds more than tensors \(Unsupported global: GLOBAL torch.nn"):
            load_model(source, checkpoint=tmp_path / "a.pt", device="cpu")
        model = load_model(source, checkpoint=tmp_path / "a.pt", device="cpu", allow_pickle=True)
        assert torch.equal(model.weight, linear.weight)

    @pytest.mark.parametrize(
        ("found", "held"),
        [
            (torch.zeros(3), "a Tensor"),
            ({"epoch": 3, "lr": 0.1}, "a dict of 'epoch', 'lr'"),
            ({}, "a dict of nothing"),
            ({"state_dict": {}}, "a dict of nothing"),
            ([torch.zeros(3)], "a list"),
        ],
    )
    def test_files_without_weights(self, source: str, tmp_path: Path, found: Any, held: str):
        torch.save(found, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=rf"a.pt' holds {held}: no weights by name, alone or under"):
            load_model(source, checkpoint=tmp_path / "a.pt", device="cpu")

    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_damaged_files(self, source: str, tmp_path: Path, suffix: str):
        path = tmp_path / f"a.{suffix}"
        save_file(self.weights(), path) if suffix == "safetensors" else torch.save(self.weights(), path)
        content = path.read_bytes()
        for broken in (b"", b"text", content[: len(content) // 2]):
            path.write_bytes(broken)
            with pytest.raises(CheckpointError, match=rf"a.{suffix}' cannot be read as (a checkpoint|safetensors)"):
                load_model(source, checkpoint=path, device="cpu")

    def test_a_missing_file(self, source: str, tmp_path: Path):
        with pytest.raises(
            CheckpointError, match=rf"There is no checkpoint: '{tmp_path}/no.pt' does not exist; a file of"
        ):
            load_model(source, checkpoint=tmp_path / "no.pt", device="cpu")
