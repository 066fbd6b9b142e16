"""An index goes to a Parquet file and back, and what is no such file is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kinsight import GradientKernel, Index, Samples
from kinsight.errors import IndexExistsError, IndexFormatError, IndexWriteError, NoIndexError
from kinsight.indexing.about import ERRORS
from kinsight.indexing.exchange import ABOUT


@pytest.fixture
def kernel() -> GradientKernel:
    torch.manual_seed(0)
    return GradientKernel(torch.nn.Linear(5, 2))


@pytest.fixture
def index(tmp_path: Path, kernel: GradientKernel, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setattr("kinsight.indexing.building.MAX_SHARD", 64)
    monkeypatch.setattr("kinsight.indexing.exchange.MAX_SHARD", 64)
    names = [f"s{row}" for row in range(149)] + [7]
    data = Samples(torch.randn(150, 5), targets=torch.arange(150) % 3, ids=names, class_names=["a", "b", "c"])
    return Index.build(tmp_path / "index", kernel, data, dim=32)


def rows_of(index: Index) -> list[Any]:
    names = index.store.dataset("rows").schema.names
    return [row for part in index.store.scan("rows", names) for row in part.to_pylist()]


def test_there_and_back(index: Index, kernel: GradientKernel, tmp_path: Path) -> None:
    file = tmp_path / "index.parquet"
    assert index.export(file) == 150
    again = Index.of_parquet(file, tmp_path / "again")
    assert rows_of(again) == rows_of(index)
    assert {**again.info(), "folder": "", "bytes": 0, "files": 0} == {
        **index.info(),
        "folder": "",
        "bytes": 0,
        "files": 0,
    }
    assert again.ids == index.ids
    assert torch.equal(again.targets, index.targets)
    again.check(kernel)
    assert torch.equal(
        again.neighbors(ids=[7], n_neighbors=5).positions, index.neighbors(ids=[7], n_neighbors=5).positions
    )
    assert again.verify() == []
    more = again.append(
        kernel, Samples(torch.randn(10, 5), targets=torch.zeros(10, dtype=torch.int64), ids=range(100, 110))
    )
    assert len(more) == 160
    assert more.export(file, overwrite=True) == 160
    assert len(Index.of_parquet(file, tmp_path / "again", overwrite=True)) == 160


def test_others_can_read_it(index: Index, tmp_path: Path) -> None:
    index.export(tmp_path / "index.parquet")
    table = pq.read_table(tmp_path / "index.parquet", columns=["id", "norm", "target"])
    assert table["id"].to_pylist() == [str(id_) for id_ in index.ids]
    assert table["target"].to_pylist()[:3] == [[0.0], [1.0], [2.0]]


def test_nothing_is_written_over(index: Index, tmp_path: Path) -> None:
    file = tmp_path / "index.parquet"
    index.export(file)
    with pytest.raises(IndexExistsError, match="is there already"):
        index.export(file)
    with pytest.raises(IndexExistsError, match="There is an index"):
        Index.of_parquet(file, index.folder)
    with pytest.raises(IndexWriteError):
        index.export(tmp_path / "nowhere" / "index.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "index.parquet"]


def changed_about(index: Index, file: Path, **changes: Any) -> None:
    table = pq.read_table(file)
    about = json.loads(table.schema.metadata[ABOUT])
    pq.write_table(table.replace_schema_metadata({ABOUT: json.dumps({**about, **changes})}), file)


PART = {
    "first": 0, "n": 150, "shard_size": 64, "is_complete": True, "target_shape": None, "target_type": None,
    "error": dict.fromkeys(ERRORS, 0.1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 33}, "its rows have other columns"),
        ({"dim": "32"}, "no length of sketches"),
        ({"dim": 2**50}, "no length of sketches"),
        ({"seed": None}, "no length of sketches, or no seed"),
        ({"normalization": "both"}, "no normalization"),
        ({"kernel": [1]}, "no kernel"),
        ({"parts": []}, "it has no parts"),
        ({"parts": [{**PART, "n": 150, "is_complete": False}]}, "it is not complete"),
        ({"parts": [{**PART, "n": 7}]}, "it has 150 rows, and says otherwise"),
        ({"more": 1}, "say more than what it was built with"),
    ],
)
def test_what_makes_no_sense(index: Index, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "index.parquet"
    index.export(file)
    changed_about(index, file, **changes)
    with pytest.raises(IndexFormatError, match=message):
        Index.of_parquet(file, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_files_that_are_something_else(index: Index, tmp_path: Path) -> None:
    file = tmp_path / "index.parquet"
    with pytest.raises(NoIndexError, match="There is no file"):
        Index.of_parquet(file, tmp_path / "again")
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(IndexFormatError, match="does not say what it was built with"):
        Index.of_parquet(file, tmp_path / "again")
    file.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(IndexFormatError, match="cannot be read"):
        Index.of_parquet(file, tmp_path / "again")


def test_rows_out_of_order(index: Index, tmp_path: Path) -> None:
    file = tmp_path / "index.parquet"
    index.export(file)
    table = pq.read_table(file)
    pq.write_table(table.take(list(reversed(range(150)))).replace_schema_metadata(table.schema.metadata), file)
    with pytest.raises(IndexFormatError, match="not in order from row 0 on"):
        Index.of_parquet(file, tmp_path / "again")
