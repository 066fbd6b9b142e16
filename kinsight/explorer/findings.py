"""What a report says: neighbors, counts and suspected labels of one network and one data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kinsight.batches import Id, as_targets, check_length, checked_count
from kinsight.denoising.denoise import MAX_EXACT, Denoising, denoise
from kinsight.density import Counts
from kinsight.errors import TargetError
from kinsight.explorer.asking import Asker, asker
from kinsight.explorer.noise import noisiest
from kinsight.explorer.portraits import Painter, Portrait
from kinsight.explorer.regimes import examples_of
from kinsight.explorer.volatility import most_volatile
from kinsight.fit import FitMap, Regime
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.labels.suspects import LabelSuspects
from kinsight.neighbors import Neighbors
from kinsight.normalization import Normalization
from kinsight.samples import Samples
from kinsight.stability import Stability

if TYPE_CHECKING:
    from kinsight.index import Index


@dataclass(frozen=True)
class Subject:
    """What was looked at, and through which eyes.

    Args:
        model_name: class of the model.
        n_samples: of the data.
        sizes: number of entries of every parameter that is differentiated, by name.
        routes: how the gradient of each was computed, by name.
        output: name of the output function.
        normalization: which similarity.
        dim: numbers in a sketch, where counts and suspects are estimated from an index; None: they are exact.
        is_classification: whether targets are classes.
        agreement: share of the samples whose class the network predicts; nan where that cannot be told.
    """

    model_name: str
    n_samples: int
    sizes: Mapping[str, int]
    routes: Mapping[str, str]
    output: str
    normalization: Normalization
    dim: int | None
    is_classification: bool
    agreement: float

    @property
    def n_parameters(self) -> int:
        """Entries of all parameters that are differentiated."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class TruthCheck:
    """How the suspects compare with labels that are known to be right.

    Args:
        n_wrong: targets of the data that differ from the truth.
        n_shown: suspects shown.
        n_found: suspects shown whose target is one of the wrong ones.
        auroc: probability that a wrong target has a higher score than a right one; nan where there are not both.
    """

    n_wrong: int
    n_shown: int
    n_found: int
    auroc: float


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a report says; `render` turns it into a page.

    Args:
        title: of the page.
        subject: what was looked at.
        queries: the samples whose neighbors were asked for.
        neighbors: theirs; None where no query was asked for.
        counts: the soft count of every sample.
        lonely: positions of the loneliest samples, the loneliest first.
        crowded: positions of the most crowded, the most crowded first.
        suspects: the targets that the neighborhood contradicts; None where they were not or could not be looked for.
        suggestions: the label suggested for each suspect, in words.
        no_suspects: why there are none, where that is so.
        check: the suspects against the truth, where it was passed.
        portraits: what is shown of samples of the data, by position.
        fit: over- and underfit; None where it was not or could not be looked for.
        examples: positions of samples of its regimes that are shown.
        no_fit: why there is none, where that is so.
        noise: of labels, and what is left of it in predictions; None where it was not or could not be looked for.
        noisy: positions of samples that are shown, whose predictions keep most of it.
        no_noise: why there is none, where that is so; empty where targets are classes.
        stability: what other checkpoints, or trainings, have in common with it; None where it was not passed.
        volatile: positions of samples that are shown, whose counts they rank most differently.
    """

    title: str
    subject: Subject
    queries: tuple[Portrait, ...]
    neighbors: Neighbors | None
    counts: Counts
    lonely: tuple[int, ...]
    crowded: tuple[int, ...]
    suspects: LabelSuspects | None
    suggestions: tuple[str, ...]
    no_suspects: str
    check: TruthCheck | None
    portraits: Mapping[int, Portrait]
    fit: FitMap | None = None
    examples: Mapping[Regime, tuple[int, ...]] = field(default_factory=dict)
    no_fit: str = "Over- and underfit were not asked for."
    noise: Denoising | None = None
    noisy: tuple[int, ...] = ()
    no_noise: str = ""
    stability: Stability | None = None
    volatile: tuple[int, ...] = ()

    @property
    def undefined_ids(self) -> tuple[Id, ...]:
        """Ids of the samples whose gradient is zero, so that their similarity is undefined."""
        flags = self.counts.values.isnan().tolist()
        return tuple(id_ for id_, is_undefined in zip(self.counts.ids, flags, strict=True) if is_undefined)


def examine(
    kernel: GradientKernel,
    data: Any,
    *,
    queries: Any = None,
    n_queries: int = 8,
    n_neighbors: int = 8,
    n_lonely: int = 12,
    n_crowded: int = 12,
    n_suspects: int = 24,
    n_examples: int = 6,
    n_noisy: int = 6,
    n_volatile: int = 6,
    weight_decay: float = 0.0,
    normalization: Normalization = "flat",
    truth: Any = None,
    index: Index | None = None,
    stability: Stability | None = None,
    title: str = "",
    progress: bool = False,
) -> Findings:
    """Neighbors, counts, suspects, fit and noise of a data set, with what there is to show of its samples.

    All of it is exact; with an index, counts, suspects and fit are estimates, and neighbors are looked for there.

    Args:
        kernel, data: of the network; whatever `Samples` takes.
        queries: samples whose neighbors are shown; some of the data, spread over its targets, where left out.
        n_queries, n_neighbors, n_lonely, n_crowded, n_suspects, n_examples, n_noisy, n_volatile: how many of each are
            shown, as `write_report` says; 0 leaves any out.
        weight_decay: of training, as in torch.optim.SGD: what is said of noise depends on it.
        normalization: which similarity, in all of it; that of the index, where there is one.
        truth: targets known to be right, [n], to compare the suspects with.
        index, stability: of the data, built with this kernel; what `kinsight.compare` says of it and others.
        title, progress: of the page, made of the model's name where left out; whether to show progress bars.

    Raises:
        InputError: a number of samples to show is negative; the stability is of other data.
        WrongModelError, ChangedDataError: the index is of another model, or of other data.
    """
    _check_asked(kernel, normalization, n_queries, n_lonely, n_crowded, n_suspects, n_examples, n_noisy, n_volatile)
    samples = Samples.wrap(data)
    right, asked = _as_truth(truth, samples), _queries(samples, queries, n_queries)
    ask = asker(kernel, samples, normalization, index, progress=progress)
    volatile = most_volatile(stability, kernel, samples, ask.normalization, n_volatile)
    painter = Painter(kernel, samples, _is_classification(samples), samples.class_names, right)
    found, counts = None if asked is None else ask.neighbors(asked, n_neighbors), ask.soft_count()
    lonely, crowded = _extremes(counts, n_lonely, n_crowded)
    suspects, suggestions, no_suspects, check = _suspects(ask, painter, right, n_suspects)
    fit, examples, no_fit = _fit(ask, samples, n_examples)
    noise, noisy, no_noise = _noise(kernel, samples, n_noisy, weight_decay)
    shown = sorted({*lonely, *crowded, *noisy, *volatile, *chain(*examples.values()), *_places(found, suspects)})
    ask.check(shown)
    return Findings(
        title=title or f"What {type(kernel.model).__name__} finds alike", subject=_subject(kernel, painter, ask),
        queries=() if asked is None else _portraits_of(asked, painter), neighbors=found, counts=counts, lonely=lonely,
        crowded=crowded, suspects=suspects, suggestions=suggestions, no_suspects=no_suspects, check=check,
        portraits=painter.portraits(shown), fit=fit, examples=examples, no_fit=no_fit, noise=noise, noisy=noisy,
        no_noise=no_noise, stability=stability, volatile=volatile,
    )  # fmt: skip


def _check_asked(kernel: GradientKernel, normalization: Normalization, *counts: int) -> None:
    check_kernel(kernel, normalization)
    names = ("n_queries", "n_lonely", "n_crowded", "n_suspects", "n_examples", "n_noisy", "n_volatile")
    for name, count in zip(names, counts, strict=True):
        checked_count(name, count, 0)


def _extremes(counts: Counts, n_lonely: int, n_crowded: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The samples with the lowest and the highest counts, by position."""
    order = counts.order()
    return tuple(order[:n_lonely].tolist()), tuple(order.flip(0)[:n_crowded].tolist())


def _queries(samples: Samples, queries: Any, n_queries: int) -> Samples | None:
    """The samples whose neighbors are shown: the first of those given, or some of the data, spread over its targets."""
    if not n_queries:
        return None
    if queries is not None:
        return Samples.wrap(queries).first(n_queries)
    n, targets = len(samples), samples.targets
    is_sortable = targets is not None and targets.dim() == 1
    order = targets.argsort(stable=True).tolist() if targets is not None and is_sortable else list(range(n))
    k = min(n_queries, n)
    positions = [order[(2 * i + 1) * n // (2 * k)] for i in range(k)]
    return Samples(samples.take(positions), preview=lambda place: samples.preview(positions[place]))


def _suspects(
    ask: Asker, painter: Painter, right: Tensor | None, n_suspects: int
) -> tuple[LabelSuspects | None, tuple[str, ...], str, TruthCheck | None]:
    """The suspects, suggested labels in words, or why there are none; and how they compare with the truth."""
    if not n_suspects:
        return None, (), "Suspected labels were not asked for.", None
    if painter.samples.targets is None:
        return None, (), "The data has no labels, so there is nothing to contradict.", None
    try:
        found = ask.label_suspects(n_suspects)
    except TargetError as error:
        return None, (), f"The labels of this data cannot be judged. {error}", None
    check = None if right is None else _checked(found, painter.samples, right)
    return found, tuple(painter.words(target) for target in found.suggested), "", check


def _fit(ask: Asker, samples: Samples, n_examples: int) -> tuple[FitMap | None, dict[Regime, tuple[int, ...]], str]:
    """Over- and underfit with examples, or why there is nothing of it."""
    if not n_examples:
        return None, {}, "Over- and underfit were not asked for."
    if samples.targets is None:
        return None, {}, "The data has no labels that the network could fit."
    try:
        found = ask.fit_map()
    except TargetError as error:
        return None, {}, f"Fit cannot be told from these labels. {error}"
    return found, examples_of(found, n_examples), ""


def _noise(
    kernel: GradientKernel, samples: Samples, n_noisy: int, weight_decay: float
) -> tuple[Denoising | None, tuple[int, ...], str]:
    """The noise of labels with samples to show, or why there is nothing of it."""
    targets = samples.targets
    if targets is None or not targets.is_floating_point() or not n_noisy:
        return None, (), ""
    if targets.numel() > MAX_EXACT:
        return None, (), (
            f"Matrices of all pairs of {targets.numel():,} values are more than a report forms ({MAX_EXACT:,}). Ask "
            "kinsight.denoise(kernel, data), or the command kinsight denoise, which estimate."
        )  # fmt: skip
    try:
        found = denoise(kernel, samples, weight_decay=weight_decay)
    except TargetError as error:
        return None, (), f"Noise cannot be told from these labels. {error}"
    return found, noisiest(found, n_noisy), ""


def _is_classification(samples: Samples) -> bool:
    targets = samples.targets
    return targets is not None and targets.dim() == 1 and not targets.is_floating_point()


def _subject(kernel: GradientKernel, painter: Painter, ask: Asker) -> Subject:
    missing = "unused" if kernel.routes else "not needed"
    return Subject(
        model_name=type(kernel.model).__name__,
        n_samples=len(painter.samples),
        sizes={name: parameter.numel() for name, parameter in kernel.parameters.items()},
        routes={name: kernel.routes.get(name, missing) for name in kernel.parameters},
        output=kernel.output.name,
        normalization=ask.normalization,
        dim=ask.dim,
        is_classification=painter.is_classification,
        agreement=painter.agreement(),
    )


def _portraits_of(asked: Samples, painter: Painter) -> tuple[Portrait, ...]:
    own = Painter(painter.kernel, asked, painter.is_classification, asked.class_names or painter.class_names)
    return tuple(own.portraits(range(len(asked))).values())


def _places(*results: Neighbors | LabelSuspects | None) -> Iterator[int]:
    """Positions in the data of all samples in results."""
    for result in (each for each in results if each is not None):
        tensors = [result.positions]
        if isinstance(result, LabelSuspects):
            tensors.append(result.supporter_positions)
        yield from (place for tensor in tensors for place in tensor.flatten().tolist() if place >= 0)


def _as_truth(truth: Any, samples: Samples) -> Tensor | None:
    right = as_targets(truth)
    if right is None:
        return None
    check_length("labels in truth=", len(right), len(samples))
    if samples.targets is None or samples.targets.shape != right.shape:
        shape = "missing" if samples.targets is None else str(list(samples.targets.shape))
        raise TargetError(f"truth= is {list(right.shape)} and the data's targets are {shape}: they cannot be compared.")
    return right


def _checked(suspects: LabelSuspects, samples: Samples, right: Tensor) -> TruthCheck:
    assert samples.targets is not None
    is_wrong = (samples.targets != right).reshape(len(right), -1).any(dim=1)
    is_scored = ~suspects.all_scores.isnan()
    return TruthCheck(
        n_wrong=int(is_wrong.sum()),
        n_shown=len(suspects),
        n_found=int(is_wrong[suspects.positions].sum()),
        auroc=auroc(suspects.all_scores[is_scored], is_wrong[is_scored]),
    )


def auroc(scores: Tensor, is_positive: Tensor) -> float:
    """Probability that a positive scores higher than a negative, a tie counting half; nan where there are not both.

    Example:
        >>> auroc(torch.tensor([0.9, 0.8, 0.3, 0.3]), torch.tensor([True, False, True, False]))
        0.625
    """
    positive, negative = scores[is_positive], scores[~is_positive].sort().values
    if not len(positive) or not len(negative):
        return float("nan")
    below = torch.searchsorted(negative, positive).double()
    up_to = torch.searchsorted(negative, positive, right=True).double()
    return float((below + up_to).mean() / (2 * len(negative)))
