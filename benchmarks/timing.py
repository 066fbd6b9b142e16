"""Timing of jobs side by side: interleaved runs, medians, peak memory, and a record of where and what was run."""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "results"
CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass
class Timing:
    """What one way of doing a job took.

    Args:
        seconds: of every run.
        extra_bytes: largest growth of memory during a run: the process's, or on a GPU what torch has given out.
        max_error: largest difference to the float64 result over the largest value of that, where it was asked for.
        result: what the last run returned.
    """

    seconds: list[float] = field(default_factory=list)
    extra_bytes: int = 0
    max_error: float | None = None
    result: object = None

    @property
    def median(self) -> float:
        """Median of the runs, in seconds."""
        return statistics.median(self.seconds)

    def compare(self, truth: Tensor) -> None:
        """Note how far the result is from that in float64."""
        assert isinstance(self.result, Tensor)
        self.max_error = float((self.result.to(truth.device) - truth).abs().max() / truth.abs().max())

    def record(self) -> dict[str, object]:
        """What is stored."""
        return {
            "median_seconds": self.median, "seconds": self.seconds,
            "extra_bytes": self.extra_bytes, "max_error": self.max_error,
        }  # fmt: skip


def interleaved(
    ways: Mapping[str, Callable[[], object]], *, n_runs: int = 5, device: torch.device = CPU
) -> dict[str, Timing]:
    """Every way of doing a job, run in turn: what disturbs the machine disturbs all of them alike.

    Each is run once to warm up and once for its memory, before the runs that are timed.

    Args:
        ways: name -> the job, done that way.
        n_runs: timed runs of each.
        device: where they run.
    """
    timings = {name: Timing() for name in ways}
    for way in ways.values():
        way()
    for name, way in ways.items():
        timings[name].extra_bytes = extra_bytes(way, device)
    for _ in range(n_runs):
        for name, way in ways.items():
            seconds, timings[name].result = timed(way, device)
            timings[name].seconds.append(seconds)
    return timings


def timed(way: Callable[[], T], device: torch.device = CPU) -> tuple[float, T]:
    """Seconds that one run takes, and what it returns."""
    if device.type != "cuda":
        start = time.perf_counter()
        result = way()
        return time.perf_counter() - start, result
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        begin.record()
        result = way()
        end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000, result


def extra_bytes(way: Callable[[], object], device: torch.device = CPU) -> int:
    """Largest growth of memory during one run."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back_memory()
    with _peak_memory() as peak:
        way()
    return peak[0]


def _give_back_memory() -> None:
    """Memory that runs before have freed goes back to the system: a run that takes it again would seem to need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def _peak_memory(every_seconds: float = 0.002) -> Iterator[list[int]]:
    """The largest growth of resident memory inside, in bytes, as the only element of a list."""
    peak, is_over = [0], threading.Event()
    before = _resident()

    def watch() -> None:
        while not is_over.wait(every_seconds):
            peak[0] = max(peak[0], _resident() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()
        peak[0] = max(peak[0], _resident() - before)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def machine(device: torch.device = CPU) -> dict[str, str | int]:
    """What the numbers were taken on."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    found: dict[str, str | int] = {
        "processor": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


@functools.cache
def commit() -> str:
    """The commit that was run, with '+' where the tree had changes; as it was when this process first asked."""
    root = Path(__file__).parent.parent
    name = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=root, capture_output=True, text=True)
    paths = ["kinsight", "demo", "benchmarks/*.py", "experiments/**/*.py", "experiments/*.py"]
    changes = subprocess.run(["git", "status", "--porcelain", "--", *paths], cwd=root, capture_output=True, text=True)
    return name.stdout.strip() + ("+" if changes.stdout.strip() else "")


def store(
    claim: str,
    job: str,
    command: str,
    timings: Mapping[str, Timing],
    facts: Mapping[str, Any],
    *,
    folder: Path = FOLDER,
    device: torch.device = CPU,
) -> Path:
    """Write what was measured to <folder>/<claim>-<job>.json, and print it.

    Args:
        claim: the script's name.
        job: network and sizes; '-cuda' is added on a GPU.
        command: what does the job again.
        timings: by way.
        facts: further numbers: floors, ratios; what was not measured, and why.
        folder: where results lie.
        device: where the job ran.
    """
    job += "" if device.type == "cpu" else f"-{device.type}"
    record = {
        "claim": claim, "job": job, "command": command, "commit": commit(), "machine": machine(device), **facts,
        "ways": {name: timing.record() for name, timing in timings.items()},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{claim}-{job}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{claim}, {job}")
    for name, timing in timings.items():
        error = "" if timing.max_error is None else f", error {timing.max_error:.1e}"
        print(f"  {name:32} {timing.median:8.3f} s, {timing.extra_bytes / 1e6:6.0f} MB{error}")
    for name, value in facts.items():
        print(f"  {name:32} {value:8.3f}" if isinstance(value, float) else f"  {name:32} {value}")
    return path
