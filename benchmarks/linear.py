"""Statistics in linear time: `python -m benchmarks.linear [network ...]` takes ever more samples, and fits the slope.

Each statistic of all samples, one output. The slope of the logarithm of time over that of the number of samples is 1
where time is linear. Compared with one epoch of training on the largest number, and with that slope of such epochs:
what a machine does to long and to short work alike.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import floors, jobs
from benchmarks.jobs import KINSIGHT, PLAIN
from benchmarks.timing import interleaved
from kinsight import GradientKernel, Index, Samples, averages, fit_map, signed_support, soft_count

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


OF_INDEX: dict[str, Callable[[Index], Any]] = {
    "denoising_sums": Index.denoising_sums,
    "label_suspects": partial(Index.label_suspects, n_suspects=0),
}
"""The same of an index, from sketches of `DIM` numbers; building it is not timed here."""

DIM = 1024


def measure(name: str, statistic: str, n: int, given: argparse.Namespace) -> None:
    """Time one statistic of one network, and store it."""
    model, x = jobs.inputs(name, n, given.device)
    targets = torch.randn(n, device=given.device)
    kernel = jobs.kernel_of(model)
    data = {m: Samples(x[:m], targets[:m]) for m in (round(n * share) for share in SHARES)}
    size = kernel.block_size(Samples(x))
    with tempfile.TemporaryDirectory() as folder:
        ways = {str(m): _asked(statistic, kernel, samples, Path(folder) / str(m)) for m, samples in data.items()}
        epochs = {f"{PLAIN}, {m}": floors.plain(model, x[:m].split(size)) for m in data}
        timings = interleaved({**ways, **epochs}, n_runs=given.runs, device=given.device)
    seconds, plain = ([timings[way].median for way in each] for each in (ways, epochs))
    shown = {KINSIGHT: timings[str(n)], PLAIN: timings[f"{PLAIN}, {n}"]}
    slope = _slope(list(data), seconds)
    facts = {
        "off_linear": abs(slope - 1), "slope": slope, "slope_of_epochs": _slope(list(data), plain),
        "epochs": seconds[-1] / plain[-1],
        "milliseconds_a_sample": _a_sample(list(data), seconds),
        "milliseconds_a_sample_of_epochs": _a_sample(list(data), plain),
        "batch_size": size,
    }  # fmt: skip
    jobs.keep("linear", name, f"{statistic}-n{n}", given, shown, facts, f"--statistic {statistic}")


def _asked(statistic: str, kernel: GradientKernel, samples: Samples, folder: Path) -> Callable[[], object]:
    """What is timed; an index, where it is one's, is built beforehand."""
    if statistic in STATISTICS:
        return partial(STATISTICS[statistic], kernel, samples)
    return partial(OF_INDEX[statistic], Index.build(folder, kernel, samples, dim=DIM, previews=False, search=False))


def _slope(n: Sequence[int], seconds: Sequence[float]) -> float:
    return float(np.polyfit([math.log(m) for m in n], [math.log(each) for each in seconds], 1)[0])


def _a_sample(n: Sequence[int], seconds: Sequence[float]) -> Mapping[str, float]:
    return {str(m): 1e3 * each / m for m, each in zip(n, seconds, strict=True)}


def main() -> None:
    """Read the command line."""
    options = jobs.parser(__doc__)
    options.add_argument("--statistic", choices=[*STATISTICS, *OF_INDEX])
    given = jobs.parsed(options)
    for name in jobs.chosen(given, SIZES):
        for statistic in [*STATISTICS, *OF_INDEX] if given.statistic is None else [given.statistic]:
            measure(name, statistic, jobs.scaled(SIZES[name], given), given)


if __name__ == "__main__":
    main()
