"""Writes docs/benchmarks.md from benchmarks/results/*.json: `python -m benchmarks.page`. Every number is from there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import FIRST, FULL, KINSIGHT, OURS, PLAIN
from benchmarks.timing import FOLDER

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
NONE = "–"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number of a record that has marks.

    Args:
        title: what the page calls it.
        is_at_most: whether less is better.
        show: as text.
    """

    title: str
    is_at_most: bool
    show: Callable[[float], str]

    def mark(self, limit: float) -> str:
        """The mark as text."""
        return f"{'≤' if self.is_at_most else '≥'} {self.show(limit)}"

    def is_met(self, value: float, limit: float) -> bool:
        """Whether a value reaches the mark."""
        return value <= limit if self.is_at_most else value >= limit


def times(value: float) -> str:
    """1.43 x, 195 x."""
    return f"{value:.2f} ×" if value < 10 else f"{value:.0f} ×"


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3f} s" if value < 1 else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def megabytes(value: float) -> str:
    """Millions of bytes."""
    return f"{value / 1e6:,.0f} MB"


def percent(value: float) -> str:
    """99.8 %."""
    return f"{100 * value:.1f} %"


MEASURES = {
    "times_floor": Measure("floor", True, times),
    "times_plain": Measure("forward and backward", True, times),
    "epochs": Measure("training epoch", True, times),
    "times_ahead": Measure("ahead of the fastest peer", False, times),
    "extra_bytes": Measure("extra memory", True, megabytes),
    "times_allowed_bytes": Measure("extra memory over what is allowed", True, times),
    "seconds_off": Measure("planned time, too long or too short", True, times),
    "bytes_off": Measure("planned memory, too much or too little", True, times),
    "error": Measure("error over the product of the norms", True, lambda value: f"{value:.1e}"),
    "times_training": Measure("speed next to one epoch of training", False, times),
    "times_products": Measure("matrix products", True, times),
    "memory_growth": Measure("memory, all samples over half of them", True, times),
    "recall": Measure("true neighbors found", False, percent),
    "query_seconds": Measure("one query", True, seconds),
    "times_step": Measure("step of training", True, times),
    "times_step_by_groups": Measure("step of training, by sums of groups", True, times),
    "times_step_bytes": Measure("memory of a step", True, times),
    "times_step_bytes_by_groups": Measure("memory of a step, by sums of groups", True, times),
    "off_linear": Measure("slope of time over samples, off 1 by", True, "{:.3f}".format),
}

_GRAM = {"times_floor": 1.5, "times_ahead": 2.0, "times_allowed_bytes": 1.0}
_RECTANGLE = {"times_plain": 2.0, "times_ahead": 3.0, "times_allowed_bytes": 1.0}
_SOFT_COUNT = {"epochs": 2.5, "memory_growth": 1.2, "times_allowed_bytes": 1.0}
_PLAN = {"seconds_off": 1.25, "bytes_off": 1.25}
_LOSS = {"times_step": 5.0, "times_step_by_groups": 5.0, "times_step_bytes": 2.5, "times_step_bytes_by_groups": 2.5}
_BFLOAT16 = {"error": 2.5e-2}
_LINEAR = {"off_linear": 0.05}
_BLOCKS = {"times_ahead": 3.0, "times_allowed_bytes": 1.0}

MARKS: dict[str, dict[str, float]] = {
    "gram-mlp-n1024-c1": _GRAM,
    "gram-lenet-n512-c1": _GRAM,
    "gram-resnet18-n128-c1": {**_GRAM, "extra_bytes": 1.5e9},
    "gram-vit-n64-c1": {**_GRAM, "times_ahead": 1.7},
    "gram-mlp-n256-c10-trace": {**_GRAM, "times_ahead": 3.0},
    "gram-lenet-n128-c10-trace": {**_GRAM, "times_ahead": 3.0},
    "gram-mlp-n256-c10-blocks": _BLOCKS,
    "gram-lenet-n128-c10-blocks": _BLOCKS,
    "rectangle-lenet-block-256x2048": _RECTANGLE,
    "rectangle-mlp-block-256x2048": _RECTANGLE,
    "rectangle-lenet-neighbors-64x4096": _RECTANGLE,
    "rectangle-mlp-neighbors-64x4096": _RECTANGLE,
    "soft_count-mlp-n4096-c1": _SOFT_COUNT,
    "soft_count-lenet-n2048-c1": _SOFT_COUNT,
    "soft_count-resnet18-n256-c1": _SOFT_COUNT,
    "soft_count-vit-n256-c1": _SOFT_COUNT,
    "soft_count-encoder-n128-c1": _SOFT_COUNT,
    "soft_count-mlp-n1024-c10": _SOFT_COUNT,
    "soft_count-lenet-n512-c10": _SOFT_COUNT,
    "contraction-mlp-n1024-bfloat16": _BFLOAT16,
    "contraction-lenet-n512-bfloat16": _BFLOAT16,
    "contraction-resnet18-n128-bfloat16": _BFLOAT16,
    "contraction-vit-n64-bfloat16": _BFLOAT16,
    "contraction-encoder-n64-bfloat16": _BFLOAT16,
    "index-resnet18-build-n1024-dim4096": {"times_training": 0.5, "memory_growth": 1.2},
    "index-lenet-build-n4096-dim4096": {"memory_growth": 1.2},
    "index-mlp-build-n8192-dim4096": {"memory_growth": 1.2},
    "index-sketches-all-n60000-dim1024": {"times_products": 1.5},
    "search-mnist-recall-n4000": {"recall": 0.99},
    "search-fashion-mnist-recall-n60000": {"recall": 0.99},
    "search-fashion-mnist-query-n1000000-dim1024": {"query_seconds": 0.05},
    "linear-mlp-averages-n60000": _LINEAR,
    "linear-mlp-soft_count-n60000": _LINEAR,
    "linear-mlp-signed_support-n60000": _LINEAR,
    "linear-mlp-fit_map-n60000": _LINEAR,
    "linear-mlp-denoising_sums-n60000": _LINEAR,
    "linear-mlp-label_suspects-n60000": _LINEAR,
    "linear-lenet-averages-n60000": _LINEAR,
    "loss-lenet-n64-c1": _LOSS,
    "plan-mlp-gram-n1024": _PLAN,
    "plan-mlp-similarity-64x4096": _PLAN,
    "plan-mlp-soft_count-n4096": _PLAN,
    "plan-lenet-gram-n512": _PLAN,
    "plan-lenet-similarity-64x4096": _PLAN,
    "plan-lenet-soft_count-n2048": _PLAN,
    "plan-resnet18-gram-n64": _PLAN,
    "plan-vit-gram-n64": _PLAN,
    "plan-vit-soft_count-n128": _PLAN,
    "plan-encoder-gram-n64": _PLAN,
}
"""job -> number of its record -> the mark it has to reach."""

INTRODUCTION = """\
Written by `make bench` from `benchmarks/results/*.json`. Do not edit it: run that. Every time is the median of runs
that took turns with those it is compared with."""

COMPARED = """\
**Floor.** What no exact method can do without: one forward pass, and one backward pass an output, without gradients
over weights; and the inner products, layer by layer at the cheaper of two costs (gradients built and multiplied, or
factors multiplied), at the rate this machine reaches in one large float32 matrix product. **Plain** is a forward pass
and a backward pass an output with gradients over weights, as in an epoch of training, in the batches that kinsight
takes. **Peers** do the same job without kinsight; the number behind the time says how much longer they take.

**Extra memory** is the largest growth during one run, without the result. Allowed are 200 MB, or twice that of the
plain passes where it is more (for full blocks, of as many as there are outputs). **Error** is the largest difference to
the result in float64, over the largest value of that. The **first call** of a kernel also measures its memory, and
proves that it is exact on this model."""

CLAIMS = {
    "gram": (
        "Gram blocks",
        """\
All n samples with themselves. `c` is the number of outputs: `trace` adds up their kernels, `blocks` gives every output
with every other one.""",
    ),
    "rectangle": (
        "Rectangles and neighbors",
        """\
One output. `block`: the Gram block of the first number of samples with the second. `neighbors`: the nearest neighbors
of the first number of queries among the second number of samples.""",
    ),
    "soft_count": (
        "Soft counts",
        """\
The sum of each sample's similarities to all n, over `c` outputs, whitened. Plain is one epoch of training. Memory is to
be the same for all samples as for half of them.""",
    ),
    "contraction": (
        "Reduced precision",
        """\
Gram blocks with `contraction="bfloat16"`, next to those in full precision; only where asked. The largest error of an
inner product is over the product of the two norms.""",
    ),
    "index": (
        "Indexes",
        """\
`build`: an index of n samples, one output, next to one epoch of training on them: forward, backward with gradients over
weights, and a step of SGD with momentum. `all`: the ten nearest neighbors of each of n sketches, on disk, next to the
matrix products of that size in memory.""",
    ),
    "search": (
        "Searching indexes",
        """\
`recall`: the ten nearest neighbors of held-out images, ten whitened outputs; candidates from sketches, then their true
similarities, next to true similarities of all n samples. A neighbor is right where none of the ten nearest is more than
1e-3 more similar. `query`: the same of one image at a time, one output, by approximate search among n sketches alone;
next to a scan of all sketches, and to approximate search with the true similarities of 100 candidates.""",
    ),
    "linear": (
        "Linear time",
        """\
Around all n samples, one output: means of labels, their variance, shift and residual (`averages`); soft counts; sums of
influences with their signs (`signed_support`); the map of over- and underfit by similarities to the power 1; and of an
index of sketches of 1,024 numbers, what denoising factors are made of, and suspected labels, which takes some time
whatever n is. The slope is that of the logarithm of time over that of the number of samples, from a sixtieth of n to n;
that of epochs of training, in the same run, says what the machine adds. Gradients that there is room for are kept from
the first pass to the second: of few samples all are, of many few, so that many can take longer each, by a factor that
does not grow.""",
    ),
    "loss": (
        "Losses on similarity",
        """\
A step of training on n samples, all pairs of which are made similar over `c` outputs: forward, backward, Adam. Plain is
a step without the loss. What is compared with does four of the 2,016 pairs, as is done without kinsight. Extra memory
is the growth of what the process holds during one step, median of three times as many steps as are timed, since single
ones scatter; that the tensors alive at once are less than 2.5 times those of a step without the loss is a test.""",
    ),
    "plan": (
        "Plans",
        """\
What `kinsight.plan` said, and what then happened.""",
    ),
}


# ------------------------------------------------------------------------------------------------ tables


def records(folder: Path) -> list[Record]:
    """What is stored, claim by claim, by job."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return sorted((each for each in found if each["claim"] in CLAIMS), key=_place)


def _place(record: Record) -> tuple[int, str, str]:
    return list(CLAIMS).index(record["claim"]), "cuda" if "gpu" in record["machine"] else "", record["job"]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def marks_table(known: list[Record]) -> str:
    """Every mark, and whether it is met."""
    by_name = {f"{record['claim']}-{record['job']}": record for record in known}
    rows = []
    for name, marks in MARKS.items():
        for fact, limit in marks.items():
            measure, value = MEASURES[fact], by_name.get(name, {}).get(fact)
            if value is None:
                shown, verdict = NONE, "not measured"
            else:
                shown, verdict = measure.show(value), "met" if measure.is_met(value, limit) else "**NOT met**"
            rows.append([f"`{name}`", measure.title, measure.mark(limit), shown, verdict])
    return table(["job", "measured by", "mark", "measured", ""], rows)


def job_row(record: Record) -> dict[str, str]:
    """The row of one job, by column."""
    ways = record["ways"]
    own = ways[KINSIGHT]["median_seconds"]

    def fact(name: str, show: Callable[[float], str]) -> str:
        return NONE if record.get(name) is None else show(record[name])

    def way(name: str) -> str:
        return seconds(ways[name]["median_seconds"]) if name in ways else NONE

    peers = [name for name in ways if name not in OURS]
    error = ways[KINSIGHT]["max_error"]
    return {
        "job": f"`{record['job']}`",
        "kinsight": way(KINSIGHT),
        "full precision": way(FULL),
        "as fast": fact("times_full", times),
        "planned time": fact("planned_seconds", seconds),
        "first call": way(FIRST),
        "floor": fact("floor_seconds", seconds),
        "over floor": fact("times_floor", times),
        "plain": way(PLAIN),
        "over plain": times(own / ways[PLAIN]["median_seconds"]) if PLAIN in ways else NONE,
        "peers": "<br>".join(f"{each} {way(each)} ({times(ways[each]['median_seconds'] / own)})" for each in peers),
        "extra memory": fact("extra_bytes", megabytes),
        "planned memory": fact("planned_bytes", megabytes),
        "error": fact("error", "{:.1e}".format) if "error" in record else NONE if error is None else f"{error:.0e}",
        "error of full": fact("error_of_full", "{:.1e}".format),
        "slope": fact("slope", "{:.3f}".format),
        "slope of epochs": fact("slope_of_epochs", "{:.3f}".format),
        "true neighbors found": fact("recall", percent),
        "by sketches alone": fact("recall_of_sketches", percent),
    }


def claim_section(claim: str, known: list[Record]) -> Iterator[str]:
    """Title, table, and what the numbers were taken with. Columns without a number are left out."""
    title, text = CLAIMS[claim]
    yield f"## {title}"
    yield text
    rows = [job_row(record) for record in known]
    header = [column for column in rows[0] if any(row[column] not in (NONE, "") for row in rows)]
    yield table(header, [[row[column] for column in header] for row in rows])
    grown = [record for record in known if "bytes_of_all" in record]
    if grown:
        yield growth_table(grown)
    yield from taken_with(known)


def growth_table(known: list[Record]) -> str:
    """Memory of all samples and of half of them."""
    rows = [
        [
            f"`{record['job']}`", str(record.get("batch_size_of_both", record["batch_size"])),
            megabytes(record["bytes_of_all"]), megabytes(record["bytes_of_half"]), times(record["memory_growth"]),
        ]
        for record in known
    ]  # fmt: skip
    return table(["job", "samples a batch", "memory, all samples", "half of them", "ratio"], rows)


def taken_with(known: list[Record]) -> Iterator[str]:
    """Machine and commit, then the commands, once for all jobs that share them."""
    groups: dict[str, list[str]] = {}
    for record in known:
        machine, n_runs = record["machine"], len(record["ways"][KINSIGHT]["seconds"])
        gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
        where = (
            f"On {gpu}{machine['processor']}, threads: {machine['threads']}, torch {machine['torch']}, "
            f"Python {machine['python']}, commit `{record['commit']}`, runs of each: {n_runs}."
        )
        groups.setdefault(where, []).append(record["command"])
    for where, commands in groups.items():
        yield where
        yield "```sh\n" + "\n".join(dict.fromkeys(commands)) + "\n```"


def page(folder: Path = FOLDER) -> str:
    """The whole text of docs/benchmarks.md."""
    known = records(folder)
    parts = ["# Benchmarks", INTRODUCTION, "## What is compared", COMPARED]
    for claim in CLAIMS:
        own = [record for record in known if record["claim"] == claim]
        parts += claim_section(claim, own) if own else []
    parts += ["## Marks", "What was to be reached, and whether it is.", marks_table(known)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE")
    given = parser.parse_args()
    given.out.write_text(page(given.results), encoding="utf-8")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
