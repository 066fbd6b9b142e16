"""Suspected label errors: targets that the neighborhood, as the network sees it, contradicts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kinsight.batches import checked_count
from kinsight.differentiation.unit_gradients import warn_undefined
from kinsight.errors import InputError, SampleTypeError, UnknownNameError, ZeroGradientWarning
from kinsight.kernel import GradientKernel
from kinsight.labels.calibration import calibrated
from kinsight.labels.folds import Folds
from kinsight.labels.leave_one_out import RIDGES, by_features, by_gram
from kinsight.labels.votes import Ballots, Task, ask_about_classes, check_power, known_targets, shares_of
from kinsight.normalization import Normalization, check_normalization
from kinsight.outputs import bytes_in_words
from kinsight.plan import n_outputs_of
from kinsight.progress import Advance, progress_bar
from kinsight.samples import Id, Samples
from kinsight.sketch import check_dim, error_of, similarities, sketch
from kinsight.stream import Pairs, filled

Method = Literal["leave_one_out", "votes"]
"""How labels are told by all others: a regression that leaves each sample out in turn, or votes."""

DIM = 4096
"""Numbers in a sketch, where there are too many samples for a Gram matrix."""

N_MEASURED = 64
"""Samples whose sketches are compared with their similarities."""

LEAST_VOTES = 1e-3
"""Of votes: a label with fewer counts as having so many."""


@dataclass(frozen=True, eq=False)
class LabelSuspects:
    """Samples whose target the neighborhood contradicts, the most contradicted first.

    Args:
        ids: of the k suspects.
        positions: where they lie in the data, [k].
        scores: how strongly each is contradicted, [k]. Classification: the probability, calibrated against the labels
            given, that all other samples give to other labels, in [0, 1]. Regression: distance from what they say, in
            robust standard deviations of each axis, on the axis where it is most: of many, some is far by chance.
        given: their targets, [k] or [k d].
        suggested: what the neighborhood says instead, [k] or [k d].
        supporter_ids: the neighbors that say so, the most similar first.
        supporter_positions: where these lie in the data, [k s]; -1 where there are fewer.
        supporter_similarities: [k s]; nan where there are fewer.
        all_ids: of every sample of the data, n of them.
        all_scores: score of every sample of the data, [n]; nan where no other sample says anything.
        all_given: their targets, [n] or [n d].
        all_suggested: what the neighborhood says of each, [n] or [n d].
        n_contradicted: number of suspects before `n_suspects` cut the list.
        task: 'classification' or 'regression'.
        method: 'leave_one_out' or 'votes'.
        error: root mean square error of the similarities, where they are estimates from sketches; None: exact.
    """

    columns: ClassVar = ("id", "score", "given", "suggested", "supporters")
    ids: tuple[Id, ...]
    positions: Tensor
    scores: Tensor
    given: Tensor
    suggested: Tensor
    supporter_ids: tuple[tuple[Id, ...], ...]
    supporter_positions: Tensor
    supporter_similarities: Tensor
    all_ids: tuple[Id, ...]
    all_scores: Tensor
    all_given: Tensor
    all_suggested: Tensor
    n_contradicted: int
    task: Task
    method: Method
    error: float | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a suspect: id, score, given, suggested, supporters."""
        supporters = map(list, self.supporter_ids)
        listed = (self.ids, self.scores.tolist(), self.given.tolist(), self.suggested.tolist(), supporters)
        for values in zip(*listed, strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def summary(self) -> str:
        """In words."""
        n, n_judged = self.n_contradicted, int((~self.all_scores.isnan()).sum())
        if not n_judged:
            return "Nothing is said of any label: every gradient is zero, or no other sample is alike."
        text = f"Of {n_judged:,} labels, {n:,} ({n / n_judged:.1%}) are contradicted by all other samples together"
        if len(self):
            text += (
                f"; most of all that of {self.ids[0]!r}: labelled {self.given[0].tolist()}, suggested "
                f"{self.suggested[0].tolist()}"
            )
        return text + ". Not every suspect is wrong: look at them, the first ones first."


def label_suspects(
    kernel: GradientKernel | Iterable[GradientKernel] | Mapping[Any, GradientKernel],
    data: Any,
    *,
    method: Method = "leave_one_out",
    folds: Any = None,
    n_suspects: int | None = None,
    threshold: float | None = None,
    power: float = 8.0,
    normalization: Normalization = "flat",
    n_supporters: int = 5,
    task: Task | None = None,
    dim: int | None = None,
    progress: bool = False,
) -> LabelSuspects:
    """Targets that the neighborhood contradicts, each with the neighbors that say so and the label they suggest.

    Nothing is trained, and no probability of the network is used: every sample's label is told by all others, through
    the similarities of the network's gradients. It is left out itself, so that this works on a network that has
    memorized its wrong labels; then even better with some of its earlier checkpoints beside it, or with networks that
    have not seen the samples they judge (`folds`).

    Args:
        kernel: the gradient kernel of the network, over all its logits; or those of several networks, such as
            checkpoints of one training, whose verdicts are averaged.
        data: whatever `Samples` takes, with targets: integers [n] (classification), or floats [n] or [n d]
            (regression).
        method: 'leave_one_out': kernel ridge regression without each sample in turn, its ridge chosen by the labels as
            they are. 'votes': a mean of labels with weights k(x, x_j)^power.
        folds: `Folds`, or numbers from 0 on, [n]: which kernel judges each sample, being trained without it.
        n_suspects: at most so many; all above the threshold where left out.
        threshold: of suspects: least probability of another label, 0.5 where left out, the given one being less than
            half as probable as it is frequent; for regression least score, 3. From 0 on.
        power: exponent of votes: higher listens to fewer neighbors.
        normalization: 'flat' or 'whitened' similarity.
        n_supporters: neighbors shown for each suspect.
        task: 'classification' or 'regression'; by the targets' type where left out.
        dim: regression on sketches of so many numbers, in time linear in the number of samples; where left out, it is
            exact if three matrices of all pairs fit in the kernel's `max_bytes` (6,600 samples in 1 GiB), else 4,096.
        progress: whether to show a progress bar.

    Returns:
        `LabelSuspects`.

    Raises:
        TargetError: no targets, or of the wrong kind.
        InputError: sketches would not fit in `max_bytes`: build an index; numbers are out of range, or folds.
    """
    samples = Samples.wrap(data)
    kernels = _listed(kernel)
    ballots = _ballots(kernels, samples, task)
    check_questions(method, power, threshold, ballots.task, n_suspects=n_suspects, n_supporters=n_supporters)
    how = _Judging(method, power, normalization, dim, progress)
    total = MeanVerdict(len(samples), ballots.n_columns)
    for each, rows in zip(kernels, _judged_by(kernels, folds, len(samples)), strict=True):
        total.add(how.verdicts(each, samples, ballots), rows)
    return suspects_among(
        how.pairs(kernels[-1], samples), samples.ids, ballots, total.values, method=method, n_suspects=n_suspects,
        threshold=threshold, n_supporters=n_supporters, error=how.error,
    )  # fmt: skip


class MeanVerdict:
    """The mean of what several networks say of samples; one that says nothing of a sample has no part in it.

    Args:
        n: samples.
        n_columns: numbers in a verdict.
    """

    def __init__(self, n: int, n_columns: int) -> None:
        self._sums = torch.zeros(n, n_columns, dtype=torch.float64)
        self._counts = torch.zeros(n, 1, dtype=torch.float64)

    def add(self, verdicts: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """One network's verdicts, [n b], of which those of some samples count."""
        chosen = verdicts[rows]
        self._sums[rows] += chosen.nan_to_num(nan=0.0)
        self._counts[rows] += (~chosen.isnan().any(dim=1, keepdim=True)).double()

    @property
    def values(self) -> Tensor:
        """The means, [n b]; nan where nothing was said."""
        return self._sums / self._counts.masked_fill(self._counts == 0, torch.nan)


def suspects_among(
    pairs: Pairs,
    ids: Sequence[Id],
    ballots: Ballots,
    verdicts: Tensor,
    *,
    method: Method,
    n_suspects: int | None,
    threshold: float | None,
    n_supporters: int,
    error: float | None,
) -> LabelSuspects:
    """The same, of samples about which all others have said something; see `label_suspects`.

    Args:
        pairs: similarities of some samples with all.
        ids: of all samples.
        ballots: their labels.
        verdicts: what all others say of each, [n b], in terms of ballots; nan where they say nothing.
    """
    targets = ballots.targets
    scores, certainties = _judged(verdicts, ballots, method)
    suggested = ballots.suggested(verdicts)
    is_contradicted = certainties > (_THRESHOLDS[ballots.task] if threshold is None else threshold)
    if ballots.classes is not None:
        shares = torch.bincount(ballots.values, minlength=len(ballots.classes)).double() / len(ballots)
        is_contradicted &= (suggested != targets) & (1 - scores < shares[ballots.values] / 2)
    order = scores.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    order = order[is_contradicted[order]]
    n_contradicted, order = len(order), order[:n_suspects]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroGradientWarning)  # samples without were named when verdicts were asked for
        places, similarities = _supporters(pairs, targets, order, suggested, ballots.task, n_supporters)
    return LabelSuspects(
        ids=tuple(ids[place] for place in order.tolist()),
        positions=order,
        scores=scores[order],
        given=targets[order],
        suggested=suggested[order],
        supporter_ids=tuple(tuple(ids[place] for place in row if place >= 0) for row in places.tolist()),
        supporter_positions=places,
        supporter_similarities=similarities,
        all_ids=tuple(ids),
        all_scores=scores,
        all_given=targets,
        all_suggested=suggested,
        n_contradicted=n_contradicted,
        task=ballots.task,
        method=method,
        error=error,
    )


_THRESHOLDS: dict[Task, float] = {"classification": 0.5, "regression": 3.0}


def _judged(verdicts: Tensor, ballots: Ballots, method: Method) -> tuple[Tensor, Tensor]:
    """Score of every sample, and how sure its suggested label is."""
    if ballots.classes is None:
        return ballots.distances(verdicts), ballots.distances(verdicts)
    evidence = verdicts if method == "leave_one_out" else verdicts.clamp(min=LEAST_VOTES).log()
    probabilities = calibrated(evidence, ballots.values).values
    return 1 - probabilities.gather(1, ballots.values[:, None])[:, 0], probabilities.max(dim=1).values


def check_questions(method: str, power: float, threshold: float | None, task: Task, **counts: int | None) -> None:
    """Raise where questions make no sense.

    Raises:
        InputError, UnknownNameError: they do not.
    """
    if method not in ("leave_one_out", "votes"):
        raise UnknownNameError(f"method {method!r} is unknown: use 'leave_one_out' or 'votes'.")
    check_power(power)
    if threshold is not None and not 0 <= threshold <= (1 if task == "classification" else torch.inf):
        told = (
            "a probability, from 0 to 1" if task == "classification" else "a number of standard deviations, from 0 on"
        )
        raise InputError(f"threshold is {threshold}: for {task} it is {told}.")
    for name, count in counts.items():
        if count is not None:
            checked_count(name, count, 0)


def _listed(kernel: GradientKernel | Iterable[GradientKernel] | Mapping[Any, GradientKernel]) -> list[GradientKernel]:
    """One kernel, or several."""
    if isinstance(kernel, GradientKernel):
        return [kernel]
    if isinstance(kernel, nn.Module) or not isinstance(kernel, Iterable):
        raise SampleTypeError(f"kernel is a {type(kernel).__name__}: pass a GradientKernel, or several of them.")
    kernels = list(kernel.values() if isinstance(kernel, Mapping) else kernel)
    strangers = [type(each).__name__ for each in kernels if not isinstance(each, GradientKernel)]
    if strangers:
        raise SampleTypeError(f"kernel holds a {strangers[0]}: pass a GradientKernel, or several of them.")
    return kernels


def _ballots(kernels: Sequence[GradientKernel], samples: Samples, task: Task | None) -> Ballots:
    """What the samples vote with."""
    targets = known_targets(samples)
    if kernels:
        ask_about_classes(targets, task, kernels[-1].output, partial(n_outputs_of, kernels[-1], samples))
    return Ballots.of(targets, task)


def _judged_by(kernels: Sequence[GradientKernel], folds: Any, n: int) -> list[Tensor]:
    """Which samples each kernel judges."""
    if not kernels:
        raise InputError("There are no kernels: pass one, or several.")
    if folds is None:
        return [torch.arange(n)] * len(kernels)
    numbers = folds.numbers if isinstance(folds, Folds) else _as_numbers(folds)
    if numbers.shape != (n,) or numbers.is_floating_point() or set(numbers.tolist()) - set(range(len(kernels))):
        raise InputError(
            f"folds is {str(numbers.dtype).removeprefix('torch.')} {list(numbers.shape)}, for {n} samples and "
            f"{len(kernels)} kernels: pass the number of one of the kernels, from 0 on, for every sample."
        )
    return [(numbers == fold).nonzero().flatten() for fold in range(len(kernels))]


def _as_numbers(folds: Any) -> Tensor:
    try:
        return torch.as_tensor(folds)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"folds is a {type(folds).__name__} that no tensor can be made of ({error}): pass `Folds`, or the number "
            "of one of the kernels for every sample."
        ) from error


@dataclass(eq=False)
class _Judging:
    """How a kernel tells every sample's label by those of all others; with the arguments of `label_suspects`."""

    method: Method
    power: float
    normalization: Normalization
    dim: int | None
    progress: bool
    error: float | None = None

    def __post_init__(self) -> None:
        check_normalization(self.normalization)

    def pairs(self, kernel: GradientKernel, samples: Samples) -> Pairs:
        """Similarities of some samples with all."""

        def found(rows: Tensor | None) -> Iterator[tuple[slice, slice, Tensor]]:
            chosen = samples if rows is None else Samples(samples.take(rows))
            return kernel.similarity_blocks(chosen, None if rows is None else samples, self.normalization)

        return found

    def verdicts(self, kernel: GradientKernel, samples: Samples, ballots: Ballots) -> Tensor:
        """What all others say of each sample, [n b]; nan where they say nothing."""
        n, labels = len(samples), ballots.part(slice(0, len(samples)))
        if self.method == "votes":
            return shares_of(self.pairs(kernel, samples), ballots, self.power, progress=self.progress)
        if self.dim is None and 24 * n**2 <= kernel.max_bytes:
            with progress_bar("similarities", n**2, is_shown=self.progress) as advance:
                gram = filled(n, n, _watched(self.pairs(kernel, samples)(None), advance)).double()
            with progress_bar("ridges", len(RIDGES), is_shown=self.progress) as advance:
                return by_gram(gram.clamp_(-1, 1), labels, advance).values
        sketches = self._sketches(kernel, samples, DIM if self.dim is None else self.dim)
        return by_features(lambda: iter([(0, sketches)]), labels).values

    def _sketches(self, kernel: GradientKernel, samples: Samples, dim: int) -> Tensor:
        """Of all samples, [n dim]. How far their cosines are off is measured on some."""
        check_dim(dim)
        n = len(samples)
        if 4 * n * dim > kernel.max_bytes:
            raise InputError(
                f"Sketches of {n:,} samples, {dim:,} numbers each, take {bytes_in_words(4 * n * dim)}, more than the "
                f"kernel's max_bytes of {bytes_in_words(kernel.max_bytes)}. Ask an index, which has them on disk: "
                "Index.build(folder, kernel, data, normalization='flat').label_suspects()."
            )
        values = torch.empty(n, dim)
        with progress_bar("sketches", n, is_shown=self.progress) as advance:
            first = 0
            for batch in samples.batches(kernel.block_size(samples)):
                values[first : first + len(batch)] = sketch(kernel, batch, dim, normalization=self.normalization).values
                first += len(batch)
                advance(len(batch))
        warn_undefined([samples.ids[row] for row in (~values.any(dim=1)).nonzero().flatten().tolist()])
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:N_MEASURED].sort().values
        truth = similarities(kernel, samples.take(chosen.tolist()), self.normalization)
        self.error = max(self.error or 0.0, error_of(values[chosen], truth)["cosine"])
        return values


def _watched(blocks: Iterator[tuple[slice, slice, Tensor]], advance: Advance) -> Iterator[tuple[slice, slice, Tensor]]:
    for rows, columns, block in blocks:
        yield rows, columns, block
        advance(block.numel())


def _supporters(
    pairs: Pairs, targets: Tensor, suspects: Tensor, suggested: Tensor, task: Task, k: int
) -> tuple[Tensor, Tensor]:
    """The most similar samples whose label is the suggested one (regression: the most similar samples). [s k] each."""
    k = min(k, len(targets))
    if not len(suspects) or k == 0:
        return torch.full((len(suspects), k), -1), torch.full((len(suspects), k), torch.nan, dtype=torch.float64)
    best = torch.full((len(suspects), k), -torch.inf, dtype=torch.float64)
    places = torch.full((len(suspects), k), -1)
    for r, c, block in pairs(suspects):
        found = torch.arange(c.start, c.stop)
        values = block.cpu().double().masked_fill(found == suspects[r, None], torch.nan)
        if task == "classification":
            values = values.masked_fill(targets[c] != suggested[suspects[r], None], torch.nan)
        values = torch.cat([best[r], values.nan_to_num(nan=-torch.inf)], dim=1)
        all_places = torch.cat([places[r], found.expand(values.shape[0], -1)], dim=1)
        top = values.topk(k, dim=1)
        best[r], places[r] = top.values, all_places.gather(1, top.indices)
    missing = best == -torch.inf
    return places.masked_fill(missing, -1), best.masked_fill(missing, torch.nan).clamp(-1, 1)
