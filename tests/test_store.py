"""Crashes lose nothing that was committed, damage is found and named, nonsense is refused."""

import contextlib
import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from kinsight.errors import (
    BusyIndexError,
    DamagedIndexError,
    IndexExistsError,
    IndexFormatError,
    IndexWriteError,
    NoIndexError,
)
from kinsight.indexing.durable import Lock, digest_of_record, read_record, replace_file, write_record
from kinsight.indexing.manifest import MANIFEST
from kinsight.indexing.store import Store
from tests.faults import N_ROWS, check_rows, filled_store, found_damage, killed_writer, shard, survives_damage

N_STEPS = 14
"""Of a commit that can fail."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    filled_store(tmp_path / "index")
    return tmp_path / "index"


def rows_of(store: Store) -> list[int]:
    return [row for batch in store.scan("rows", ["row"]) for row in batch["row"].to_pylist()]


def rewrite(folder: Path, change: Any) -> None:
    """Write another manifest, with the digest it should have."""
    record = json.loads((folder / MANIFEST).read_text())
    record.pop("digest")
    change(record)
    write_record(folder / MANIFEST, record)


def test_what_is_committed_is_read(folder: Path) -> None:
    store = Store.open(folder)
    assert store.about == {"what": "a test"}
    assert store.tables["rows"]["shards"][2] == {"n": N_ROWS, "start": 2 * N_ROWS}
    assert rows_of(store) == list(range(4 * N_ROWS))
    assert store.take("rows", [7, 120], ["text"])["text"].to_pylist() == ["shard 0, row 7", "shard 2, row 20"]
    assert list(store.scan("nothing", ["row"])) == []
    assert store.leftovers() == []


def test_a_reader_keeps_what_it_opened(folder: Path) -> None:
    reader = Store.open(folder)
    with Store.open(folder, for_writing=True) as writer:
        for number in range(4, 9):
            writer.append("rows", shard(number))
        assert len(rows_of(writer)) == 9 * N_ROWS
    assert len(rows_of(reader)) == 4 * N_ROWS
    assert len(rows_of(Store.open(folder))) == 9 * N_ROWS


def test_facts_are_committed(folder: Path) -> None:
    with Store.open(folder, for_writing=True) as store:
        store.update(error=0.01)
    assert Store.open(folder).about == {"what": "a test", "error": 0.01}


def test_compaction_keeps_rows(folder: Path) -> None:
    with Store.open(folder, for_writing=True) as store:
        store.compact("rows")
        assert len([file for file in store.files if "/data/" in file]) == 1
    check_rows(folder, 4)
    with Store.open(folder, for_writing=True) as store:
        store.append("rows", shard(4))
    check_rows(folder, 5)


def test_a_lagging_reader_is_told_what_compaction_did(folder: Path) -> None:
    reader = Store.open(folder)
    with Store.open(folder, for_writing=True) as store:
        store.compact("rows")
    with pytest.raises(DamagedIndexError, match="is missing"):
        rows_of(reader)


def test_many_commits_leave_few_files(folder: Path) -> None:
    with Store.open(folder, for_writing=True) as store:
        for number in range(4, 40):
            store.append("rows", shard(number))
    found = Store.open(folder)
    assert len(found.files) <= 40 + 2 * 16
    assert found.leftovers() == []
    check_rows(folder, 40)


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.07, 0.15, 0.2])
def test_a_killed_writer_loses_nothing(tmp_path: Path, seconds: float) -> None:
    n_shards = check_rows(tmp_path, killed_writer(tmp_path, seconds))
    assert killed_writer(tmp_path, 1.0, n_shards=n_shards + 3) == n_shards + 3  # and goes on from there
    check_rows(tmp_path, n_shards + 3)


def test_every_damage_is_named(folder: Path) -> None:
    chance = random.Random(0)
    assert [problem for _ in range(20) if (problem := survives_damage(folder, chance))] == []


def test_a_whole_index_is_not_damaged(folder: Path) -> None:
    """The other side: what finds damage does not find it everywhere."""
    assert found_damage(folder) == []
    assert len(list(Store.open(folder).verify())) == len(Store.open(folder).files) > 4


def test_a_link_is_no_file_of_an_index(folder: Path, tmp_path: Path) -> None:
    file = next(file for file in Store.open(folder).files if "/data/" in file)
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    assert [problem.what for _, problem in Store.open(folder).verify() if problem] == ["is not a plain file"]


@pytest.mark.parametrize("n_steps", range(N_STEPS + 1))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_step_loses_nothing(
    folder: Path, n_steps: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(n_steps))

    def failing(what: Any) -> Any:
        def run(*args: Any) -> Any:
            if next(steps, None) is None:
                raise OSError(number, os.strerror(number))
            return what(*args)

        return run

    import kinsight.indexing.durable
    import kinsight.indexing.store

    with monkeypatch.context() as patch:
        patch.setattr("kinsight.indexing.store.sync", failing(kinsight.indexing.store.sync))
        patch.setattr("kinsight.indexing.durable.sync", failing(kinsight.indexing.durable.sync))
        patch.setattr("kinsight.indexing.store.digest_of", failing(kinsight.indexing.store.digest_of))
        store = Store.open(folder, for_writing=True)
        why = "the disk is full" if number == errno.ENOSPC else "Input/output error"
        is_late = n_steps == N_STEPS
        with contextlib.nullcontext() if is_late else pytest.raises(IndexWriteError, match=why):
            store.append("rows", shard(4))
        store.close()
    n_shards = check_rows(folder, 4)
    with Store.open(folder, for_writing=True) as store:
        for shard_number in range(n_shards, 6):
            store.append("rows", shard(shard_number))
        assert store.leftovers() == []
    check_rows(folder, 6)


def test_nothing_is_written_after_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(folder, for_writing=True)
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "full")
        patch.setattr("kinsight.indexing.store.digest_of", lambda path: (_ for _ in ()).throw(full))
        with pytest.raises(IndexWriteError, match="disk is full"):
            store.append("rows", shard(4))
    with pytest.raises(IndexWriteError, match="opened to be read only"):
        store.append("rows", shard(4))
    check_rows(folder, 4)


def test_two_writers_at_once(folder: Path) -> None:
    with (
        Store.open(folder, for_writing=True),
        pytest.raises(BusyIndexError, match=f"being written by another process \\(process {os.getpid()} on"),
    ):
        Store.open(folder, for_writing=True)
    with Store.open(folder, for_writing=True) as store:  # and after it is done
        store.append("rows", shard(4))
    with pytest.raises(BusyIndexError), Store.open(folder, for_writing=True):
        Store.create(folder, {}, overwrite=True)
    check_rows(folder, 5)


def test_a_reader_cannot_write(folder: Path) -> None:
    for write in (
        lambda store: store.append("rows", shard(4)),
        lambda store: store.update(more=1),
        lambda store: store.compact("rows"),
    ):
        with pytest.raises(IndexWriteError, match="opened to be read only"):
            write(Store.open(folder))
    check_rows(folder, 4)


def test_no_index(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(NoIndexError, match=r"no manifest\.json"):
            Store.open(folder)
        with pytest.raises(NoIndexError):
            Store.open(folder, for_writing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_nothing_else_is_written_over(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexExistsError, match="There is an index"):
        Store.create(folder, {})
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        for place in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(IndexExistsError, match="holds something that is no index"):
                Store.create(place, {}, overwrite=overwrite)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    Store.create(folder, {"new": 1}, overwrite=True).close()
    assert Store.open(folder).about == {"new": 1}
    assert Store.open(folder).n_rows("rows") == 0


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IndexWriteError, match="a part of it is a file"):
        Store.create(tmp_path / "file" / "index", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(version=2), "has format 2; this kinsight reads format 1"),
        (lambda record: record.update(version="1"), "is not the manifest of an index"),
        (lambda record: record.update(format="a recipe"), "is not the manifest of an index"),
        (lambda record: record.pop("files"), "have to be objects"),
        (lambda record: record.update(about=[1]), "have to be objects"),
        (lambda record: record["tables"].update({"../up": record["tables"]["rows"]}), r"there is no table '\.\./up'"),
        (lambda record: record["tables"].update(rows=3), "there is no table 'rows'"),
        (lambda record: record["tables"]["rows"].update(version=True), "needs a version and shards"),
        (lambda record: record["tables"]["rows"].update(shards=[{"n": -1}]), "does not say how many rows"),
        (lambda record: record["files"].update({"../../etc/passwd": [1, "00"]}), "is no file of an index"),
        (lambda record: record["files"].update({"rows.lance/data/../../x.y": [1, "00"]}), "is no file of an index"),
        (lambda record: record["files"].update({"/etc/passwd": [1, "00"]}), "is no file of an index"),
        (lambda record: record["files"].update({"rows.lance/data/x.lance": [1]}), "needs a size and a digest"),
    ],
)
def test_hostile_manifests(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(IndexFormatError, match=message):
        Store.open(folder)
    with pytest.raises(IndexFormatError):
        Store.open(folder, for_writing=True)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"digest": 3}', b"[" * 10**5, b"\xff\xfe", b'{"a": 1e999}']
)
def test_manifests_that_are_none(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedIndexError, match="Nothing of the index can be trusted without it"):
        Store.open(folder)


def test_a_manifest_has_a_largest_size(tmp_path: Path) -> None:
    write_record(tmp_path / "record", {"a": "x" * 1000})
    assert read_record(tmp_path / "record", max_bytes=2000) == {"a": "x" * 1000}
    with pytest.raises(DamagedIndexError, match="more than 100 bytes"):
        read_record(tmp_path / "record", max_bytes=100)


def test_a_table_made_of_uncommitted_files(folder: Path) -> None:
    file = next(file for file in Store.open(folder).files if "/data/" in file)
    rewrite(folder, lambda record: record["files"].pop(file))
    with pytest.raises(DamagedIndexError, match="is missing"):
        rows_of(Store.open(folder))
    rewrite(folder, lambda record: record["tables"]["rows"].update(version=77))
    with pytest.raises(DamagedIndexError, match="is not named in the manifest"):
        rows_of(Store.open(folder))


def test_damaged_data_is_no_data(folder: Path) -> None:
    for file in [file for file in Store.open(folder).files if "/data/" in file]:
        (folder / file).write_bytes(bytes((folder / file).stat().st_size))
    with pytest.raises(DamagedIndexError, match="`kinsight verify`"):
        rows_of(Store.open(folder))


def test_leftovers_are_swept_away(folder: Path) -> None:
    table = folder / "rows.lance"
    for name in ("data/left.lance", "_versions/3.manifest", "_indices/0-1/left.idx"):
        (table / name).parent.mkdir(parents=True, exist_ok=True)
        (table / name).write_text("left")
    (folder / "other.lance").mkdir()
    (folder / f".{MANIFEST}.123").touch()
    assert len(Store.open(folder).leftovers()) == 3
    with Store.open(folder, for_writing=True):
        pass
    assert Store.open(folder).leftovers() == []
    assert sorted(path.name for path in folder.iterdir()) == ["lock", MANIFEST, "rows.lance"]
    check_rows(folder, 4)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    assert "process" in lock.path.read_text()
    lock.release()
    lock.release()
    assert lock.path.read_text() == ""
    Lock(tmp_path).release()


def test_digests_do_not_depend_on_order() -> None:
    assert digest_of_record({"a": 1, "b": [2]}) == digest_of_record({"b": [2], "a": 1})
    assert digest_of_record({"a": 1}) != digest_of_record({"a": 2})
