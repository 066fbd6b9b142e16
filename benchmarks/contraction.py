"""Gram blocks in reduced precision next to full: `python -m benchmarks.contraction [network ...]`.

One output, all samples with themselves; `contraction="bfloat16"`, and on a GPU `"split"`. Errors are over the
product of the two norms, as the documentation states them, and against the result in float64.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor

from benchmarks import jobs
from benchmarks.jobs import FULL, KINSIGHT
from benchmarks.timing import interleaved
from kinsight import GradientKernel
from kinsight.gradients.contractions import Contraction

SIZES = {"mlp": 1024, "lenet": 512, "resnet18": 128, "vit": 64, "encoder": 64}


def error(found: Tensor, truth: Tensor) -> float:
    """Largest error of an inner product over the product of the norms."""
    norms = truth.diagonal().sqrt()
    return float(((found.to(truth) - truth).abs() / (norms[:, None] * norms)).max())


def measure(name: str, contraction: Contraction, n: int, given: argparse.Namespace) -> None:
    """Time one network, and store it."""
    model, x = jobs.inputs(name, n, given.device)

    def kernel_in(contraction: Contraction) -> GradientKernel:
        return GradientKernel(model, jobs.first_logit, max_bytes=jobs.MAX_BYTES, contraction=contraction)

    ways = {KINSIGHT: partial(kernel_in(contraction), x), FULL: partial(kernel_in("full"), x)}
    timings = interleaved(ways, n_runs=given.runs, device=given.device)
    model, (x,) = jobs.in_float64(model, x)
    truth = kernel_in("full")(x)
    facts: dict[str, float | str] = {
        "contraction": contraction, "times_full": timings[FULL].median / timings[KINSIGHT].median
    }  # fmt: skip
    for fact, way in (("error", KINSIGHT), ("error_of_full", FULL)):
        timings[way].compare(truth)
        found = timings[way].result
        assert isinstance(found, Tensor)
        facts[fact] = error(found, truth)
    jobs.keep("contraction", name, f"n{n}-{contraction}", given, timings, facts)


def main() -> None:
    """Read the command line."""
    given = jobs.parsed(jobs.parser(__doc__))
    kinds: list[Contraction] = ["bfloat16", "split"] if torch.device(given.device).type == "cuda" else ["bfloat16"]
    for name in jobs.chosen(given, SIZES):
        for contraction in kinds:
            measure(name, contraction, jobs.scaled(SIZES[name], given), given)


if __name__ == "__main__":
    main()
