"""Archives: samples from an npz archive. Its headers are judged before a single array is read."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kinsight.errors import SourceError
from kinsight.files.numbers import integer_tensor, real_tensor
from kinsight.files.paths import existing
from kinsight.samples import Samples

MAX_BYTES = 2**34
"""What the arrays that are read may take in memory together: a few bytes of an archive can unpack to any size."""

_INPUTS, _TARGETS, _IDS = ("x", "inputs"), ("y", "targets"), ("ids",)
_KINDS = {
    "inputs": ("biufc", "Inputs are numbers: encode texts and dates first."),
    "targets": ("biuf", "Targets are numbers: save the index of each class."),
    "ids": ("iuU", "Ids are integers or texts."),
}


@dataclass(frozen=True)
class _Member:
    """An array of the archive by its header.

    Args:
        name: of the array.
        info: where it lies in the archive.
        shape: what the header says.
        dtype: the same.
        n_data: bytes after the header.
    """

    name: str
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    n_data: int

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: str, options: Mapping[str, str], batch_size: int = 64) -> Samples:
    """Samples of an npz archive: arrays `x` or `inputs` [n ...]; maybe `y` or `targets`, and `ids`.

    Floating arrays take the default dtype, integer targets int64. Other arrays in the archive are not read.

    Raises:
        SourceError: there is no such file, it is not an npz archive or damaged, it is not clear what is what, an array
            needs unpickling, is of a kind that has no tensor, has a number that does not fit, or all of them are larger
            than `MAX_BYTES`.
    """
    file = existing(path, "an npz archive (numpy.savez)")
    try:
        with open(file, "rb") as stream:
            _check_is_archive(stream, file)
            with zipfile.ZipFile(stream) as archive:
                members = _chosen(archive, file)
                arrays = {role: _array(archive, member) for role, member in members.items()}
    except SourceError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and numpy raise nearly anything
        raise SourceError(
            f"{str(file)!r} cannot be read as an npz archive; it may be damaged: {_one_line(error)}. Save it anew with "
            "numpy.savez(path, x=x, y=y)."
        ) from error
    tensors = {
        role: _tensor(array, file, members[role], as_int64=role == "targets")
        for role, array in arrays.items()
        if role != "ids"
    }
    ids = arrays["ids"].tolist() if "ids" in arrays else None
    return Samples(tensors["inputs"], tensors.get("targets"), ids=ids, batch_size=batch_size)


def _check_is_archive(stream: Any, file: Path) -> None:
    start = stream.read(6)
    if start == b"\x93NUMPY":
        raise SourceError(f"{str(file)!r} holds one array without a name. Save it as numpy.savez(path, x=x).")
    if start[:2] != b"PK":
        state = "is empty" if not start else f"begins with {start!r}"
        raise SourceError(
            f"{str(file)!r} cannot be read as an npz archive: it {state}. What numpy.savez(path, x=x, y=y) writes is "
            "looked for; a pickle is not read, since unpickling runs code from the file."
        )
    stream.seek(0)


def _chosen(archive: zipfile.ZipFile, file: Path) -> dict[str, _Member]:
    """The arrays that are to be read, by what they are for, their headers judged."""
    infos = archive.infolist()
    names = [info.filename.removesuffix(".npy") for info in infos]
    twice = [name for name, n in Counter(names).items() if n > 1]
    found = {
        role: [name for name in dict.fromkeys(names) if name in known]
        for role, known in (("inputs", _INPUTS), ("targets", _TARGETS), ("ids", _IDS))
    }
    if twice or len(found["inputs"]) != 1 or len(found["targets"]) > 1:
        raise SourceError(
            f"{str(file)!r} holds the arrays {', '.join(map(repr, names)) or 'none'}: one named 'x' or "
            "'inputs' is needed, at most one named 'y' or 'targets', and maybe 'ids'."
        )
    members = {
        role: _member(archive, infos[names.index(known[0])], known[0], role, file)
        for role, known in found.items()
        if known
    }
    n_bytes = sum(member.n_bytes for member in members.values())
    if n_bytes > MAX_BYTES:
        raise SourceError(
            f"{str(file)!r}, {file.stat().st_size:,} bytes, unpacks to {n_bytes:,}, more than the {MAX_BYTES:,} that "
            "are read into memory. If that is meant, read it yourself: numpy.load(..., mmap_mode='r') of an .npy file, "
            "in a function that is named as pkg.module:factory."
        )
    return members


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, role: str, file: Path) -> _Member:
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
        member = _Member(name, info, shape, dtype, info.file_size - stream.tell())
    where = f"{str(file)!r}, array {name!r}"
    if dtype.hasobject:
        raise SourceError(
            f"{where}, cannot be read: it holds Python objects, which need unpickling, which runs code from the file "
            "and is never done. Save an array of numbers."
        )
    kinds, advice = _KINDS[role]
    if dtype.kind not in kinds or dtype.itemsize == 0:
        raise SourceError(f"{where}, is of dtype {dtype}. {advice}")
    if not shape or 0 in shape[1:] or (role == "ids" and len(shape) != 1):
        raise SourceError(f"{where}, has the shape {list(shape)}. {'[n]' if role == 'ids' else '[n ...]'} is needed.")
    if member.n_bytes != member.n_data:
        raise SourceError(
            f"{where}, is damaged: a shape of {list(shape)} and {dtype} makes {member.n_bytes:,} bytes, and there are "
            f"{member.n_data:,}. Save it anew."
        )
    return member


def _header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:  # version 3 is for records only
        raise ValueError(f"arrays of format version {version} are not read")
    shape, _, dtype = readers[version](stream)
    if any(length < 0 for length in shape):
        raise ValueError(f"a shape of {list(shape)}")
    return shape, dtype


def _array(archive: zipfile.ZipFile, member: _Member) -> NDArray[Any]:
    with archive.open(member.info) as stream:
        found: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # the checksum is compared at the end only
    return found


def _tensor(found: NDArray[Any], file: Path, member: _Member, *, as_int64: bool) -> Tensor:
    def place(index: tuple[int, ...]) -> str:
        return f"{str(file)!r}, array {member.name!r}, sample {index[0] if index else 0}"

    if found.dtype.kind in "fc":
        return real_tensor(found, place)
    return integer_tensor(found, place, as_int64=as_int64)


def _one_line(error: Exception) -> str:
    """What the error says, at most 200 characters of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."
