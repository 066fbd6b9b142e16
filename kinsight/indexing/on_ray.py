"""The worker of engine.py on actors of Ray Data: of a cluster that was started before, or of this machine."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import sys
import traceback
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from kinsight.errors import EngineError, InputError
from kinsight.indexing.worker import Result, Shard, Worker
from kinsight.kernel import GradientKernel
from kinsight.samples import Samples

COMMIT_SECONDS = 600.0
"""Between two commits of what actors have written: what is lost if the process that commits dies."""


class ShardActor:
    """One actor: a worker of its own, on a GPU where it was given one.

    Args:
        sent: a reference to the pickled kernel and samples.
        folder, number, n_committed: as `Worker.open` takes them.
    """

    def __init__(self, sent: Sequence[Any], folder: str, number: int, n_committed: int) -> None:
        self.sent, self.folder, self.number, self.n_committed = sent, folder, number, n_committed
        self.worker: Worker | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """The files written for one shard, or the error that came in between."""
        import ray

        shard = Shard(int(rows["start"][0]), int(rows["n"][0]), bool(rows["is_committed"][0]))
        files, failure = "", b""
        try:
            self.worker = self.worker or self._received()
            files = json.dumps(self.worker(shard, self.worker.take(shard)))
        except Exception as error:
            error.add_note(f"On an actor, process {os.getpid()}:\n{''.join(traceback.format_exception(error))}")
            failure = ray.cloudpickle.dumps(error.with_traceback(None))
        return {"start": [shard.start], "n": [shard.n], "files": [files], "error": [failure]}

    def _received(self) -> Worker:
        import ray
        import torch

        kernel, samples = ray.cloudpickle.loads(ray.get(self.sent[0]))
        if ray.get_gpu_ids() and torch.cuda.is_available():
            kernel.model.to("cuda")
        return Worker.open(Path(self.folder), kernel, samples, self.number, self.n_committed)


class RayEngine:
    """Actors of Ray that write shards, each with a copy of the kernel and the data.

    Args:
        ray: the module, connected.
        packed: the pickled kernel and samples.
    """

    commit_seconds = COMMIT_SECONDS

    def __init__(self, ray: Any, packed: bytes) -> None:
        self.ray, self.packed = ray, packed

    def run(self, worker: Worker) -> Generator[Result]:
        """Every shard with the files that an actor has written for it, in order.

        An actor that dies is started anew, and its shard done again; what it had written of it is named by no commit.
        """
        ray, shards = self.ray, worker.shards
        n_gpus, n_cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        items = [{"start": shard.start, "n": shard.n, "is_committed": shard.is_committed} for shard in shards]
        folder = str(worker.store.folder.resolve())
        with _quiet_and_in_order(ray), contextlib.redirect_stdout(sys.stderr):  # stdout is for answers
            rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                ShardActor,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(len(items), n_gpus or n_cpus))),
                num_gpus=1 if n_gpus else None,
                num_cpus=1,
                fn_constructor_args=([ray.put(self.packed)], folder, worker.number, worker.n_committed),
            )
            for shard, row in zip(shards, _rows_of(ray, rows), strict=True):
                if row["error"]:
                    raise ray.cloudpickle.loads(row["error"])
                assert (row["start"], row["n"]) == (shard.start, shard.n)
                yield shard, json.loads(row["files"])


def _rows_of(ray: Any, rows: Any) -> Iterator[dict[str, Any]]:
    """What actors give, as long as there are any.

    Raises:
        EngineError: there are none left, or none could be made.
    """
    try:
        yield from rows.iter_rows()
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = next(
            (line for line in reversed(lines) if "Error: " in line), lines[0] if lines else type(error).__name__
        )
        raise EngineError(
            f"Ray has given up: {told[:300]}. Every node needs kinsight, and whatever the model and the data are made "
            "of, where Python finds them, and the folder of the index. What was committed is whole: mend it and resume."
        ) from error


@contextlib.contextmanager
def ray_engine(kernel: GradientKernel, samples: Samples) -> Iterator[RayEngine]:
    """An engine on the Ray that this process uses, or RAY_ADDRESS or `ray start` names; else on one of its own.

    Raises:
        EngineError: Ray is not installed, or cannot be reached, or the model or data cannot be sent.
        InputError: the data can only be read from front to back.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise EngineError(
            f"engine 'ray' needs Ray, which cannot be imported ({error}). pip install 'kinsight[ray]', or leave the "
            "engine out: 'local' works in this process."
        ) from error
    if samples.is_stream:
        raise InputError(
            "engine 'ray' reads each shard by itself, and this data can only be read from front to back: every actor "
            "would read all of it. Pass a Dataset with __getitem__, or arrays, or use engine 'local'."
        )
    packed = _packed(ray, kernel, samples)
    with _connected(ray):
        yield RayEngine(ray, packed)


def _packed(ray: Any, kernel: GradientKernel, samples: Samples) -> bytes:
    """What is sent to actors; a model on a GPU as a copy that is on none."""
    if kernel.device.type != "cpu":
        kernel = copy.deepcopy(kernel)
        kernel.model.cpu()
    try:
        packed: bytes = ray.cloudpickle.dumps((kernel, samples))
    except Exception as error:
        raise EngineError(
            f"The model or the data cannot be sent to actors: {type(error).__name__}: {error}. Open files, connections "
            "and locks when they are first needed, not when the Dataset is made, or use engine 'local'."
        ) from error
    return packed


@contextlib.contextmanager
def _quiet_and_in_order(ray: Any) -> Iterator[None]:
    """Ray Data shows no bars of its own, and gives rows in the order of what they were made from."""
    context = ray.data.DataContext.get_current()
    options = context.execution_options
    logger = logging.getLogger("ray.data")
    before = context.enable_progress_bars, options.preserve_order, logger.level
    context.enable_progress_bars, options.preserve_order = False, True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, options.preserve_order = before[:2]
        logger.setLevel(before[2])


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """The Ray that is there; one of our own, for as long as this takes, only where there is none."""
    if ray.is_initialized():
        yield
        return
    try:
        with _no_reports():  # without an address: that of RAY_ADDRESS or `ray start`, never one of another program
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"Ray cannot be reached or started: {str(error).splitlines()[0][:300]}. Look at RAY_ADDRESS, RAY_AUTH_MODE "
            "and the token; `ray status` says what is there. Or use engine 'local'."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_reports() -> Iterator[None]:
    """A Ray started now tells nobody that it was used, unless the environment says it may."""
    name = "RAY_USAGE_STATS_ENABLED"
    if name in os.environ:
        yield
        return
    os.environ[name] = "0"
    try:
        yield
    finally:
        del os.environ[name]
