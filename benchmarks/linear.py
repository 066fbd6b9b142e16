"""Statistics in linear time: `python -m benchmarks.linear [network ...]` takes ever more samples, and fits the slope.

Means of labels, their variance, shift and residual of all samples, one output. The slope of the logarithm of time over
that of the number of samples is 1 where time is linear. Compared with one epoch of training on the largest number.
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import numpy as np
import torch

from benchmarks import floors, jobs
from benchmarks.jobs import KINSIGHT, PLAIN
from benchmarks.timing import interleaved
from kinsight import Samples, averages

SIZES = {"mlp": 60_000, "lenet": 60_000}
SHARES = (1 / 60, 1 / 15, 1 / 4, 1)
"""Of all samples: those that time is measured for."""


def measure(name: str, n: int, given: argparse.Namespace) -> None:
    """Time one network, and store it."""
    model, x = jobs.inputs(name, n, given.device)
    targets = torch.randn(n, device=given.device)
    kernel = jobs.kernel_of(model)
    data = {round(n * share): Samples(x[: round(n * share)], targets[: round(n * share)]) for share in SHARES}
    size = kernel.block_size(Samples(x))
    ways = {str(m): partial(averages, kernel, samples) for m, samples in data.items()}
    timings = interleaved({**ways, PLAIN: floors.plain(model, x.split(size))}, n_runs=given.runs, device=given.device)
    seconds = [timings[str(m)].median for m in data]
    slope = float(np.polyfit([math.log(m) for m in data], [math.log(each) for each in seconds], 1)[0])
    shown = {KINSIGHT: timings[str(n)], PLAIN: timings[PLAIN]}
    facts = {
        "off_linear": abs(slope - 1), "slope": slope, "epochs": timings[str(n)].median / timings[PLAIN].median,
        "milliseconds_a_sample": {m: 1e3 * each / int(m) for m, each in zip(data, seconds, strict=True)},
        "batch_size": size,
    }  # fmt: skip
    jobs.keep("linear", name, f"n{n}", given, shown, facts)


def main() -> None:
    """Read the command line."""
    given = jobs.parsed(jobs.parser(__doc__))
    for name in jobs.chosen(given, SIZES):
        measure(name, jobs.scaled(SIZES[name], given), given)


if __name__ == "__main__":
    main()
