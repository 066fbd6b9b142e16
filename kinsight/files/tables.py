"""Tables: samples from a CSV file."""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinsight.errors import EmptyDataError, SourceError
from kinsight.files.numbers import TOO_LARGE, number_in, real_tensor
from kinsight.files.paths import existing
from kinsight.samples import Samples

_INTEGER = re.compile(r"[+-]?[0-9]+")
_LIKE_A_NUMBER = re.compile(r"[+\-\s.,_]*\d[\d\s.,_]*([eE][+-]?\d+)?")
"""Digits, signs and separators: +-3, 1_0, 1,5. As the name of a class it would be a number that went wrong."""


@dataclass(frozen=True)
class _Table:
    """What is read: the numbers of the input columns, row by row, and of each row its target, id and line."""

    header: list[str]
    columns: list[int]
    values: array[float] = field(default_factory=lambda: array("d"))
    targets: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))

    @property
    def names(self) -> list[str]:
        return [self.header[i] for i in self.columns]


def read_csv(path: str, options: Mapping[str, str], batch_size: int = 64) -> Samples:
    """Samples of a CSV table: its numeric columns as inputs [n features].

    Args:
        path: the file: UTF-8, commas, the names of the columns in the first line.
        options: `target`: the column of targets; integers are classes, other numbers are values, texts are
            classes sorted by name. `id`: the column of ids, read as texts. `drop`: columns to leave out, with
            commas.
        batch_size: of the samples returned.

    Raises:
        SourceError: there is no such file, it is not UTF-8 or no CSV, no header, no such column, or a cell that is not
            a finite number within the range of the default dtype. The line is named.
        EmptyDataError: there are no rows.
    """
    file = existing(path, "a CSV file with a header")
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            found = _read(_rows(csv.reader(stream, strict=True), file), file, options)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{str(file)!r}{_first_line_not_utf8(file)} is not UTF-8: {error.reason}. Save the table as UTF-8."
        ) from error
    except OSError as error:
        raise SourceError(f"{str(file)!r} cannot be read: {error.strerror or error}.") from error
    if not found.lines:
        raise EmptyDataError(f"{str(file)!r} has a header and no rows.")
    names = found.names
    table = real_tensor(
        np.frombuffer(found.values).reshape(-1, len(names)),
        lambda index: f"{str(file)!r}, line {found.lines[index[0]]}, column {names[index[1]]!r}",
    )
    targets, class_names = _targets(found, file, options["target"]) if "target" in options else (None, None)
    return Samples(
        table,
        targets,
        ids=found.ids if "id" in options else None,
        class_names=class_names,
        preview=lambda i: ", ".join(f"{name}={x:g}" for name, x in zip(names, table[i].tolist(), strict=True)),
        batch_size=batch_size,
    )


def _rows(reader: Any, file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every line that is not blank."""
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise SourceError(
                f"{str(file)!r}, line {reader.line_num}: {error}. Look for a double quote that is not closed: a cell "
                'that holds commas, quotes or line breaks stands in quotes, "like ""this""".'
            ) from error
        if cells is None:
            return
        if cells:
            yield reader.line_num, cells


def _read(rows: Iterator[tuple[int, list[str]]], file: Path, options: Mapping[str, str]) -> _Table:
    _, cells = next(rows, (0, None))
    if cells is None:
        raise EmptyDataError(
            f"{str(file)!r} is empty: it has no header, whose first line names the columns, and no rows."
        )
    header = _header(cells, file)
    drop = options["drop"].split(",") if "drop" in options else []
    for name in [*drop, *(options[key] for key in ("target", "id") if key in options)]:
        if name not in header:
            raise SourceError(f"{str(file)!r} has no column {name!r}. It has: {', '.join(header)}.")
    target, id_ = (header.index(options[key]) if key in options else None for key in ("target", "id"))
    columns = [i for i, name in enumerate(header) if name not in drop and i not in (target, id_)]
    if not columns:
        raise SourceError(f"{str(file)!r} has no column left for the inputs. It has: {', '.join(header)}.")
    table = _Table(header, columns)
    for line, cells in rows:
        if len(cells) != len(header):
            raise SourceError(
                f"{str(file)!r}, line {line}: {len(cells)} cells for {len(header)} columns. A cell that holds a comma "
                "stands in double quotes."
            )
        table.values.extend([_number(cells[i], file, line, header[i]) for i in columns])
        table.lines.append(line)
        if target is not None:
            table.targets.append(_text(cells[target], file, line).strip())
        if id_ is not None:
            table.ids.append(_text(cells[id_], file, line))
    return table


def _header(cells: list[str], file: Path) -> list[str]:
    header = [_text(cell, file, 1).strip() for cell in cells]
    if all(number_in(cell) is not None for cell in header):
        raise SourceError(f"{str(file)!r} has no header: its first line has to name the columns, and is {cells}.")
    if len(header) == 1 and (other := next((sign for sign in ";\t|" if sign in header[0]), None)):
        raise SourceError(f"{str(file)!r} is separated by {other!r}; a CSV file with commas is needed.")
    if "" in header:
        raise SourceError(
            f"{str(file)!r}: column {header.index('') + 1} of {len(header)} has no name in the first line. Name it, or "
            "leave it out where it only counts the rows (in pandas: to_csv(path, index=False))."
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise SourceError(f"{str(file)!r} has more than one column named {twice[0]!r}. Rename all but one.")
    return header


def _text(cell: str, file: Path, line: int) -> str:
    if "\0" in cell:
        raise SourceError(
            f"{str(file)!r}, line {line}: {_short(cell)} has a NUL byte: this is no table of text, or one in UTF-16. "
            "Save the table as UTF-8."
        )
    return cell


def _number(text: str, file: Path, line: int, column: str, *, is_target: bool = False) -> float:
    number = number_in(text)
    if number is None or not -np.inf < number < np.inf:
        what, way_out = ("target column", "the row") if is_target else ("column", f"the column, with drop={column}")
        raise SourceError(
            f"{str(file)!r}, line {line}, {what} {column!r}: {_short(text)} is not a finite number. Mend the cell, or "
            f"leave out {way_out}."
        )
    return number


def _targets(table: _Table, file: Path, column: str) -> tuple[Tensor, list[str] | None]:
    """Targets, and the names of the classes where they are texts."""
    texts = table.targets
    is_number = [number_in(text) is not None for text in texts]
    has_numbers = any(is_number)
    are_names = not all(is_number)
    for text, line in zip(texts, table.lines, strict=True):
        if not text or (are_names and text.lower() == "nan"):
            raise SourceError(
                f"{str(file)!r}, line {line}, target column {column!r}: {_short(text)} is no label. Fill it in, or "
                "leave out the row."
            )
    for text, line, is_one in zip(texts, table.lines, is_number, strict=True):
        if has_numbers and not is_one:
            raise SourceError(
                f"{str(file)!r}, line {line}, target column {column!r}: {_short(text)} stands among "
                f"{sum(is_number)} numbers in {len(texts)} rows. Make all of them numbers, or all of them names of "
                "classes."
            )
        if not is_one and _LIKE_A_NUMBER.fullmatch(text):
            raise SourceError(
                f"{str(file)!r}, line {line}, target column {column!r}: {_short(text)} looks like a number and is "
                "none. Write it as a number such as -10 or 0.5, or put a letter into the name of the class."
            )
    if not has_numbers:
        class_names = sorted(set(texts))
        number = {name: i for i, name in enumerate(class_names)}
        return torch.tensor([number[text] for text in texts]), class_names
    if all(map(_INTEGER.fullmatch, texts)):
        return torch.tensor([_class(*each, file, column) for each in zip(texts, table.lines, strict=True)]), None
    values = [_number(text, file, line, column, is_target=True) for text, line in zip(texts, table.lines, strict=True)]

    def place(index: tuple[int, ...]) -> str:
        return f"{str(file)!r}, line {table.lines[index[0]]}, target column {column!r}"

    return real_tensor(np.array(values), place), None


def _class(text: str, line: int, file: Path, column: str) -> int:
    # int() refuses thousands of digits with an error of its own
    if len(text.lstrip("+-0")) > 19 or not -(2**63) <= int(text) < 2**63:
        raise SourceError(f"{str(file)!r}, line {line}, target column {column!r}: {_short(text)} {TOO_LARGE}")
    return int(text)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _first_line_not_utf8(file: Path) -> str:
    """The decoder reads ahead, so where it stumbled is looked up."""
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f", line {number} (byte {line[error.start]:#04x})"
    return ""
