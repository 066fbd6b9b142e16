"""Files that outlast a crash: written to the disk before they count, replaced as a whole, known by their digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinsight.errors import BusyIndexError, DamagedIndexError, IndexWriteError, StoreError
from kinsight.outputs import bytes_in_words

CHUNK_BYTES = 2**22
"""Read at a time, where a whole file need not be."""


def digest_of(path: Path) -> str:
    """blake2b over a file, 16 bytes in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(CHUNK_BYTES):
            digest.update(part)
    return digest.hexdigest()


def digest_of_record(record: dict[str, Any]) -> str:
    """blake2b over a record of plain values, whatever order they stand in."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def sync(path: Path) -> None:
    """Return when a file, or what a folder lists, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole: whoever reads it finds the old content or the new one, also after a crash."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write plain values as JSON, with their digest."""
    whole = {**record, "digest": digest_of_record(record)}
    replace_file(path, json.dumps(whole, indent=1, ensure_ascii=True, allow_nan=False).encode("ascii"))


def read_record(path: Path, *, max_bytes: int) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        DamagedIndexError: the file is another.
        FileNotFoundError: there is none.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ValueError(f"it has more than {max_bytes:,} bytes")
        whole = json.loads(content.decode("ascii"))
        if not isinstance(whole, dict):
            raise ValueError("it is not an object")
        found = whole.pop("digest", None)
        if found != digest_of_record(whole):
            raise ValueError("its content does not have the digest that it states")
    except (ValueError, RecursionError) as error:
        raise DamagedIndexError(
            f"{str(path)!r} is damaged: {str(error)[:200] or type(error).__name__}. Nothing of the index can be "
            "trusted without it. Restore the file from a copy, or build the index anew."
        ) from error
    return whole


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say what a full or read-only disk means.

    Raises:
        IndexWriteError: in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        text = str(error)
        reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
        reasons |= {errno.EROFS: "the disk is read-only", errno.EACCES: "writing there is not permitted"}
        reasons |= {errno.EPERM: "writing there is not permitted", errno.ENOTDIR: "a part of it is a file"}
        number = error.errno or next((known for known in reasons if os.strerror(known).lower() in text.lower()), None)
        why = reasons.get(number or 0, text[:300])
        raise IndexWriteError(
            f"Index {str(folder)!r} cannot be written: {why}. What was committed before is whole. Make room or give "
            "permission, then do the same again: it goes on from there."
        ) from error


def check_room(folder: Path, n_bytes: int, what: str, advice: str, *, is_replaced: bool = False) -> None:
    """Raise where a disk has less room than is known to be needed: before an hour of work, not after it.

    Args:
        folder: where is written; it need not exist.
        n_bytes: needed at least.
        what: takes them, in words.
        advice: what to do, where there is less.
        is_replaced: whether tables that are in the folder make room.

    Raises:
        IndexWriteError: there is less.
    """
    with writing(folder):
        there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        usage = shutil.disk_usage(there)
        room = usage.free
        if is_replaced:
            room += sum(path.stat().st_size for path in folder.glob("*.lance/**/*") if path.is_file())
    if usage.total and n_bytes > room:  # a file system may know of no size
        raise IndexWriteError(
            f"{what} take {bytes_in_words(n_bytes)}, and where index {str(folder)!r} lies there is room for "
            f"{bytes_in_words(room)}. {advice}"
        )


class Lock:
    """The right to write in a folder, held until `release` or the end of the process.

    Raises:
        BusyIndexError: another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._number: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._number, 100, 0).decode("ascii", "replace").strip()
            os.close(self._number)
            raise BusyIndexError(
                f"Index {str(folder)!r} is being written by another process{f' ({holder})' if holder else ''}. Two "
                "builders at once would lose rows. Wait until it is done, or stop it: what it committed stays."
            ) from error
        os.ftruncate(self._number, 0)
        os.pwrite(self._number, f"process {os.getpid()} on {os.uname().nodename}".encode("ascii", "replace"), 0)

    def release(self) -> None:
        """Let others write."""
        if self._number is not None:
            os.ftruncate(self._number, 0)
            os.close(self._number)
            self._number = None
