"""Building on Ray: the same rows as in this process, whatever happens to an actor."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kinsight import GradientKernel, Index, Samples
from kinsight.errors import ChangedDataError, EngineError, InputError, NonFiniteError, UnknownNameError, WrongModelError
from kinsight.indexing.on_ray import _rows_of
from kinsight.indexing.worker import Worker
from kinsight.samples import Batch
from tests.indexes import DIM, data, network
from tests.test_index import columns, interrupted

ray = pytest.importorskip("ray")

HALF_STEP = 2**-11
"""Sums on another number of threads differ in their last bits, and half precision may round those up or down."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A small Ray, that tells nobody that it was used; whoever hangs is ended, with a traceback."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    faulthandler.dump_traceback_later(300, exit=True)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=150 * 10**6, log_to_driver=False)
    yield
    ray.shutdown()
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinsight.indexing.building.MAX_SHARD", 64)


@pytest.fixture
def kernel() -> GradientKernel:
    return GradientKernel(network())


def assert_same_rows(one: Index, other: Index) -> None:
    """Compare two indexes row by row."""
    found, expected = columns(one), columns(other)
    for name in ("row", "id", "is_number", "content", "rank", "target", "preview"):
        assert found[name] == expected[name], name
    for name in ("sketch", "norm", "outputs"):
        ours, theirs = torch.tensor(found[name]).double(), torch.tensor(expected[name]).double()
        assert ((ours - theirs).abs() <= HALF_STEP * theirs.abs() + 1e-7).all(), name
    assert one.verify() == []


def test_both_engines_build_the_same_rows(kernel: GradientKernel, tmp_path: Path) -> None:
    here = Index.build(tmp_path / "here", kernel, data(), dim=DIM)
    there = Index.build(tmp_path / "there", kernel, data(), dim=DIM, engine="ray")
    assert_same_rows(there, here)
    shards = there.store.tables["rows"]["shards"]
    assert [shard["n"] for shard in shards] == [64, 64, 64, 64, 44]
    assert there.store.tables["rows"]["version"] == 2  # an empty table, and ONE commit
    assert there.store.leftovers() == []
    more = data(100, seed=3, ids=range(1000, 1100))
    assert_same_rows(there.append(kernel, more, engine="ray"), here.append(kernel, more))


class Deadly(Dataset[Any]):
    """Data that kills the process that reads a certain sample, the first time."""

    def __init__(self, marker: Path) -> None:
        self.marker, self.inputs = marker, data().take(range(300)).inputs

    def __len__(self) -> int:
        return 300

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        if place == 200 and not self.marker.exists():
            self.marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inputs[place], int(self.inputs[place, 0] > 0)


def test_a_killed_actor_loses_and_doubles_nothing(
    kernel: GradientKernel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there = Index.build(tmp_path / "there", kernel, Deadly(tmp_path / "marker"), dim=DIM, engine="ray")
    assert int((tmp_path / "marker").read_text()) != os.getpid()
    assert_same_rows(there, Index.build(tmp_path / "here", kernel, data(), dim=DIM))
    assert capfd.readouterr().out == ""


def test_an_interrupted_build_goes_on(kernel: GradientKernel, tmp_path: Path) -> None:
    interrupted(tmp_path / "there", kernel, n_batches=2)
    there = Index.build(tmp_path / "there", kernel, data(), dim=DIM, engine="ray", resume=True)
    assert_same_rows(there, Index.build(tmp_path / "here", kernel, data(), dim=DIM))
    interrupted(tmp_path / "other", kernel, n_batches=2)
    with pytest.raises(ChangedDataError, match=r"sample at position 0 \(0\) has another input or target"):
        Index.build(tmp_path / "other", kernel, data(seed=7), dim=DIM, engine="ray", resume=True)


def test_an_error_is_what_it_is_here_and_what_was_done_stays(kernel: GradientKernel, tmp_path: Path) -> None:
    x = data().take(range(300)).inputs.clone()
    x[130, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="130") as caught:
        Index.build(tmp_path / "index", kernel, x, dim=DIM, engine="ray")
    assert "On an actor" in caught.value.__notes__[0]
    half = Index(tmp_path / "index", partial=True)
    assert len(half) == 128
    x[130, 2] = 0.0
    assert len(Index.build(tmp_path / "index", kernel, x, dim=DIM, resume=True)) == 300


def test_what_cannot_be_sent(kernel: GradientKernel, tmp_path: Path) -> None:
    class Locked(Deadly):
        def __init__(self) -> None:
            super().__init__(tmp_path)
            self.lock = threading.Lock()

    with pytest.raises(EngineError, match=r"cannot be sent to actors: TypeError.*pickle.*lock"):
        Index.build(tmp_path / "index", kernel, Locked(), dim=DIM, engine="ray")
    batches: list[Batch] = list(data().batches(50))
    with pytest.raises(InputError, match="can only be read from front to back"):
        Index.build(tmp_path / "stream", kernel, Samples(batches), dim=DIM, engine="ray")


@pytest.mark.usefixtures("without_type_checks")
def test_unknown_engines_are_refused(kernel: GradientKernel, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="engine 'spark' is unknown: use 'local' or 'ray'"):
        Index.build(tmp_path / "index", kernel, data(), dim=DIM, engine="spark")  # type: ignore[arg-type]
    assert not (tmp_path / "index").exists()


def test_a_worker_with_another_kernel_writes_nothing(kernel: GradientKernel, tmp_path: Path) -> None:
    index = Index.build(tmp_path / "index", kernel, data(), dim=DIM)
    with pytest.raises(WrongModelError, match="was built from weights"):
        Worker.open(index.folder, GradientKernel(network(seed=1)), data(), 0, 300)


def test_actors_that_cannot_be_made() -> None:
    class Dead:
        def iter_rows(self) -> Iterator[dict[str, Any]]:
            yield {"start": 0}
            raise ray.exceptions.RaySystemError("no actor\nModuleNotFoundError: No module named 'kinsight'\n  ^^^^")

    rows = _rows_of(ray, Dead())
    assert next(rows) == {"start": 0}
    with pytest.raises(EngineError, match=r"given up: .*No module named 'kinsight'\. Every node needs kinsight"):
        next(rows)


def test_a_ray_that_is_not_there(kernel: GradientKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def refused(**options: Any) -> None:
        calls.append(options)
        raise ConnectionError("the token is wrong\nand more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(EngineError, match=r"cannot be reached or started: the token is wrong\. Look at RAY_ADDRESS"):
        Index.build(tmp_path / "index", kernel, data(), dim=DIM, engine="ray")
    assert len(calls) == 1  # none of our own is started in place of one that refuses
    assert "address" not in calls[0]  # that of RAY_ADDRESS or `ray start`, none that happens to run
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'kinsight\[ray\]'"):
        Index.build(tmp_path / "index", kernel, data(), dim=DIM, engine="ray")
    assert not (tmp_path / "index").exists()  # nothing is begun before it can be done
