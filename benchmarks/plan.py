"""What `plan` says before, next to what then happens: `python -m benchmarks.plan [network ...]`.

Time is the median of the runs, memory the largest growth of the process in one of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from torch import Tensor

from benchmarks import jobs
from benchmarks.jobs import KINSIGHT
from benchmarks.timing import interleaved
from kinsight import GradientKernel, Samples, neighbors, plan, soft_count
from kinsight.plan import Question

ASKED: dict[str, list[tuple[Question, int, int]]] = {
    "mlp": [("gram", 0, 1024), ("similarity", 64, 4096), ("soft_count", 0, 4096)],
    "lenet": [("gram", 0, 512), ("similarity", 64, 4096), ("soft_count", 0, 2048)],
    "resnet18": [("gram", 0, 64)],
    "vit": [("gram", 0, 64), ("soft_count", 0, 128)],
    "encoder": [("gram", 0, 64)],
}
"""Question, queries (0: the data itself) and samples of each network."""


def job_of(kernel: GradientKernel, question: Question, x: Tensor, y: Tensor | None) -> Callable[[], object]:
    """What is planned: samples x, and queries y where they are others."""
    if question == "gram":
        return partial(kernel, x) if y is None else partial(kernel, y, x)
    if question == "soft_count":
        return partial(soft_count, kernel, x, normalization="flat")
    return partial(neighbors, kernel, x if y is None else y, x, normalization="flat")


def off(planned: float, happened: float) -> float:
    """How many times too large or too small: 1 where the plan was right."""
    return max(planned / happened, happened / planned)


def measure(name: str, question: Question, q: int, n: int, given: argparse.Namespace) -> None:
    """Plan one job, do it, and store both."""
    model, both = jobs.inputs(name, q + n, given.device)
    kernel = jobs.kernel_of(model)
    y, x = (both[:q] if q else None), both[q:]
    said = plan(kernel, Samples(x), None if y is None else Samples(y), question=question)
    timings = interleaved({KINSIGHT: job_of(kernel, question, x, y)}, n_runs=given.runs, device=given.device)
    took = timings[KINSIGHT]
    planned_bytes = said.peak_bytes + said.result_bytes
    facts = {
        "planned_seconds": said.seconds,
        "planned_bytes": planned_bytes,
        "extra_bytes": took.extra_bytes,
        "seconds_off": off(said.seconds, took.median),
        "bytes_off": off(planned_bytes, took.extra_bytes),
        "n_passes": said.n_passes,
        "batch_size": said.batch_size,
    }
    jobs.keep("plan", name, f"{question}-{q}x{n}" if q else f"{question}-n{n}", given, timings, facts)


def main() -> None:
    """Read the command line."""
    given = jobs.parsed(jobs.parser(__doc__))
    for name in jobs.chosen(given, ASKED):
        for question, q, n in ASKED[name]:
            measure(name, question, q and jobs.scaled(q, given), jobs.scaled(n, given), given)


if __name__ == "__main__":
    main()
