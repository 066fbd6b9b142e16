"""Models and data sets of Hugging Face, from this machine alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kinsight.errors import CheckpointError, SourceError
from kinsight.sources import load_model, load_samples
from tests.sources import everything


class FakeDataset:
    """As much of datasets.Dataset as is used."""

    def __init__(self, columns: dict[str, Any], names: list[str] | None = None) -> None:
        self.columns, self.column_names = columns, list(columns)
        self.features = {name: SimpleNamespace(names=names) for name in columns}

    def with_format(self, kind: str) -> "FakeDataset":
        assert kind == "torch"
        return self

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: values[i] for name, values in self.columns.items()}


class TestHuggingFace:
    """Against stand-ins: neither datasets nor transformers is a dependency of the tests."""

    def use_datasets(self, monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
        module = ModuleType("datasets")
        module.load_from_disk = module.load_dataset = lambda path: found
        monkeypatch.setitem(sys.modules, "datasets", module)

    def test_splits_labels_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        x = torch.arange(6.0).view(3, 2)
        self.use_datasets(
            monkeypatch, {"train": FakeDataset({"x": x, "label": torch.tensor([1, 0, 1])}, ["no", "yes"])}
        )
        samples = load_samples(f"hf:{tmp_path}[train]")
        assert torch.equal(everything(samples).inputs, x)
        assert samples.targets.tolist() == [1, 0, 1]
        assert samples.class_names == ("no", "yes")
        for wrong in ("", "[test]"):
            with pytest.raises(SourceError, match=rf"the split is one of train, as in hf:{tmp_path}\[train\]"):
                load_samples(f"hf:{tmp_path}{wrong}")

    def test_several_columns_are_keyword_arguments(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self.use_datasets(monkeypatch, FakeDataset({"input_ids": torch.ones(3, 2), "mask": torch.ones(3, 2)}))
        samples = load_samples(f"hf:{tmp_path}")
        assert list(everything(samples).inputs) == ["input_ids", "mask"]
        assert samples.targets is None

    def test_texts_and_unclear_columns(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self.use_datasets(monkeypatch, FakeDataset({"text": ["a", "b"], "label": [0, 1]}))
        with pytest.raises(SourceError, match=r"column 'text' holds texts. Tokenize them"):
            everything(load_samples(f"hf:{tmp_path}"))
        self.use_datasets(monkeypatch, FakeDataset({"x": [0], "label": [0], "labels": [1]}))
        with pytest.raises(SourceError, match=r"has the columns x, label, labels: inputs and label are not clear"):
            load_samples(f"hf:{tmp_path}")

    def test_no_network(self, monkeypatch: pytest.MonkeyPatch):
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        self.use_datasets(monkeypatch, FakeDataset({"x": torch.ones(3, 2)}))
        with pytest.raises(SourceError, match=r"'imdb' is no folder here.*does not use a network.*HF_HUB_OFFLINE=1"):
            load_samples("hf:imdb[train]")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert len(load_samples("hf:imdb")) == 3

    def test_the_form(self):
        with pytest.raises(SourceError, match=r"'hf:imdb\[' is not of the form hf:ID\[split\]"):
            load_samples("hf:imdb[")

    def test_packages_that_are_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        for name in ("datasets", "transformers"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(SourceError, match=r"needs datasets, which is not here .*: pip install datasets"):
            load_samples(f"hf:{tmp_path}")
        with pytest.raises(
            SourceError, match=r"'hf:x/y' needs transformers, which is not here .*: pip install transfo"
        ):
            load_model("hf:x/y", device="cpu")

    def use_transformers(self, monkeypatch: pytest.MonkeyPatch, missing: list[str]) -> list[Any]:
        calls: list[Any] = []

        class Auto:
            @staticmethod
            def from_pretrained(path: str, **options: Any) -> Any:
                calls.append((path, options))
                if path == "lost":
                    raise OSError("no file named config.json\nmore")
                return nn.Linear(2, 3), {"missing_keys": missing}

        module = ModuleType("transformers")
        module.AutoModelForSequenceClassification = module.AutoModel = Auto
        monkeypatch.setitem(sys.modules, "transformers", module)
        return calls

    def test_models_are_read_from_this_machine_only(self, monkeypatch: pytest.MonkeyPatch):
        calls = self.use_transformers(monkeypatch, [])
        for source in ("hf:x/y", "hf:x/y?class=AutoModel"):
            assert not load_model(source, device="cpu").training
        options = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
        assert calls == [("x/y", options)] * 2
        with pytest.raises(
            SourceError, match=r"cannot be read by AutoModelForSeq.*nothing is downloaded. no file named"
        ):
            load_model("hf:lost", device="cpu")
        with pytest.raises(SourceError, match=r"transformers has no Auto class 'Trainer', such as AutoModel"):
            load_model("hf:x/y?class=Trainer", device="cpu")

    def test_a_head_without_weights_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self.use_transformers(monkeypatch, ["classifier.weight"])
        with pytest.raises(CheckpointError, match=r"no weights for 1 tensors.*\('classifier.weight'\), which would be"):
            load_model("hf:x/y", device="cpu")
        torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "a.pt")
        load_model("hf:x/y", checkpoint=tmp_path / "a.pt", device="cpu")
