"""A step of training with SimilarityLoss: `python -m benchmarks.loss [network ...] [--outputs 10]`.

All pairs of a batch of one class, by Gram blocks or by sums of groups, next to a step without it (forward, backward,
Adam), and to four pairs, each with a double backward pass of its own, as is done without kinsight.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import jobs
from benchmarks.jobs import BY_GROUPS, KINSIGHT, PLAIN
from benchmarks.timing import CPU, extra_bytes, interleaved
from kinsight import SimilarityLoss

SIZES = {"lenet": 64, "mlp": 64}
N_PAIRS = 4
BY_PAIR = f"{N_PAIRS} pairs, one at a time"


class Step:
    """One step of training, with or without something added to the loss."""

    def __init__(self, model: nn.Module, x: Tensor, added: Callable[[], Tensor] | None = None) -> None:
        self.model, self.x, self.added = model, x, added
        self.y = torch.arange(len(x), device=x.device) % 10
        self.optimizer = torch.optim.Adam(model.parameters(), 1e-6)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(self.x), self.y)
        (loss if self.added is None else loss + self.added()).backward()
        self.optimizer.step()


def one_at_a_time(model: nn.Module, x: Tensor, n_outputs: int) -> Tensor:
    """1 - mean similarity of a few pairs: double backward through the gradient of every output of every sample."""
    parameters = list(model.parameters())

    def gradient(sample: Tensor) -> Tensor:
        outputs = model(sample[None])[0, :n_outputs]
        rows = [torch.autograd.grad(output, parameters, create_graph=True, allow_unused=True) for output in outputs]
        return torch.cat([each.flatten() for row in rows for each in row if each is not None])

    pairs = [(gradient(x[2 * pair]), gradient(x[2 * pair + 1])) for pair in range(N_PAIRS)]
    return 1 - torch.stack([torch.cosine_similarity(a, b, dim=0) for a, b in pairs]).mean()


def steps(name: str, n: int, n_outputs: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Steps that are timed."""
    model, x = jobs.inputs(name, n, device)
    groups = torch.zeros(n, dtype=torch.long)

    def loss(route: Literal["pairs", "groups"]) -> Callable[[], Tensor]:
        made = SimilarityLoss(model, jobs.first_logit if n_outputs == 1 else "logits", route=route)
        return partial(made, x, groups=groups)

    return {
        KINSIGHT: Step(model, x, loss("pairs")), BY_GROUPS: Step(model, x, loss("groups")), PLAIN: Step(model, x),
        BY_PAIR: Step(model, x, partial(one_at_a_time, model, x, n_outputs)),
    }  # fmt: skip


def times_step(name: str, n: int, n_runs: int, device: torch.device = CPU) -> float:
    """A step with the loss, by sums of groups, over one without it, and nothing else timed."""
    ways = steps(name, n, 1, device)
    timings = interleaved({way: ways[way] for way in (BY_GROUPS, PLAIN)}, n_runs=n_runs, device=device)
    return timings[BY_GROUPS].median / timings[PLAIN].median


def measure(name: str, n: int, given: argparse.Namespace) -> None:
    """Time one network, and store it."""
    ways = steps(name, n, given.outputs, given.device)
    timings = interleaved(ways, n_runs=given.runs, device=given.device)
    typical = {way: _typical_bytes(ways[way], given) for way in (KINSIGHT, BY_GROUPS, PLAIN)}
    facts = {
        "times_step": timings[KINSIGHT].median / timings[PLAIN].median,
        "times_step_by_groups": timings[BY_GROUPS].median / timings[PLAIN].median,
        "extra_bytes": typical[KINSIGHT],
        "times_step_bytes": typical[KINSIGHT] / typical[PLAIN],
        "times_step_bytes_by_groups": typical[BY_GROUPS] / typical[PLAIN],
        "n_pairs": n * (n - 1) // 2,
    }
    jobs.keep("loss", name, f"n{n}-c{given.outputs}", given, timings, facts)


def _typical_bytes(way: Callable[[], object], given: argparse.Namespace) -> float:
    """The growth of resident memory during a step, median of as many as are timed, three times: single ones scatter."""
    return statistics.median(extra_bytes(way, given.device) for _ in range(3 * given.runs))


def main() -> None:
    """Read the command line."""
    parser = jobs.parser(__doc__)
    parser.add_argument("--outputs", type=int, choices=(1, 10), default=1)
    given = jobs.parsed(parser)
    for name in jobs.chosen(given, SIZES):
        measure(name, jobs.scaled(SIZES[name], given), given)


if __name__ == "__main__":
    main()
