"""Bytes, passes and time of a question, before anything runs.

A few samples are worked on, twice as many at a time until that takes long enough to be measured or a whole batch has
been. What depends on the number of samples alone is extended along a line; products of pairs by the cost model that
also chooses their route, at the rate it was measured to run here.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from kinsight.batches import map_leaves
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.differentiation.unit_gradients import UnitGradients
from kinsight.errors import UnknownNameError
from kinsight.gradients.contractions import SCRATCH_BYTES, in_float64
from kinsight.gradients.costs import PASSING_BYTES
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.live import peak_bytes
from kinsight.samples import Batch, Samples, queries_of
from kinsight.sketch import measured_dim, sketch

Question = Literal["gram", "similarity", "soft_count", "index"]
"""Kernel values of all pairs; similarities of all pairs, as neighbors, hard and power counts and label suspects need
them; the soft count; an index."""

TRIAL_SECONDS = 0.5
"""Time on one batch after which no larger one is tried."""

PAIR_BYTES = 20
"""Bytes of a pair of samples in a Gram block: the result in float64, and the float32 products it is made of."""

WORKSPACE = 1.2
"""What operators take for themselves beside their results: measured at 1.15 to 1.25 times the tensors."""


@dataclass(frozen=True)
class Plan:
    """What a question will take.

    Args:
        question: that was asked.
        n: samples of the rows.
        m: samples of the columns; 0 where they are those of the rows.
        batch_size: samples in one pass.
        n_groups: groups of row batches whose gradients are held at once.
        n_passes: batches run forward and backward, one backward pass an output.
        peak_bytes: most memory that tensors take at once, beside the model, the data and the result.
        result_bytes: size of the result, of an index on disk, without previews; 0 for similarities, of which those who
            ask keep little.
        seconds: time, on this machine, as busy as it is now.
        dim: numbers in a sketch; 0 where there is none.
    """

    question: Question
    n: int
    m: int
    batch_size: int
    n_groups: int
    n_passes: int
    peak_bytes: int
    result_bytes: int
    seconds: float
    dim: int = 0


@dataclass
class Line:
    """Values at growing numbers of samples, extended by the line through the last two."""

    points: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, n: int) -> float:
        """The value at n samples."""
        (b, last) = self.points[-1]
        if len(self.points) == 1 or n <= b:
            return last * n / b
        (a, before) = self.points[-2]
        return last + max(0.0, last - before) / (b - a) * (n - b)


@dataclass
class Trial:
    """What was measured on growing batches.

    Args:
        seconds: of each step, at n samples.
        peak: bytes while gradients are captured.
        scratch: bytes that a Gram block takes, without what grows with pairs of samples.
        summed: bytes that unit gradients take while they are added up, and read, with their sum.
        own: bytes while they meet themselves layer by layer, without what grows with pairs of samples.
        held: bytes of captured gradients.
        mixed: bytes of whitened gradients, where they are others.
        compact: bytes in the form that is kept to meet many others.
        forms: gradients of the largest batch, as captured ('gram') and in that form ('compact gram'), and the rate
            of their Gram blocks in multiply-adds a second.
        n_outputs: outputs of a sample.
    """

    seconds: dict[str, Line] = field(default_factory=dict)
    peak: Line = field(default_factory=Line)
    scratch: Line = field(default_factory=Line)
    summed: Line = field(default_factory=Line)
    own: Line = field(default_factory=Line)
    held: Line = field(default_factory=Line)
    mixed: Line = field(default_factory=Line)
    compact: Line = field(default_factory=Line)
    forms: dict[str, tuple[BatchGradients, float]] = field(default_factory=dict)
    n_outputs: int = 1

    def seconds_of_block(self, form: str, n: int, m: int) -> float:
        """Time of a Gram block of n samples with m others, or with themselves (m = 0)."""
        gradients, rate = self.forms[form]
        return gradients.gram_cost(n, m) / rate


def plan(
    kernel: GradientKernel,
    data: Any,
    queries: Any = None,
    *,
    question: Question = "gram",
    error: float = 0.05,
    dim: int | None = None,
) -> Plan:
    """Bytes, passes and time of a question, before it is asked: a few samples are worked on for about a second.

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes: the columns.
        queries: whatever `Samples` takes: the rows; the data itself where left out.
        question: 'gram' (kernel values), 'similarity' (as neighbors, hard and power counts need them), 'soft_count' or
            'index'.
        error: root mean square error of an index's similarities that is asked for: how long its sketches are then.
        dim: numbers in a sketch; by `error` where left out.

    Returns:
        `Plan`. Measured against what then happened, memory and time of the benchmarks are in docs/benchmarks.md.

    Raises:
        UnknownNameError: there is no such question.
    """
    if question not in ("gram", "similarity", "soft_count", "index"):
        raise UnknownNameError(f"question {question!r} is unknown: use 'gram', 'similarity', 'soft_count' or 'index'.")
    check_kernel(kernel)
    columns = Samples.wrap(data)
    rows = queries_of(columns, data, queries)
    sizes = kernel.block_size(rows), kernel.block_size(columns)
    n, m = len(rows), 0 if rows is columns else len(columns)
    if question == "index":
        return _index(kernel, columns, sizes[1], error, dim)
    if question == "soft_count":
        trial = _measure(kernel, columns, sizes[1], steps=("gradients", "norms", "sum", "dot"))
        return _soft_count(kernel, trial, len(columns), sizes[1], (n, sizes[0]) if m else (0, 1))
    is_one = n <= sizes[0] and m <= sizes[1]
    steps = ["gradients", "norms", "unit", "gram"]
    steps += (["own"] if not m else []) if is_one else ["compact", "compact gram"]
    is_eager = kernel.each(rows, kernel.gradients).is_eager
    return _pairs(kernel, _measure(kernel, columns, sizes[1], steps=steps, is_eager=is_eager), n, m, sizes, question)


def _measure(
    kernel: GradientKernel, samples: Samples, size: int, *, steps: Sequence[str], is_eager: bool = False
) -> Trial:
    trial = Trial()
    kept = [*kernel.model.parameters(), *kernel.model.buffers()]
    n = min(4, size, len(samples))
    while True:
        begin = time.perf_counter()
        batch = next(samples.batches(n)).to(kernel.device)
        _time(trial, kernel, batch, steps, is_eager=is_eager)
        with peak_bytes(kernel.device, [*kept, *_tensors_of(batch)]) as peak:
            gradients = kernel.gradients(batch)
        trial.held.points.append((n, gradients.n_bytes))
        trial.peak.points.append((n, WORKSPACE * peak[0]))
        if "gram" in steps:
            known = [tensor for each in gradients.by_parameter.values() for tensor in each.tensors]
            with peak_bytes(kernel.device, [*kept, *known]) as peak:
                gradients.gram(gradients)
            trial.scratch.points.append((n, max(0, peak[0] - PAIR_BYTES * n**2)))
            del known
        if "sum" in steps:
            known = [tensor for each in gradients.by_parameter.values() for tensor in each.tensors]
            with peak_bytes(kernel.device, [*kept, *known]) as peak:
                mixing = kernel.normalizer(gradients).mixing
                found = gradients.weighted_sum(mixing.transpose(0, 1))
                gradients.dot({name: in_float64(value) for name, value in found.items()})
            trial.summed.points.append((n, peak[0]))
            del known, found
        del gradients
        if "own" in steps:
            with peak_bytes(kernel.device, [*kept, *_tensors_of(batch)]) as peak:
                kernel(batch)
            trial.own.points.append((n, WORKSPACE * max(0, peak[0] - PAIR_BYTES * n**2)))
        is_long = time.perf_counter() - begin > TRIAL_SECONDS and len(trial.peak.points) > 1
        if n >= min(size, len(samples)) or is_long:
            return trial
        n = min(2 * n, size, len(samples))


def _tensors_of(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = [] if batch.targets is None else [batch.targets]
    map_leaves(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, batch.inputs)
    return found


def _time(trial: Trial, kernel: GradientKernel, batch: Batch, steps: Sequence[str], *, is_eager: bool) -> None:
    """Time steps on one batch: the best of several runs, until the two best agree."""
    n = len(batch)

    def timed(step: str, run: Callable[[], Any]) -> Any:
        seconds: list[float] = []
        while len(seconds) < 2 or (len(seconds) < 6 and sorted(seconds)[1] > 1.15 * min(seconds)):
            start = time.perf_counter()
            returned = run()
            if kernel.device.type == "cuda":
                torch.cuda.synchronize(kernel.device)
            seconds.append(time.perf_counter() - start)
        trial.seconds.setdefault(step, Line()).points.append((n, min(seconds)))
        return returned

    gradients = timed("gradients", lambda: kernel.gradients(batch))
    forms = {"gram": gradients}
    by = timed("norms", lambda: kernel.normalizer(gradients))
    mixing = by.mixing
    if "unit" in steps:
        unit = timed("unit", lambda: UnitGradients.of(gradients, by))
        trial.mixed.points.append((n, unit.n_bytes if unit.scale is None else 0))
    if "sum" in steps:
        directions = timed("sum", lambda: gradients.weighted_sum(mixing.transpose(0, 1)))
        timed("dot", lambda: gradients.dot(directions))
    if "compact" in steps:
        forms["compact gram"] = timed("compact", lambda: gradients.compact(is_eager=is_eager))
        trial.compact.points.append((n, forms["compact gram"].n_bytes))
    for step, form in forms.items():
        if step in steps:
            timed(step, functools.partial(form.gram, form))
            trial.forms[step] = (form, form.gram_cost(n) / trial.seconds[step].points[-1][1])
    trial.n_outputs = gradients.n_outputs


def _pairs(kernel: GradientKernel, trial: Trial, n: int, m: int, sizes: tuple[int, int], question: Question) -> Plan:
    """All pairs of rows and columns, block by block; see `kinsight.stream`."""
    row_size, size = sizes
    columns = m or n
    steps = ["gradients"] + (["norms", "unit"] if question == "similarity" else [])
    is_mixed = question == "similarity" and trial.mixed.points[-1][1] > 0
    form, mixed = (trial.mixed, trial.mixed) if is_mixed else (trial.held, Line([(1, 0.0)]))
    scratch = min(PASSING_BYTES + 2 * SCRATCH_BYTES, trial.scratch(min(max(row_size, size), max(n, m))))
    product = PAIR_BYTES * min(n, row_size) * min(columns, size)

    def working(each: int) -> float:
        return max(trial.peak(each), trial.held(each) + mixed(each))

    result_bytes = 8 * n * columns if question == "gram" else 0
    if n <= row_size and columns <= size:
        batches = [n, m] if m else [n]
        last = batches[-1]
        held = sum(form(each) for each in batches)
        peak = max(working(last) + held - form(last), held + scratch + product)
        if not m and not is_mixed and (question == "gram" or kernel.contraction == "full"):  # layer by layer
            steps, peak = ["gradients"], trial.own(n) + product
        seconds = sum(trial.seconds[step](each) for step in steps for each in batches)
        seconds += trial.seconds_of_block("gram", n, m)
        return Plan(question, n, m, size, 1, len(batches), int(peak - result_bytes), result_bytes, seconds)
    per_group = max(1, int(kernel.max_bytes // 2 // max(1.0, trial.compact(min(row_size, n)))))
    row_batches, column_batches = -(-n // row_size), -(-columns // size)
    n_groups = -(-row_batches // per_group)
    passes = row_batches + n_groups * column_batches
    if not m:  # each group meets itself and what comes after it
        passes = row_batches + sum(max(0, row_batches - (g + 1) * per_group) for g in range(n_groups))
    each, row = min(size, columns), min(row_size, n)
    once = {step: line(each) for step, line in trial.seconds.items()}
    seconds = passes * sum(once[step] for step in steps) + row_batches * once["compact"]
    n_blocks = row_batches * column_batches / (1 if m else 2)
    if min(per_group, row_batches) == 1:  # columns meet one batch of rows, and are not made compact for that
        seconds += n_blocks * trial.seconds_of_block("gram", row, each)
    else:
        seconds += (passes - row_batches) * once["compact"]
        seconds += n_blocks * trial.seconds_of_block("compact gram", row, each)
    group = min(per_group, row_batches) * trial.compact(row)
    if n_groups == 1 and not m:  # no columns beside the rows that are kept
        peak = max(
            group - trial.compact(row) + max(working(row), form(row) + trial.compact(row)), group + scratch + product
        )
    else:
        peak = group + max(working(each), form(each) + trial.compact(each) + scratch + product)
    return Plan(question, n, m, size, n_groups, passes, int(peak), result_bytes, seconds)


def _soft_count(kernel: GradientKernel, trial: Trial, n: int, size: int, queries: tuple[int, int]) -> Plan:
    """One pass that adds up, one that reads what was not kept; see `kinsight.unit_sum`."""
    seconds, each = trial.seconds, min(size, n)
    n_queries, query_size = queries
    batches = n / each
    held = trial.held(each)
    room = int(kernel.max_bytes // 2 // max(1.0, held))
    kept = 0 if n_queries else batches if batches * held <= kernel.max_bytes // 2 else room
    reading = n_queries / each if n_queries else batches - kept
    once = {step: line(each) for step, line in seconds.items()}
    total = batches * (once["gradients"] + once["norms"] + once["sum"]) + kept * once["dot"]
    total += reading * (once["gradients"] + once["dot"] + (once["norms"] if n_queries else 0))
    directions = 8 * sum(p.numel() for p in kernel.parameters.values()) * trial.n_outputs
    before = kept * held - (0 if reading else held * min(1, batches))  # beside the batch that is worked on
    known = directions if batches > 1 else 0
    peak = before + known + max(trial.peak(each), held + trial.summed(each))
    passes = -(-n // size) + (
        -(-n_queries // query_size) if n_queries else math.ceil(batches) - int(kept) if reading else 0
    )
    return Plan(
        "soft_count", n_queries or n, n if n_queries else 0, size, 1, passes, int(peak), 8 * (n_queries or n), total
    )


def _index(kernel: GradientKernel, samples: Samples, size: int, error: float, dim: int | None) -> Plan:
    """Sketches of all samples, one pass each; see `kinsight.indexing.building`."""
    n = len(samples)
    dim = measured_dim(kernel, samples.take(some_of(n, N_TRIED)), error) if dim is None else dim
    seconds, peak = Line(), Line()
    kept = [*kernel.model.parameters(), *kernel.model.buffers()]
    each, spent = min(4, size, n), 0.0
    while True:
        batch = next(samples.batches(each)).to(kernel.device)
        with peak_bytes(kernel.device, [*kept, *_tensors_of(batch)]) as found:
            sketch(kernel, batch, dim)
        start = time.perf_counter()
        sketch(kernel, batch, dim)
        if kernel.device.type == "cuda":
            torch.cuda.synchronize(kernel.device)
        spent = time.perf_counter() - start
        seconds.points.append((each, spent))
        peak.points.append((each, WORKSPACE * found[0]))
        if each >= min(size, n) or (spent > TRIAL_SECONDS and len(peak.points) > 1):
            break
        each = min(2 * each, size, n)
    whole = min(size, n)
    row_bytes = 2 * dim + 8 * (kernel.n_outputs or 1) + ROW_BYTES
    total = seconds(whole) * n / whole
    return Plan("index", n, 0, size, 1, -(-n // size), int(peak(whole)), n * row_bytes, total, dim)


def some_of(n: int, k: int, seed: int = 0) -> list[int]:
    """At most k of n positions, at random, in order."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    found: list[int] = torch.randperm(n, generator=generator)[:k].sort().values.tolist()
    return found


N_TRIED = 32
"""Samples whose similarities are compared with those of sketches, to choose their length."""

ROW_BYTES = 50
"""Of a row of an index beside sketch and outputs: id, digest, norm, rank, target."""


def n_outputs_of(kernel: GradientKernel, data: Samples | Batch) -> int:
    """How many outputs are differentiated; looked up at two samples where no batch has been seen."""
    n = min(2, len(data))
    return kernel.n_outputs or kernel.outputs(data[:n] if isinstance(data, Batch) else data.take(range(n))).shape[1]
