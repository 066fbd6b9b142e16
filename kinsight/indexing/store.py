"""The bytes of an index: tables of rows on disk, committed shard by shard, each file known by its digest.

    folder/
      manifest.json    what is committed: tables, shards, every file with its size and digest; replaced as a whole
      lock             held by the one process that writes
      NAME.lance/      a table, as Lance writes it

A shard counts from the moment `manifest.json` names it. Before, its files are on the disk (fsync), and so is
everything they need; what a crash leaves behind is not named there, and is swept away by the next writer. Lance keeps
no digests and never calls fsync: that is done here. docs/index-format.md says what a reader has to refuse.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("LANCE_LOG", "error")  # read when lance is imported

import lance
import pyarrow as pa
from lance.fragment import write_fragments
from torch import Tensor

from kinsight.errors import DamagedIndexError, IndexExistsError, IndexWriteError, StoreError
from kinsight.indexing.durable import Lock, digest_of, sync, writing
from kinsight.indexing.manifest import MANIFEST, TABLE_NAME, read_manifest, write_manifest

# The workers of a DataLoader are forked; they read the user's data, and never touch an index.
warnings.filterwarnings("ignore", message="lance is not fork-safe", category=UserWarning)

STORAGE_VERSION: Literal["2.2"] = "2.2"
"""Of Lance's data files."""

KEPT_VERSIONS = 16
"""Commits of a table that a reader may lag behind."""


@dataclass(frozen=True)
class Damage:
    """A file that is not what was committed.

    Args:
        file: its path within the index.
        what: what is wrong with it.
    """

    file: str
    what: str


class Store:
    """What is committed in a folder. It stays as it was when opened, whatever is committed later.

    Args:
        folder: where.
        record: content of the manifest.
        lock: the right to write, which `close` gives back.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], lock: Lock | None = None) -> None:
        self.folder = folder
        self.about: dict[str, Any] = dict(record["about"])
        self.tables: dict[str, dict[str, Any]] = dict(record["tables"])
        self.files: dict[str, list[Any]] = dict(record["files"])
        self._lock = lock
        self._opened: dict[str, lance.LanceDataset] = {}

    # --------------------------------------------------------------------------------------- opening and closing

    @classmethod
    def create(cls, folder: Path, about: Mapping[str, Any], *, overwrite: bool = False) -> Store:
        """An empty store, to write in.

        Raises:
            IndexExistsError: there is something in the folder; `overwrite` replaces an index, and nothing else.
            IndexWriteError, BusyIndexError: it cannot be written.
        """
        has_index = check_new(folder, overwrite=overwrite)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder)
            try:
                if has_index:
                    (folder / MANIFEST).unlink()
                    sync(folder)
                    for part in folder.glob("*.lance"):
                        shutil.rmtree(part)
                made = cls(folder, {"about": about, "tables": {}, "files": {}}, lock)
                made._commit()
            except BaseException:
                lock.release()
                raise
        return made

    @classmethod
    def open(cls, folder: Path, *, for_writing: bool = False) -> Store:
        """What is committed in a folder; to write in, what a crash has left behind is swept away first.

        Raises:
            NoIndexError, IndexFormatError, DamagedIndexError: there is no index that can be read.
            IndexWriteError, BusyIndexError: it cannot be written.
        """
        if not for_writing:
            return cls(folder, read_manifest(folder))
        read_manifest(folder)
        with writing(folder):
            lock = Lock(folder)
            try:
                found = cls(folder, read_manifest(folder), lock)  # what it is now that nobody else writes
                found._sweep()
            except BaseException:
                lock.release()
                raise
        return found

    def close(self) -> None:
        """Give back the right to write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------------- writing

    def update(self, **about: Any) -> None:
        """Commit facts about the store."""
        self._need_lock()
        self.about = {**self.about, **about}
        with writing(self.folder):
            self._commit()

    def append(self, name: str, rows: pa.Table, **facts: Any) -> None:
        """Commit a shard of a table: when this returns, its rows outlast a crash.

        Args:
            name: of the table; the first shard makes it.
            rows: of the shard.
            facts: about the shard, kept in the manifest.
        """
        with writing(self.folder):
            self.adopt(name, self.write(name, rows), [{"n": rows.num_rows, **facts}])

    def write(self, name: str, rows: pa.Table) -> list[dict[str, Any]]:
        """Write the files of a shard, on the disk when this returns, and not committed: any process may do that."""
        assert TABLE_NAME.fullmatch(name)
        table = self._path(name)
        with writing(self.folder):
            if not table.exists():
                with contextlib.suppress(OSError):  # another worker makes it at the same time
                    lance.write_dataset(rows.schema.empty_table(), str(table), data_storage_version=STORAGE_VERSION)
            made = write_fragments(rows, str(table), schema=rows.schema, data_storage_version=STORAGE_VERSION)
            for fragment in made:
                for file in fragment.files:
                    sync(table / "data" / file.path)
            sync(table / "data")
        return [fragment.to_json() for fragment in made]

    def adopt(self, name: str, fragments: Sequence[Mapping[str, Any]], shards: Sequence[Mapping[str, Any]]) -> None:
        """Commit shards whose files are written, all of them or none.

        Args:
            name: of the table.
            fragments: what `write` gave for each shard, in the order of their rows.
            shards: facts about each, among them `n`, how many rows it has.
        """
        self._need_lock()
        with writing(self.folder):
            entry = self.tables.get(name, {"version": 1, "shards": []})
            made = [lance.FragmentMetadata.from_json(json.dumps(each)) for each in fragments]
            with self._closing_on_error():
                dataset = lance.LanceDataset.commit(
                    str(self._path(name)),
                    lance.LanceOperation.Append(made),
                    read_version=entry["version"],
                    max_retries=0,
                )
                self._adopt_version(name, dataset, [*entry["shards"], *map(dict, shards)])

    def drop(self, name: str, **about: Any) -> None:
        """Commit that a table is no longer there, with facts about the store; then delete it."""
        self._need_lock()
        with writing(self.folder), self._closing_on_error():
            self.about = {**self.about, **about}
            self.tables = {other: table for other, table in self.tables.items() if other != name}
            self.files = {file: known for file, known in self.files.items() if not file.startswith(f"{name}.lance/")}
            self._opened.pop(name, None)
            self._commit()
            if self._path(name).exists():
                shutil.rmtree(self._path(name))

    def compact(self, name: str) -> None:
        """Commit the same rows in as few files as Lance sees fit. Readers of what was before have to open it anew."""
        self._need_lock()
        with writing(self.folder), self._closing_on_error():
            dataset = self.dataset(name)
            dataset.optimize.compact_files()
            dataset.optimize.optimize_indices()
            self._adopt_version(name, dataset, self.tables[name]["shards"])

    def index_vectors(self, name: str, column: str, n_partitions: int) -> None:
        """Commit an approximate search index of a column of vectors, by cosine, in place of an earlier one."""
        self._need_lock()
        with writing(self.folder), self._closing_on_error():
            dataset = self.dataset(name).create_index(
                column, "IVF_RQ", metric="cosine", num_partitions=n_partitions, replace=True
            )
            self._adopt_version(name, dataset, self.tables[name]["shards"])

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """What is half done is swept away by whoever opens the store next: nothing more is written before."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _adopt_version(self, name: str, dataset: lance.LanceDataset, shards: list[dict[str, Any]]) -> None:
        """Commit what Lance has made of a table: its new files and the older ones that are still part of it."""
        before = {file for file in self.files if file.startswith(f"{name}.lance/")}
        current = _files_of(self.folder, name, dataset)
        for file in current:
            if file not in self.files:
                path = self.folder / file
                sync(path)
                self.files[file] = [path.stat().st_size, digest_of(path)]
        for folder in {(self.folder / file).parent for file in current - before}:
            sync(folder)
        table = self._path(name)
        sync(table)
        sync(self.folder)
        self.files = {file: known for file, known in self.files.items() if file in current or file not in before}
        self.tables = {**self.tables, name: {"version": dataset.version, "shards": shards}}
        self._commit()
        self._opened.pop(name, None)
        for file in before - current:
            (self.folder / file).unlink(missing_ok=True)
        (table / "_versions" / "latest_version_hint.json").unlink(missing_ok=True)

    def _commit(self) -> None:
        write_manifest(self.folder, self.about, self.tables, self.files)

    def _sweep(self) -> None:
        """Delete what no commit names: a crash has left it."""
        for part in self.folder.glob(f".{MANIFEST}.*"):
            part.unlink()
        for table in self.folder.glob("*.lance"):
            for path in sorted(table.rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    with contextlib.suppress(OSError):  # holds something that is named
                        path.rmdir()
                elif path.relative_to(self.folder).as_posix() not in self.files:
                    path.unlink()
            if table.name.removesuffix(".lance") not in self.tables:
                shutil.rmtree(table)

    def _need_lock(self) -> None:
        if self._lock is None:
            raise IndexWriteError(f"Index {str(self.folder)!r} was opened to be read only. Open it for writing.")

    # -------------------------------------------------------------------------------------------------- reading

    def dataset(self, name: str) -> lance.LanceDataset:
        """A table as Lance reads it, at the version that is committed.

        Raises:
            DamagedIndexError: it cannot be opened, or is made of other files than those committed.
        """
        if name not in self._opened:
            self._opened[name] = self._open_table(name)
        return self._opened[name]

    def _open_table(self, name: str) -> lance.LanceDataset:
        version = self.tables[name]["version"]
        file = f"{name}.lance/_versions/{2**64 - 1 - version}.manifest"
        damage = self._damage_of(file) if file in self.files else Damage(file, "is not named in the manifest")
        if damage is not None:
            self._refuse([damage])
        try:
            dataset = lance.dataset(str(self._path(name)), version=version)
            named = {f"{name}.lance/data/{each.path}" for part in dataset.get_fragments() for each in part.data_files()}
        except (OSError, ValueError, RuntimeError) as error:
            self._refuse([Damage(file, f"cannot be read: {str(error)[:200]}")], error)
        if any(each.base_id is not None for part in dataset.get_fragments() for each in part.data_files()):
            self._refuse([Damage(file, "names files outside of the index")])
        missing = [each for each in sorted(named) if each not in self.files or not (self.folder / each).is_file()]
        if missing:
            self._refuse([Damage(each, "is missing") for each in missing])
        return dataset

    def scan(self, name: str, columns: Sequence[str], batch_size: int = 8192) -> Iterator[pa.RecordBatch]:
        """All rows of a table in the order of its shards, some columns of them, batch by batch.

        Raises:
            DamagedIndexError: data cannot be decoded.
        """
        if name not in self.tables:
            return
        scanner = self.dataset(name).scanner(columns=list(columns), batch_size=batch_size, scan_in_order=True)
        with self._reading(name):
            yield from scanner.to_batches()

    def take(self, name: str, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Rows by their number, in the order of the shards."""
        with self._reading(name):
            return self.dataset(name).take(list(rows), columns=list(columns))

    def nearest(self, name: str, column: str, vector: Tensor, k: int, *, n_probes: int, refine: int) -> pa.Table:
        """`row` of the k vectors with the largest cosines, as far as the search index finds them, and `_distance`.

        Args:
            name, column: of the vectors.
            vector: whose neighbors are asked for.
            k: how many.
            n_probes: partitions that are looked into.
            refine: times k vectors are compared in full.
        """
        asked = {
            "column": column,
            "q": vector.numpy(),
            "k": k,
            "nprobes": n_probes,
            "refine_factor": refine,
            "metric": "cosine",
        }
        with self._reading(name):
            return self.dataset(name).to_table(columns=["row"], nearest=asked)

    def slice(self, name: str, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Rows start:stop, in the order of the shards."""
        with self._reading(name):
            return self.dataset(name).to_table(columns=list(columns), offset=start, limit=stop - start)

    def n_rows(self, name: str) -> int:
        """Rows of a table that are committed."""
        return sum(shard["n"] for shard in self.tables.get(name, {"shards": []})["shards"])

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            raise DamagedIndexError(
                f"Index {str(self.folder)!r}: table {name!r} cannot be read: {str(error)[:300]}. `kinsight verify` "
                "names the damaged files. Or another process has compacted the index meanwhile: then open it again."
            ) from error

    # -------------------------------------------------------------------------------------------------- checking

    def verify(self) -> Iterator[tuple[str, Damage | None]]:
        """Every file that is committed, and what is wrong with it, if anything."""
        for file in sorted(self.files):
            yield file, self._damage_of(file)

    def leftovers(self) -> list[str]:
        """Files of tables that no commit names: another process writes them now, or a crash has left them."""
        found = (path for table in self.folder.glob("*.lance") for path in table.rglob("*") if not path.is_dir())
        return sorted(
            file for file in (path.relative_to(self.folder).as_posix() for path in found) if file not in self.files
        )

    def _damage_of(self, file: str) -> Damage | None:
        path = self.folder / file
        n_bytes, digest = self.files[file]
        if path.is_symlink() or not path.is_file():
            return Damage(file, "is missing" if not path.exists() else "is not a plain file")
        found = path.stat().st_size
        if found != n_bytes:
            return Damage(file, f"has {found:,} bytes instead of {n_bytes:,}")
        return None if digest_of(path) == digest else Damage(file, "has other bytes than those committed")

    def _refuse(self, damages: Sequence[Damage], cause: Exception | None = None) -> None:
        shown = "; ".join(f"{damage.file!r} {damage.what}" for damage in damages[:5])
        more = f"; and {len(damages) - 5} more" if len(damages) > 5 else ""
        raise DamagedIndexError(
            f"Index {str(self.folder)!r} is damaged: {shown}{more}. Restore these files from a copy, or build it anew."
        ) from cause

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.lance"


def check_new(folder: Path, *, overwrite: bool) -> bool:
    """Whether an index is to be replaced where a new one is asked for.

    Raises:
        IndexExistsError: there is something in the folder; `overwrite` replaces an index, and nothing else.
    """
    has_index = (folder / MANIFEST).exists()
    if has_index and not overwrite:
        raise IndexExistsError(
            f"There is an index in {str(folder)!r}. Resume it, append to it, pass overwrite=True to replace it, or "
            "name another folder."
        )
    if folder.exists() and not has_index and (not folder.is_dir() or _others(folder)):
        raise IndexExistsError(
            f"{str(folder)!r} holds something that is no index. Nothing was changed: name a new or an empty folder."
        )
    return has_index


def _others(folder: Path) -> bool:
    return any(path.name != "lock" for path in folder.iterdir())


def _files_of(folder: Path, name: str, dataset: lance.LanceDataset) -> set[str]:
    """Files that the current version of a table is made of, and those that tell Lance of the last versions."""
    table, version = folder / f"{name}.lance", dataset.version
    found = [table / "data" / each.path for part in dataset.get_fragments() for each in part.data_files()]
    for index in dataset.describe_indices():
        found += [path for part in index.segments for path in (table / "_indices" / part.uuid).iterdir()]
    found += [
        path for path in (table / "_versions").glob("*.manifest") if _is_recent(2**64 - 1 - int(path.stem), version)
    ]
    found += [
        path for path in (table / "_transactions").glob("*.txn") if _is_recent(int(path.name.split("-")[0]), version)
    ]
    return {path.relative_to(folder).as_posix() for path in found}


def _is_recent(number: int, version: int) -> bool:
    return version - KEPT_VERSIONS < number <= version
