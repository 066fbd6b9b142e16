"""Paths: the file or folder that a string names."""

from __future__ import annotations

from pathlib import Path

from kinsight.errors import SourceError


def existing(path: str, what: str, *, is_folder: bool = False) -> Path:
    """The file of this name, or the folder.

    Args:
        path: as the user wrote it; `~` is the home folder.
        what: what was looked for, in words.
        is_folder: whether it has to be a folder.

    Raises:
        SourceError: there is none.
    """
    try:
        found = Path(path).expanduser()
        if found.is_dir() if is_folder else found.is_file():
            return found
        state = "is a folder" if found.is_dir() else "is no file of data" if found.exists() else "does not exist"
        state = "is not a folder" if is_folder and found.exists() else state
        name = str(found.absolute())
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        name, state = path[:200], f"cannot be looked up ({getattr(error, 'strerror', None) or error})"
    raise SourceError(f"{name!r} {state}; {what} was looked for.")
