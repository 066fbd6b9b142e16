"""Stability: do two checkpoints, or two seeds, see the same data in the same way? And from when on?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinsight.agreement import Agreement, Bootstrap, pearson, ranked, shared
from kinsight.density import soft_count
from kinsight.errors import InputError
from kinsight.kernel import GradientKernel, Normalization
from kinsight.progress import progress_bar
from kinsight.samples import Id, Samples

RULE = (
    "the first network that shares, with every later one, and they with each other, at least {least:.0%} of the {k} "
    "nearest neighbors (lower end of the 95 % interval)"
)
"""From when on neighbors are trusted."""


@dataclass(frozen=True, eq=False)
class Stability:
    """What t networks have in common in how they see one data set.

    Args:
        names: of the networks, in order.
        ids: of the samples, n of them.
        counts: rank correlation (Spearman) of soft counts.
        similarities: rank correlation of a sample's similarities to others, mean over anchors.
        neighbors: share of the k nearest neighbors in common, mean over anchors.
        alignments: centered alignment of the similarities of anchors among themselves.
        volatility: standard deviation, over networks, of a sample's rank by soft count, from 0 to 1; [n].
        k: neighbors.
        n_anchors: samples whose neighbors were looked at.
        least: share of neighbors in common that counts as the same.
    """

    names: tuple[str, ...]
    ids: tuple[Id, ...]
    counts: Agreement
    similarities: Agreement
    neighbors: Agreement
    alignments: Agreement
    volatility: Tensor
    k: int
    n_anchors: int
    least: float

    @property
    def rule(self) -> str:
        """What `trusted_from` means, in words."""
        return RULE.format(least=self.least, k=self.k)

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
        trusted = f"from {self.trusted_from} on" if self.trusted_from else "not before the last network"
        return (
            f"The last two of {len(self.names)} networks share {last:.0%} of the {self.k} nearest neighbors, and their "
            f"counts have a rank correlation of {counts:.2f}. Neighbors can be trusted {trusted}: {self.rule}."
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
        counts: soft counts, [n].
        rows: similarities of anchors to others but themselves, [a r].
        anchors: among themselves, [a a].
    """

    counts: Tensor
    rows: Tensor
    anchors: Tensor


def compare(
    kernels: Mapping[str, GradientKernel] | Iterable[tuple[str, GradientKernel]],
    data: Any,
    *,
    k: int = 10,
    normalization: Normalization = "flat",
    n_anchors: int = 256,
    n_others: int = 2048,
    least: float = 0.5,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Stability:
    """How far several networks agree on a data set: checkpoints of one training, or several trainings.

    Args:
        kernels: of the networks, by name, in order. Pairs may be made one by one: one at a time is held.
        data: whatever `Samples` takes.
        k: nearest neighbors that are compared.
        normalization: 'whitened' or 'flat' similarity.
        n_anchors: random samples whose neighbors are looked for.
        n_others: random samples among which they are, anchors included; all where there are fewer.
        least: share of neighbors in common that counts as the same.
        n_bootstrap: resamplings for the intervals.
        seed: of all that is random.
        progress: whether to show a progress bar.

    Returns:
        `Stability`.

    Raises:
        InputError: fewer than two networks, two of one name, or more neighbors than samples.

    Reference:
        Cortes, Mohri, Rostamizadeh (2012), "Algorithms for learning kernels based on centered alignment"; Efron (1979),
        "Bootstrap methods: another look at the jackknife".
    """
    samples = Samples.wrap(data)
    generator = torch.Generator().manual_seed(seed)
    others = torch.randperm(len(samples), generator=generator)[:n_others]
    anchors = others[:n_anchors]
    if k < 1 or k >= len(others):
        raise InputError(f"k is {k}, and neighbors are looked for among {len(others)} samples: ask for 1 to one less.")
    if n_anchors < 2 or n_bootstrap < 2:
        raise InputError(f"n_anchors is {n_anchors} and n_bootstrap {n_bootstrap}: intervals need at least 2 of each.")
    named = kernels.items() if isinstance(kernels, Mapping) else kernels
    names, views = [], []
    with progress_bar("networks", len(kernels) if isinstance(kernels, Mapping) else 0, is_shown=progress) as advance:
        for name, kernel in named:
            names.append(name)
            views.append(_view(kernel, samples, anchors, others, normalization))
            advance(1)
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"Networks are {names}: pass at least two, of different names.")
    return _agreement(names, views, samples, Bootstrap(n_bootstrap, generator), k, least)


def _agreement(
    names: list[str], views: list[_View], samples: Samples, bootstrap: Bootstrap, k: int, least: float
) -> Stability:
    """What they have in common. Samples that one of them finds undefined are left out."""
    counts = torch.stack([view.counts for view in views])
    is_known = ~counts.isnan().any(dim=0)
    ranks = ranked(counts[:, is_known])
    volatility = torch.full((len(samples),), torch.nan, dtype=torch.float64)
    volatility[is_known] = (ranks / max(1, int(is_known.sum()) - 1)).std(dim=0, correction=0)
    is_known = ~torch.stack([view.rows.isnan().all(dim=1) for view in views]).any(dim=0)
    rows = [view.rows[is_known].nan_to_num(nan=-1.0) for view in views]
    return Stability(
        names=tuple(names), ids=samples.ids, k=k, n_anchors=int(is_known.sum()), least=least,
        counts=bootstrap.correlations(ranks),
        similarities=bootstrap.means([ranked(each) for each in rows], pearson),
        neighbors=bootstrap.means([each.topk(k, dim=1).indices for each in rows], shared),
        alignments=bootstrap.alignments(torch.stack([view.anchors[is_known][:, is_known] for view in views])),
        volatility=volatility,
    )  # fmt: skip


def _view(
    kernel: GradientKernel, samples: Samples, anchors: Tensor, others: Tensor, normalization: Normalization
) -> _View:
    counts = soft_count(kernel, samples, normalization=normalization).values
    few, many = (Samples(samples.take(places.tolist())) for places in (anchors, others))
    found = torch.empty(len(anchors), len(others), dtype=torch.float64)
    for r, c, block in kernel.similarity_blocks(few, many, normalization):
        found[r, c] = block.cpu().double()
    is_other = torch.arange(len(others)) != torch.arange(len(anchors))[:, None]
    return _View(counts, found[is_other].reshape(len(anchors), -1), found[:, : len(anchors)])
