"""Statistics in linear time: `python -m benchmarks.linear [network ...]` takes ever more samples, and fits the slope.

Each statistic of all samples, one output. The slope of the logarithm of time over that of the number of samples is 1
where time is linear. Compared with one epoch of training on the largest number.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import floors, jobs
from benchmarks.jobs import KINSIGHT, PLAIN
from benchmarks.timing import interleaved
from kinsight import GradientKernel, Samples, averages, fit_map, signed_support, soft_count

SIZES = {"mlp": 60_000, "lenet": 60_000}
SHARES = (1 / 60, 1 / 15, 1 / 4, 1)
"""Of all samples: those that time is measured for."""

STATISTICS: dict[str, Callable[[GradientKernel, Samples], Any]] = {
    "averages": averages,
    "soft_count": soft_count,
    "signed_support": signed_support,
    "fit_map": partial(fit_map, power=1.0),
}
"""What takes linear time, all of them where none is named."""


def measure(name: str, statistic: str, n: int, given: argparse.Namespace) -> None:
    """Time one statistic of one network, and store it."""
    model, x = jobs.inputs(name, n, given.device)
    targets = torch.randn(n, device=given.device)
    kernel, ask = jobs.kernel_of(model), STATISTICS[statistic]
    data = {round(n * share): Samples(x[: round(n * share)], targets[: round(n * share)]) for share in SHARES}
    size = kernel.block_size(Samples(x))
    ways = {str(m): partial(ask, kernel, samples) for m, samples in data.items()}
    timings = interleaved({**ways, PLAIN: floors.plain(model, x.split(size))}, n_runs=given.runs, device=given.device)
    seconds = [timings[str(m)].median for m in data]
    slope = float(np.polyfit([math.log(m) for m in data], [math.log(each) for each in seconds], 1)[0])
    shown = {KINSIGHT: timings[str(n)], PLAIN: timings[PLAIN]}
    facts = {
        "off_linear": abs(slope - 1), "slope": slope, "epochs": timings[str(n)].median / timings[PLAIN].median,
        "milliseconds_a_sample": {m: 1e3 * each / int(m) for m, each in zip(data, seconds, strict=True)},
        "batch_size": size,
    }  # fmt: skip
    jobs.keep("linear", name, f"{statistic}-n{n}", given, shown, facts, f"--statistic {statistic}")


def main() -> None:
    """Read the command line."""
    options = jobs.parser(__doc__)
    options.add_argument("--statistic", choices=list(STATISTICS))
    given = jobs.parsed(options)
    for name in jobs.chosen(given, SIZES):
        for statistic in STATISTICS if given.statistic is None else [given.statistic]:
            measure(name, statistic, jobs.scaled(SIZES[name], given), given)


if __name__ == "__main__":
    main()
