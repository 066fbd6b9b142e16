"""Where shards are worked on: in this process, what comes next being read meanwhile; or on Ray. And their commits."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar, get_args, runtime_checkable

from kinsight.errors import UnknownNameError
from kinsight.indexing.on_ray import ray_engine
from kinsight.indexing.rows import ROWS
from kinsight.indexing.worker import Result, Worker
from kinsight.kernel import GradientKernel
from kinsight.progress import Advance
from kinsight.samples import Samples

Item = TypeVar("Item")

AHEAD = 2
"""Batches that are read before they are asked for."""


@contextlib.contextmanager
def read_ahead(items: Iterable[Item]) -> Iterator[Iterator[Item]]:
    """The same items, read by a thread of their own, at most `AHEAD` of them before they are asked for.

    What reading raises is raised where the item is asked for. At the end of the block the thread has ended, too, after
    the item it was reading.
    """
    found: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(AHEAD)
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


EngineName = Literal["local", "ray"]
"""Where shards are worked on: in this process, or by actors of Ray, on this machine or on a cluster."""


@runtime_checkable
class Engine(Protocol):
    """What has shards worked on."""

    commit_seconds: float
    """Least time between two commits of what is written: 0 commits every shard by itself."""

    def run(self, worker: Worker) -> Generator[Result]:
        """Every shard with the files that were written for it, in order."""
        ...


class LocalEngine:
    """This process, one shard after another, the next ones being read meanwhile."""

    commit_seconds = 0.0

    def run(self, worker: Worker) -> Generator[Result]:
        """Every shard with the files that were written for it, in order."""
        with read_ahead(worker.read()) as items:
            for shard, batch in items:
                yield shard, worker(shard, batch)


@contextlib.contextmanager
def engine_named(name: str, kernel: GradientKernel, samples: Samples) -> Iterator[Engine]:
    """An engine that is ready to work with this kernel on this data.

    Raises:
        UnknownNameError: there is no such engine.
        EngineError, InputError: Ray is not there, or cannot do this.
    """
    if name not in get_args(EngineName):
        raise UnknownNameError(f"engine {name!r} is unknown: use 'local' or 'ray'.")
    if name == "local":
        yield LocalEngine()
        return
    with ray_engine(kernel, samples) as engine:
        yield engine


def run(worker: Worker, engine: Engine, advance: Advance) -> None:
    """Have every shard worked on, and commit what is written, in order.

    Args:
        worker: does one shard.
        engine: calls it.
        advance: is told how many samples are done.
    """
    waiting: list[Result] = []
    since = time.monotonic()
    try:
        with contextlib.closing(engine.run(worker)) as results:
            for result in results:
                waiting.append(result)
                if time.monotonic() - since >= engine.commit_seconds:
                    done, waiting, since = waiting, [], time.monotonic()
                    _commit(worker, done)
                advance(result[0].n)
    finally:  # also of what was done before an error, or Ctrl-C
        _commit(worker, waiting)


def _commit(worker: Worker, done: Sequence[Result]) -> None:
    new = [(shard, files) for shard, files in done if not shard.is_committed]
    if new:
        facts = [{"n": shard.n, "start": worker.first_row + shard.start} for shard, _ in new]
        worker.store.adopt(ROWS, [file for _, files in new for file in files], facts)
