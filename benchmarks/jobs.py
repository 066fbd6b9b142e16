"""What the scripts share: the options of the command line, and the numbers that follow from timings."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import NETWORKS
from benchmarks.timing import FOLDER, Timing, store
from kinsight import GradientKernel

KINSIGHT, FIRST = "kinsight", "kinsight, first call"
PLAIN, PASSES = "forward and backward", "without weight gradients"
FULL = "kinsight, full precision"
BY_GROUPS = "kinsight, sums of groups"
OURS = (KINSIGHT, FIRST, PLAIN, PASSES, FULL, BY_GROUPS)
"""Ways that are no peers: kinsight itself, and the passes that it is measured by."""

MAX_BYTES = 3 * 2**29
"""What kinsight is given."""

ALWAYS_ALLOWED_BYTES = 2e8
"""Extra memory that no job has to answer for."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of all scripts."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("networks", nargs="*", metavar="network", help=f"of {', '.join(NETWORKS)}; all where left out")
    made.add_argument("--scale", type=float, default=1.0, help="times as many samples; the job's name says how many")
    made.add_argument("--runs", type=int, default=5, help="timed runs of each way")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    made.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER")
    return made


def parsed(options: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for, with torch set to it."""
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    torch.backends.cudnn.allow_tf32 = False  # as while kinsight computes: floors and peers are no coarser
    given.typed = [
        f"--{key} {each:g}" if isinstance(each, float) else f"--{key} {shlex.quote(str(each))}"
        for key, value in vars(given).items()
        if key not in ("networks", "results", "job", "folder", "statistic") and value != options.get_default(key)
        for each in (value if isinstance(value, list) else [value])
    ]
    return given


def keep(
    script: str,
    name: str,
    job: str,
    given: argparse.Namespace,
    timings: Mapping[str, Timing],
    facts: Mapping[str, Any],
    *more: str,
) -> None:
    """Store a job of a script and a network, with the command that does it again, `more` options included."""
    command = " ".join([f"python -m benchmarks.{script}", name, *more, *given.typed])
    store(script, f"{name}-{job}", command, timings, facts, folder=given.results, device=given.device)


def chosen(given: argparse.Namespace, known: Collection[str]) -> list[str]:
    """The networks asked for; all that a script has sizes for where none is named."""
    unknown = [name for name in given.networks if name not in known]
    if unknown:
        raise SystemExit(f"network {unknown[0]!r} is not timed here: there are {', '.join(known)}")
    return given.networks or list(known)


def scaled(n: int, given: argparse.Namespace) -> int:
    """The number of samples, times --scale."""
    return max(2, round(n * float(given.scale)))


def inputs(name: str, n: int, device: torch.device) -> tuple[nn.Module, Tensor]:
    """A network and n samples, on the device."""
    return NETWORKS[name].build().to(device), NETWORKS[name].batch(n).to(device)


def in_float64(model: nn.Module, *xs: Tensor) -> tuple[nn.Module, list[Tensor]]:
    """The model, changed, and inputs that are no tokens."""
    return model.double(), [x.double() if x.is_floating_point() else x for x in xs]


def first_logit(returned: Tensor) -> Tensor:
    """The one output of jobs with one output."""
    return returned[:, 0]


def kernel_of(
    model: nn.Module, n_outputs: int = 1, batch_size: int | None = None, max_bytes: int = MAX_BYTES
) -> GradientKernel:
    """The kernel of the first logit, or of all ten; its first call proves itself, and is reported apart."""
    output = first_logit if n_outputs == 1 else "logits"
    return GradientKernel(model, output, batch_size=batch_size, max_bytes=max_bytes)


def peers_of(timings: Mapping[str, Timing]) -> list[str]:
    """Names of the ways that kinsight is compared with."""
    return [name for name in timings if name not in OURS]


def against_floor(timings: Mapping[str, Timing], floor: float) -> dict[str, float]:
    """How close kinsight comes to what no method can do without."""
    return {"floor_seconds": floor, "times_floor": timings[KINSIGHT].median / floor}


def against_plain(timings: Mapping[str, Timing], ratio: str = "times_plain") -> dict[str, float]:
    """kinsight over forward and backward passes through all samples, as in training."""
    plain = timings[PLAIN].median
    return {"plain_seconds": plain, ratio: timings[KINSIGHT].median / plain}


def add_without(parser: argparse.ArgumentParser) -> None:
    """The option that `leave_out` reads."""
    parser.add_argument("--without", action="append", default=[], metavar="PEER", help="leave out a peer, by its name")


def leave_out(without: Collection[str], ways: dict[str, Callable[[], object]], refused: dict[str, str]) -> None:
    """Take peers out of `ways`, and say so in `refused`."""
    for way in [way for way in without if way in ways and way not in OURS]:
        del ways[way]
        refused[way] = "left out on the command line"


def against_peers(timings: Mapping[str, Timing]) -> dict[str, float | str]:
    """How much longer the fastest peer takes. Nothing where all were left out."""
    if not peers_of(timings):
        return {}
    fastest = min(peers_of(timings), key=lambda name: timings[name].median)
    return {"times_ahead": timings[fastest].median / timings[KINSIGHT].median, "fastest_peer": fastest}


def memory(timings: Mapping[str, Timing], result_bytes: int, n_plain: int = 1) -> dict[str, float | int]:
    """Memory that kinsight takes beside its result, and what it is allowed: twice that of `n_plain` plain passes."""
    extra = max(0, timings[KINSIGHT].extra_bytes - result_bytes)
    allowed = max(ALWAYS_ALLOWED_BYTES, 2 * n_plain * timings[PLAIN].extra_bytes)
    return {
        "result_bytes": result_bytes, "extra_bytes": extra,
        "allowed_bytes": int(allowed), "times_allowed_bytes": extra / allowed,
    }  # fmt: skip
