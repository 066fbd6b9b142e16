"""Tables and arrays on disk: what is read, and what is refused with its line, column or array."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from kinsight.errors import EmptyDataError, InputError, ShapeError, SourceError
from kinsight.samples import Samples
from kinsight.sources import load_samples
from tests.sources import Bomb, everything


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
