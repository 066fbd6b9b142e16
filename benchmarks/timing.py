"""Timing of jobs side by side: interleaved runs, medians, peak memory, and a record of where and what was run."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "results"


@dataclass
class Timing:
    """What one way of doing a job took.

    Args:
        seconds: of every run.
        extra_bytes: largest growth of the process's memory during a run.
        max_error: largest relative error against float64, where it was asked for.
    """

    seconds: list[float] = field(default_factory=list)
    extra_bytes: int = 0
    max_error: float | None = None

    @property
    def median(self) -> float:
        """Median of the runs, in seconds."""
        return statistics.median(self.seconds)


def interleaved(ways: Mapping[str, Callable[[], object]], *, n_runs: int = 5, n_warm: int = 1) -> dict[str, Timing]:
    """Every way of doing a job, run in turn: what disturbs the machine disturbs all of them alike.

    Args:
        ways: name -> the job, done that way.
        n_runs: timed runs of each.
        n_warm: runs before, not timed.
    """
    timings = {name: Timing() for name in ways}
    for _ in range(n_warm):
        for way in ways.values():
            way()
    for _ in range(n_runs):
        for name, way in ways.items():
            with _peak_memory() as peak:
                start = time.perf_counter()
                way()
                timings[name].seconds.append(time.perf_counter() - start)
            timings[name].extra_bytes = max(timings[name].extra_bytes, peak[0])
    return timings


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


def machine() -> dict[str, str | int]:
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
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def commit() -> str:
    """The commit that was run, with '+' where the tree had changes."""
    root = Path(__file__).parent.parent
    name = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=root, capture_output=True, text=True)
    changes = subprocess.run(
        ["git", "status", "--porcelain", "--", "kinsight", "benchmarks/*.py"], cwd=root, capture_output=True, text=True
    )
    return name.stdout.strip() + ("+" if changes.stdout.strip() else "")


def store(
    claim: str, job: str, command: str, timings: Mapping[str, Timing], **facts: float | int | str | dict[str, str]
) -> Path:
    """Write what was measured to results/<claim>-<job>.json, and print it.

    Args:
        claim: the script's name.
        job: network and sizes.
        command: what was typed.
        timings: by way.
        facts: further numbers: floors, marks; what was not measured, and why.
    """
    record = {
        "claim": claim, "job": job, "command": command, "commit": commit(), "machine": machine(), **facts,
        "ways": {name: {"median_seconds": timing.median, **asdict(timing)} for name, timing in timings.items()},
    }  # fmt: skip
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{claim}-{job}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{claim}, {job}")
    for name, timing in timings.items():
        error = "" if timing.max_error is None else f", error {timing.max_error:.1e}"
        print(f"  {name:32} {timing.median:8.3f} s, {timing.extra_bytes / 1e6:6.0f} MB{error}")
    for name, value in facts.items():
        if isinstance(value, dict):
            for key, text in value.items():
                print(f"  {name}: {key}: {text}")
        else:
            print(f"  {name:32} {value:8.3f}" if isinstance(value, float) else f"  {name:32} {value}")
    return path
