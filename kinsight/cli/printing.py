"""Printing: rows on stdout, for a person, a pipe or a program; errors and warnings on stderr, in one line each."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinsight.cli.options import Options
from kinsight.errors import KinsightError

TABLE_ENDS = 20
"""Rows shown at each end of a long table in a terminal."""


@dataclass(frozen=True)
class Printed:
    """Rows as they are printed, for a file.

    Args:
        listed: one record a row.
        columns: what they have, where there may be none.
    """

    listed: list[dict[str, Any]]
    columns: Sequence[str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a row."""
        return iter(self.listed)


def print_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    as_json: bool,
    is_quiet: bool = False,
    out: Path | None = None,
    columns: Sequence[str] = (),
    summary: str = "",
    **facts: Any,
) -> None:
    """Rows as one JSON document with the facts about them, as a table in a terminal, else as tab-separated lines.

    Args:
        rows: one record each, all with the same fields.
        as_json: whether a document is asked for.
        is_quiet: whether nothing is said but rows.
        out: the file that the rows are written to instead.
        columns: of that file, where there may be no rows.
        summary: in words; on stderr, or in the document.
        facts: in the document.
    """
    listed = [dict(row) for row in rows]
    if summary:
        facts["summary"] = summary
        if not as_json and not is_quiet:
            print(_printable(summary), file=sys.stderr)
    if out is not None:
        from kinsight.exports import export

        n = export(Printed(listed, columns), out)
        listed = [{"file": str(out), "rows": n}]
    try:
        if as_json:
            print(json.dumps(_plain({**facts, "rows": listed}), allow_nan=False))
        elif sys.stdout.isatty():
            _print_table(listed)
        elif listed:
            print("\t".join(listed[0]))
            for row in listed:
                print("\t".join(map(_cell, row.values())))
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_answer(
    rows: Iterable[Mapping[str, Any]],
    options: Options,
    out: Path | None,
    *,
    columns: Sequence[str] = (),
    summary: str = "",
    **facts: Any,
) -> None:
    """What a verb has found, as its options want it; see `print_rows`."""
    print_rows(
        rows, as_json=options.as_json, is_quiet=options.quiet, out=out, columns=columns, summary=summary, **facts
    )  # fmt: skip


def print_facts(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Facts about one thing: a JSON object, or one a line."""
    if as_json:
        print(json.dumps(_plain(dict(facts)), allow_nan=False))
        return
    print_rows(({"what": name, "is": value} for name, value in facts.items()), as_json=False)


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table for reading; of many rows the first and the last."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        Console().print("nothing found")
        return
    table = Table(*rows[0])
    n_left_out = len(rows) - 2 * TABLE_ENDS
    ends = [rows] if n_left_out <= 1 else [rows[:TABLE_ENDS], rows[-TABLE_ENDS:]]
    for end in ends:
        for row in end:
            table.add_row(*(Text(_cell(value)) for value in row.values()))
        table.add_section()
    Console().print(table)
    if len(ends) > 1:
        print(f"{n_left_out:,} rows between them are not shown; a pipe or --json gets all.", file=sys.stderr)


def _cell(value: Any) -> str:
    """A value in one cell: no line breaks, no tabs, nothing that a terminal would obey."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return _printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _printable(text: str) -> str:
    """Text with control characters written out: ids come from files, and a terminal obeys what it is sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_error(error: Exception) -> None:
    """One line on stderr: what is wrong; for errors of usage and for what nobody expected also where to look."""
    usage: Callable[[], str] | None = getattr(error, "format_message", None)
    message = _printable(" ".join((usage() if usage else str(error)).split()))
    if usage is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", "kinsight")
        message = f"{message} ({command} --help shows what it takes)"
    elif not isinstance(error, KinsightError | OSError):
        message = f"unexpected {type(error).__name__}: {message} (--debug shows where)"
    print(f"error: {message}", file=sys.stderr)


def show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """One line on stderr; takes the place of `warnings.showwarning`."""
    print(f"warning: {_printable(str(message))}", file=sys.stderr)
