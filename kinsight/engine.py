"""Where work on many batches runs: in this process, what is needed next being read while this is worked on."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


@contextlib.contextmanager
def read_ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Iterator[Item]]:
    """The same items, read by a thread of their own, at most `depth` of them before they are asked for.

    What reading raises is raised where the item is asked for. At the end of the block the thread has ended, too, after
    the item it was reading.
    """
    found: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    is_over = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not is_over.is_set():
            with contextlib.suppress(queue.Full):
                found.put((item, error), timeout=0.1)
                break

    def read() -> None:
        try:
            for item in items:
                put(item, None)
                if is_over.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # handed over, and raised there
            put(None, error)

    def given() -> Iterator[Item]:
        while True:
            item, error = found.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=read, daemon=True, name="kinsight reader")
    thread.start()
    try:
        yield given()
    finally:
        is_over.set()
        thread.join()
