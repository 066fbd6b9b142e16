"""The manifest of an index: what is committed in its folder, and what of it a reader refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinsight.errors import IndexFormatError, NoIndexError
from kinsight.indexing.durable import read_record, write_record

MANIFEST = "manifest.json"
FORMAT, VERSION = "kinsight index", 1
"""What it says it is."""

MAX_MANIFEST_BYTES = 2**28

TABLE_NAME = re.compile(r"[a-z][a-z_]{0,30}")
_FOLDERS = "data|_versions|_transactions|_deletions|_indices/[0-9a-f-]{1,64}"
_FILE = re.compile(rf"{TABLE_NAME.pattern}\.lance/(?:{_FOLDERS})/[\w-]+(?:\.[\w-]+)+", re.ASCII)


def write_manifest(folder: Path, about: Mapping[str, Any], tables: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Commit what an index consists of.

    Args:
        folder: of the index.
        about: what it was built with.
        tables: name -> the version that Lance gave it, and facts about each shard.
        files: path within the folder -> [bytes, digest].
    """
    record = {"format": FORMAT, "version": VERSION, "about": about, "tables": tables, "files": files}
    write_record(folder / MANIFEST, record)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index, as far as it can be trusted before any of its files is opened.

    Raises:
        NoIndexError: there is none.
        DamagedIndexError: it is not what was written.
        IndexFormatError: it is of another format, or makes no sense.
    """
    try:
        record = read_record(folder / MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoIndexError(
            f"There is no index in {str(folder)!r}: no {MANIFEST}. `kinsight index` builds one, or name another folder."
        ) from error
    if record.get("format") != FORMAT or not isinstance(record.get("version"), int):
        raise IndexFormatError(f"{str(folder / MANIFEST)!r} is not the manifest of an index of kinsight.")
    if record["version"] != VERSION:
        raise IndexFormatError(
            f"Index {str(folder)!r} has format {record['version']}; this kinsight reads format {VERSION}. Use the "
            "version of kinsight that built it, or build it anew."
        )
    problem = _problem_of(record)
    if problem:
        raise IndexFormatError(f"The manifest of index {str(folder)!r} makes no sense: {problem}.")
    return record


def _problem_of(record: Mapping[str, Any]) -> str:
    """What is wrong with a manifest whose digest is right; '' where nothing is."""
    about, tables, files = (record.get(key) for key in ("about", "tables", "files"))
    if not (isinstance(about, dict) and isinstance(tables, dict) and isinstance(files, dict)):
        return "about, tables and files have to be objects"
    for name, table in tables.items():
        if not TABLE_NAME.fullmatch(name) or not isinstance(table, dict):
            return f"there is no table {name[:50]!r}"
        version, shards = table.get("version"), table.get("shards")
        if not _is_count(version) or not isinstance(shards, list):
            return f"table {name!r} needs a version and shards"
        if not all(isinstance(shard, dict) and _is_count(shard.get("n")) for shard in shards):
            return f"a shard of table {name!r} does not say how many rows it has"
    for file, known in files.items():
        if not _FILE.fullmatch(file):
            return f"{file[:100]!r} is no file of an index"
        if not (isinstance(known, list) and len(known) == 2 and _is_count(known[0]) and isinstance(known[1], str)):
            return f"{file!r} needs a size and a digest"
    return ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
