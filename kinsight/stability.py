"""Stability: do two checkpoints, or two seeds, see the same data in the same way? And from when on?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn

from kinsight.agreement import TIE, Agreement, Bootstrap, nearest, pearson, ranked, shared
from kinsight.batches import checked_count
from kinsight.density import soft_count
from kinsight.errors import InputError, SampleTypeError
from kinsight.identity import content_digests, identity_of
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.normalization import Normalization, check_normalization
from kinsight.progress import progress_bar
from kinsight.samples import Id, Samples

RULE = (
    "the first network that shares, with every later one, and they with each other, at least {least:.0%} of the {k} "
    "nearest neighbors among {n_others:,} samples (lower end of the 95 % interval)"
)
"""From when on neighbors are trusted."""

MIN_ANCHORS = 4
"""The similarities of fewer, centered, are all 0 off the diagonal: there is nothing to align."""


@dataclass(frozen=True, eq=False)
class Compared:
    """Which networks were compared on which data, by digests: what shows one of them beside it can ask.

    Args:
        weights: of each network, [t].
        anchors: positions of some samples, [a].
        contents: of these samples' inputs and targets, [a].
    """

    weights: tuple[str, ...]
    anchors: Tensor
    contents: list[bytes]

    def check(self, kernel: GradientKernel, samples: Samples) -> None:
        """Raise unless the last network is this one, and the data the same.

        Raises:
            InputError: they are not.
        """
        if self.weights[-1] != identity_of(kernel)["weights"]:
            raise InputError(
                "stability= is of networks of which the last has other weights than the one all else here is of: it "
                "would be told of another network. Pass this network last to kinsight.compare."
            )
        if content_digests(samples.take(self.anchors)) != self.contents:
            raise InputError(
                "stability= is of samples with other inputs or targets under the same ids: pass what kinsight.compare "
                "says of this very data."
            )


@dataclass(frozen=True, eq=False)
class Stability:
    """What t networks have in common in how they see one data set.

    Args:
        names: of the networks, in order.
        ids: of the samples, n of them.
        counts: rank correlation (Spearman) of soft counts.
        similarities: rank correlation of a sample's similarities to others, mean over anchors (those that neither
            network finds as similar to all others).
        neighbors: share of the k nearest neighbors in common, mean over anchors.
        alignments: centered alignment of the similarities of different anchors.
        volatility: standard deviation, over networks, of a sample's rank by soft count, from 0 to 1; [n]. nan where a
            network has no gradient.
        mean_volatility, mean_volatility_interval: over samples, and its 95 % interval by resampling them. That of one
            sample has none: it is what these networks do with it, and no estimate.
        n_neighbors: how many neighbors, k.
        n_anchors: samples whose neighbors were looked for.
        n_others: samples among which they were, anchors included; the more there are, the fewer are shared by chance.
        least: share of neighbors in common that counts as the same.
        normalization: which similarity.
        compared: which networks and data it is of.
    """

    names: tuple[str, ...]
    ids: tuple[Id, ...]
    counts: Agreement
    similarities: Agreement
    neighbors: Agreement
    alignments: Agreement
    volatility: Tensor
    mean_volatility: float
    mean_volatility_interval: tuple[float, float]
    n_neighbors: int
    n_anchors: int
    n_others: int
    least: float
    normalization: Normalization
    compared: Compared

    @property
    def rule(self) -> str:
        """What `trusted_from` means, in words."""
        return RULE.format(least=self.least, k=self.n_neighbors, n_others=self.n_others)

    @property
    def trusted_from(self) -> str | None:
        """The name of the first network from which on neighbors are the same, by `rule`; None if the last alone is."""
        low = self.neighbors.low
        t = len(self.names)
        for first in range(t - 1):
            if bool((low[first:, first:] >= self.least).all()):
                return self.names[first]
        return None

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a sample: id, volatility."""
        for id_, value in zip(self.ids, self.volatility.tolist(), strict=True):
            yield {"id": id_, "volatility": value}

    def summary(self) -> str:
        """In words."""
        last, counts = float(self.neighbors.values[-2, -1]), float(self.counts.values[-2, -1])
        correlation = "no rank correlation" if isnan(counts) else f"a rank correlation of {counts:.2f}"
        trusted = f"from {self.trusted_from} on" if self.trusted_from else "not before the last network"
        low, high = self.mean_volatility_interval
        return (
            f"The last two of {len(self.names)} networks share {last:.0%} of the {self.n_neighbors} nearest "
            f"neighbors, and their counts have {correlation}. Over all networks, a sample's rank by count varies by "
            f"{self.mean_volatility:.1%} of the data (standard deviation; mean over samples, {low:.1%} to {high:.1%}). "
            f"Neighbors can be trusted {trusted}: {self.rule}."
        )

    def pairs(self) -> Iterator[dict[str, Any]]:
        """One record a pair of networks."""
        for i, first in enumerate(self.names):
            for j in range(i + 1, len(self.names)):
                record: dict[str, Any] = {"first": first, "second": self.names[j]}
                for name in ("counts", "similarities", "neighbors", "alignments"):
                    found: Agreement = getattr(self, name)
                    record[name] = float(found.values[i, j])
                    record[f"{name}_interval"] = [float(found.low[i, j]), float(found.high[i, j])]
                yield record


@dataclass(frozen=True, eq=False)
class _View:
    """How one network sees the data.

    Args:
        counts: soft counts, [n]; nan where it has no gradient.
        similarities: of anchors to others, of which they are the first, [a r].
        weights: their digest.
    """

    counts: Tensor
    similarities: Tensor
    weights: str


def compare(
    kernels: Mapping[str, GradientKernel] | Iterable[tuple[str, GradientKernel]],
    data: Any,
    *,
    n_neighbors: int = 10,
    normalization: Normalization = "flat",
    n_anchors: int = 256,
    n_others: int = 2048,
    least: float = 0.5,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Stability:
    """How far several networks agree on a data set: checkpoints of one training, or several trainings.

    Samples for which a network has no gradient are left out, as anchors and as neighbors. Similarities that are alike
    but for rounding tie, and what ties is no agreement.

    Args:
        kernels: of the networks, by name, in order. Pairs may be made one by one: one at a time is held, and one that
            cannot be compared is noticed when it comes.
        data: whatever `Samples` takes.
        n_neighbors: the nearest, that are compared, k.
        normalization: 'whitened' or 'flat' similarity.
        n_anchors: random samples whose neighbors are looked for.
        n_others: random samples among which they are, anchors included; all where there are fewer. What is found
            depends on it: k of few are other neighbors than k of many.
        least: share of neighbors in common that counts as the same, from 0 to 1.
        n_bootstrap: resamplings for the intervals.
        seed, progress: of all that is random; whether to show a progress bar.

    Returns:
        `Stability`.

    Raises:
        InputError: fewer than two networks, two of one name or one without; more neighbors than samples, or than
            samples with gradients; numbers that make no sense.

    Reference:
        Cortes, Mohri, Rostamizadeh (2012), "Algorithms for learning kernels based on centered alignment"; Székely,
        Rizzo (2014), "Partial distance correlation with methods for dissimilarities"; Efron (1979), "Bootstrap
        methods: another look at the jackknife".
    """
    samples, generator = Samples.wrap(data), torch.Generator().manual_seed(seed)
    _check_asked(len(samples), n_neighbors, n_anchors, n_others, least, n_bootstrap, normalization)
    others = torch.randperm(len(samples), generator=generator)[:n_others]
    named = _checked(kernels)
    if isinstance(kernels, Sized):  # all are there: all are checked before the first is asked
        named = iter(list(named))
    names, views, anchors = [], [], others[:n_anchors]
    with progress_bar("networks", len(kernels) if isinstance(kernels, Sized) else 0, is_shown=progress) as advance:
        for name, kernel in named:
            names.append(name)
            views.append(_view(kernel, samples, anchors, others, normalization))
            advance(1)
    return Stability(
        tuple(names), samples.ids, n_neighbors=n_neighbors, least=least, normalization=normalization,
        compared=Compared(tuple(view.weights for view in views), anchors, content_digests(samples.take(anchors))),
        **_agreement(names, views, others, Bootstrap(n_bootstrap, generator), n_neighbors),
    )  # fmt: skip


def _check_asked(
    n: int, k: int, n_anchors: int, n_others: int, least: float, n_bootstrap: int, normalization: Normalization
) -> None:
    check_normalization(normalization)
    n_others = min(n, checked_count("n_others", n_others))
    if checked_count("n_neighbors", k) >= n_others:
        raise InputError(
            f"n_neighbors is {k}, and neighbors are looked for among {n_others} samples, one of which is the sample "
            "itself: ask for fewer."
        )
    checked_count("n_bootstrap", n_bootstrap, 2)
    checked_count("n_anchors", n_anchors, MIN_ANCHORS)
    if n_others < MIN_ANCHORS:
        raise InputError(f"There are {n_others} samples: intervals need at least {MIN_ANCHORS} of them.")
    if not 0 <= least <= 1:
        raise InputError(f"least is {least}: it is a share of neighbors, from 0 to 1.")


def _checked(
    kernels: Mapping[str, GradientKernel] | Iterable[tuple[str, GradientKernel]],
) -> Iterator[tuple[str, GradientKernel]]:
    """Names and networks as they come, if there are at least two, and no two of one name."""
    if isinstance(kernels, nn.Module) or not isinstance(kernels, Iterable):
        raise SampleTypeError(
            f"kernels is a {type(kernels).__name__}: pass networks by name, {{'epoch 1': GradientKernel(model), ...}}."
        )
    names: list[str] = []
    for pair in kernels.items() if isinstance(kernels, Mapping) else kernels:
        name, kernel = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, pair)
        if isinstance(name, str):
            check_kernel(kernel)
        else:
            raise InputError(
                f"Network {len(names)} is {type(kernel).__name__} by the name {name!r}, and results are told by name: "
                "pass {'epoch 1': GradientKernel(model), ...}, or pairs of such."
            )
        names.append(name)
        if name in names[:-1]:
            raise InputError(f"Networks are {names}: pass at least two, of different names.")
        yield name, kernel
    if len(names) < 2:
        raise InputError(f"Networks are {names}: pass at least two, of different names.")


def _agreement(
    names: list[str],
    views: list[_View],
    others: Tensor,
    bootstrap: Bootstrap,
    k: int,
) -> dict[str, Any]:
    """What they have in common, as fields of `Stability`. Samples that one of them finds undefined are left out."""
    counts = torch.stack([view.counts for view in views])
    is_known = ~counts.isnan().any(dim=0)
    columns = is_known[others]
    similarities = [view.similarities[columns[: len(view.similarities)]][:, columns] for view in views]
    (a, r), n = similarities[0].shape, len(is_known)
    _check_known(dict(zip(names, counts.isnan().sum(dim=1).tolist(), strict=True)), n, a, r, k)
    ranks = ranked(_on_grid(counts[:, is_known], TIE * n))
    volatility = torch.full((n,), torch.nan, dtype=torch.float64)
    volatility[is_known] = (ranks / (ranks.shape[1] - 1)).std(dim=0, correction=0)
    mean = bootstrap.volatility(ranks)
    is_other = torch.arange(r) != torch.arange(a)[:, None]
    rows = [each[is_other].reshape(a, r - 1) for each in similarities]
    return {
        "n_anchors": a, "n_others": r, "counts": bootstrap.correlations(ranks),
        "similarities": bootstrap.means([ranked(each) for each in rows], pearson),
        "neighbors": bootstrap.means([nearest(each, k) for each in rows], shared),
        "alignments": bootstrap.alignments(torch.stack([each[:, :a] for each in similarities])),
        "volatility": volatility, "mean_volatility": float(mean.values),
        "mean_volatility_interval": (float(mean.low), float(mean.high)),
    }  # fmt: skip


def _check_known(n_undefined: dict[str, int], n: int, n_anchors: int, n_others: int, k: int) -> None:
    if n_anchors < MIN_ANCHORS or n_others <= k:
        without = ", ".join(f"{name!r} for {count} of {n}" for name, count in n_undefined.items() if count)
        raise InputError(
            f"Of the samples drawn, {n_others} have a gradient in every network, {n_anchors} of them anchors: {k} "
            f"neighbors and intervals need {k + 1} and {MIN_ANCHORS}. Without a gradient is {without}. Leave networks "
            "out that have none, ask for fewer neighbors, or raise n_others and n_anchors."
        )


def _view(
    kernel: GradientKernel, samples: Samples, anchors: Tensor, others: Tensor, normalization: Normalization
) -> _View:
    counts = soft_count(kernel, samples, normalization=normalization).values
    few, many = (Samples(samples.take(places.tolist())) for places in (anchors, others))
    found = torch.empty(len(anchors), len(others), dtype=torch.float64)
    for r, c, block in kernel.similarity_blocks(few, many, normalization):
        found[r, c] = block.cpu().double()
    return _View(counts.cpu().double(), _on_grid(found, TIE), identity_of(kernel)["weights"])


def _on_grid(values: Tensor, step: float) -> Tensor:
    """Values rounded to multiples of a step, so that what is alike but for rounding errors is alike."""
    return (values / step).round() * step
