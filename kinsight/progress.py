"""Progress of long work, on stderr: a bar with rate and remaining time, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]

LINE_SECONDS = 10.0
"""From one line to the next, where there is no terminal."""


@contextmanager
def progress_bar(description: str, total: int, *, is_shown: bool) -> Iterator[Advance]:
    """A function that is told how many more units are done.

    Args:
        description: what is being done.
        total: number of units.
        is_shown: shows nothing where False.
    """
    if not is_shown:
        yield lambda amount: None
    elif sys.stderr.isatty():
        yield from _bar(description, total)
    else:
        yield _lines(description, total)


def _bar(description: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


def _lines(description: str, total: int) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= LINE_SECONDS or done >= total:
            rate = done / max(now - start, 1e-9)
            left = (total - done) / rate if rate else float("inf")
            print(f"{description}: {done}/{total}, {rate:.0f}/s, {left:.0f} s left", file=sys.stderr)
            last = now

    return advance
