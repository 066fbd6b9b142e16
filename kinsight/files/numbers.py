"""Numbers: what texts and arrays in files hold as tensors, where nothing wraps around or overflows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinsight.errors import SourceError

TOO_LARGE = "is beyond the range of int64, and would become another number. Use smaller integers, or floats."

Place = Callable[[tuple[int, ...]], str]
"""Where the number at an index of an array stands, in words for the user."""

_SIGNED = {"u2": np.int32, "u4": np.int64, "u8": np.int64}
"""Unsigned integers that torch can hold but hardly compute with, and what holds them."""


def number_in(text: str) -> float | None:
    """The number that a text is in ordinary notation, nan and inf too; None where it is none.

    Python also reads 1_0 as 10, and digits of every script: what may not have been meant as a number is none here.

    Example:
        >>> [number_in(text) for text in (" -4e1 ", "inf", "1_0", "0x10", "")]
        [-40.0, inf, None, None, None]
    """
    try:
        number = float(text)
    except ValueError:
        return None
    return None if "_" in text or not text.isascii() else number


def real_tensor(found: NDArray[Any], place: Place) -> Tensor:
    """Floating or complex numbers in torch's default precision.

    Raises:
        SourceError: a finite number that would become inf.
    """
    dtype = torch.get_default_dtype()
    if found.dtype.kind == "c":
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    with np.errstate(over="ignore"):
        given = found.astype(_native(found.dtype), copy=False)
    tensor = torch.from_numpy(np.ascontiguousarray(given)).to(dtype)
    lost = tensor.isinf().numpy()
    if lost.any() and (lost := lost & ~np.isinf(found)).any():
        index = tuple(int(i) for i in np.argwhere(lost)[0])
        raise SourceError(
            f"{place(index)}: {found[index]} is beyond the range of {str(dtype).removeprefix('torch.')} and would "
            "become inf. Scale the numbers, or read them in double precision: torch.set_default_dtype(torch.float64), "
            "--dtype float64 on the command line."
        )
    return tensor


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What torch can take over: this machine's byte order, at most 64 bits a real number."""
    widest = 8 if dtype.kind == "f" else 16
    return np.dtype(f"={dtype.kind}{min(dtype.itemsize, widest)}")


def integer_tensor(found: NDArray[Any], place: Place, *, as_int64: bool = False) -> Tensor:
    """Integers or booleans in a type that torch computes with: their own, or a wider one.

    Raises:
        SourceError: a number beyond 64 bits with a sign.
    """
    wide = np.dtype(np.int64) if as_int64 else np.dtype(_SIGNED.get(found.dtype.str[1:], found.dtype.newbyteorder("=")))
    if found.dtype.itemsize == 8 and found.dtype.kind == "u":
        too_large = found > np.iinfo(np.int64).max
        if too_large.any():
            index = tuple(int(i) for i in np.argwhere(too_large)[0])
            raise SourceError(f"{place(index)}: {found[index]} {TOO_LARGE}")
    return torch.from_numpy(np.ascontiguousarray(found.astype(wide, copy=False)))
