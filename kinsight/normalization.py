"""Which similarity is asked for."""

from __future__ import annotations

from typing import Literal

from kinsight.errors import UnknownNameError

Normalization = Literal["whitened", "flat"]
"""The whitened trace k_C (for one output the cosine), or Tr K(x,y) / sqrt(Tr K(x,x) Tr K(y,y))."""


def check_normalization(name: str) -> None:
    """Raise where there is no such similarity.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in ("whitened", "flat"):
        raise UnknownNameError(f"normalization {name!r} is unknown: use 'whitened' or 'flat'.")
