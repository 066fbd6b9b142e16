"""Rank correlations, neighbors in common, alignments: how much networks agree, with intervals by bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-6
"""Similarities that differ by less are alike: rounding in float32 leaves a third of it."""

ENDS = (0.025, 0.975)
"""Of a 95 % interval."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """How much each of t networks agrees with each other one, and 95 % intervals.

    Args:
        values: [t t]. 1 on the diagonal, less for neighbors that tie; nan where a network tells no samples apart.
        low, high: ends of the intervals, by bootstrap, [t t].
    """

    values: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Resampling with replacement.

    Args:
        n: resamplings.
        generator: of what is random.
    """

    n: int
    generator: torch.Generator

    def draws(self, n_samples: int) -> Iterator[Tensor]:
        """How often each sample is drawn, over their number, [n]; one resampling after the other."""
        for _ in range(self.n):
            drawn = torch.randint(n_samples, (n_samples,), generator=self.generator)
            yield torch.bincount(drawn, minlength=n_samples).double() / n_samples

    def interval(self, n_samples: int, measure: Callable[[Tensor], Tensor]) -> Agreement:
        """What `measure` [n] -> [a ...] finds where all samples weigh the same, and the middle 95 % over resamplings.

        Resamplings in which it is undefined, as where all that were drawn are one sample, do not count.
        """
        values = measure(torch.full((n_samples,), 1 / n_samples, dtype=torch.float64))
        drawn = torch.stack([measure(weights) for weights in self.draws(n_samples)])
        ends = torch.tensor(ENDS, dtype=drawn.dtype)
        parts = [part.nanquantile(ends, dim=0) for part in drawn.unbind(1)]  # torch takes 16 million numbers at most
        low, high = torch.stack(parts, dim=1)
        return Agreement(values, low, high)

    def correlations(self, ranks: Tensor) -> Agreement:
        """Correlations of the rows of [t n]."""
        centered = ranks - ranks.mean(dim=1, keepdim=True)
        return self.interval(ranks.shape[1], lambda weights: correlations(centered, weights))

    def means(self, each: Sequence[Tensor], compare: Callable[[Tensor, Tensor], Tensor]) -> Agreement:
        """The mean over anchors of what two networks have in common at each, `compare` [a r] [a r] -> [a].

        An anchor at which it is nan does not count for these two.
        """
        t = len(each)
        values = torch.stack([compare(one, other) for place, one in enumerate(each) for other in each[place:]])
        known, is_known = values.nan_to_num(nan=0.0), (~values.isnan()).to(values)

        def measure(weights: Tensor) -> Tensor:
            return symmetric((known @ weights) / (is_known @ weights), t)

        return self.interval(values.shape[1], measure)

    def volatility(self, ranks: Tensor) -> Agreement:
        """The mean over samples of their volatility, by ranks of [t n]; [1], ranks being those among what is drawn."""
        return self.interval(ranks.shape[1], lambda weights: (volatility(ranks, weights) @ weights)[None])

    def alignments(self, matrices: Tensor) -> Agreement:
        """Centered alignments of [t a a]."""
        centered = without_diagonal(matrices)
        return self.interval(matrices.shape[1], lambda weights: alignments(centered, weights))


def ranked(values: Tensor) -> Tensor:
    """Ranks from 0 along the last axis; those of equal values are their mean.

    Example:
        >>> ranked(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist()
        [2.5, 0.0, 2.5, 1.0]
    """
    ordered = values.contiguous().sort(dim=-1).values
    first = torch.searchsorted(ordered, values.contiguous())
    last = torch.searchsorted(ordered, values.contiguous(), right=True) - 1
    return (first + last).double() / 2


def volatility(ranks: Tensor, weights: Tensor) -> Tensor:
    """The standard deviation, over networks, of a sample's rank among samples that count by weights.

    Args:
        ranks: from 0, those of equal values their mean, [t n].
        weights: of samples, adding up to 1, [n].

    Returns:
        [n]; ranks are from 0 to 1.

    Example:
        >>> volatility(torch.tensor([[0.0, 1, 2], [0, 2, 1]]), torch.full((3,), 1 / 3).double()).tolist()
        [0.0, 0.25, 0.25]
    """
    n, level = ranks.shape[1], (2 * ranks).long()
    equal = torch.zeros(len(ranks), 2 * n, dtype=weights.dtype).scatter_add_(1, level, weights.expand_as(level))
    among = (equal.cumsum(dim=1) - equal / 2).gather(1, level)
    return among.std(dim=0, correction=0) * n / (n - 1)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each row with the same row of the other. [n m] [n m] -> [n]; nan where one is constant."""
    a, b = (each - each.mean(dim=1, keepdim=True) for each in (a, b))
    found: Tensor = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
    return found


def nearest(similarities: Tensor, k: int) -> Tensor:
    """How much of each sample is among the k nearest: 1 or 0; those that tie for the last places share them.

    Args:
        similarities: [n m].
        k: at most m.

    Returns:
        [n m], from 0 to 1; every row adds up to k.

    Example:
        >>> nearest(torch.tensor([[0.9, 0.5, 0.5, 0.1]]), 2).tolist()
        [[1.0, 0.5, 0.5, 0.0]]
    """
    last = similarities.topk(k, dim=1).values[:, -1:]
    is_nearer, is_last = (similarities > last).double(), (similarities == last).double()
    left = k - is_nearer.sum(dim=1, keepdim=True)
    return is_nearer + is_last * left / is_last.sum(dim=1, keepdim=True)


def shared(a: Tensor, b: Tensor) -> Tensor:
    """The share of the nearest, by `nearest`, that two networks have in common. [n m] [n m] -> [n].

    Where some tie, what is expected if each network draws among them for itself: those say nothing of agreement.
    """
    return (a * b).sum(dim=1) / a.sum(dim=1)


def without_diagonal(matrices: Tensor) -> Tensor:
    """Symmetric matrices without their diagonal, centered so that every row adds up to 0. [t a a] -> [t a a].

    The means that are subtracted are such that inner products estimate those of a whole population without bias.

    Returns:
        [t a a], 0 on the diagonal; nan where entries differ by no more than rounding leaves.

    Reference:
        Székely, Rizzo (2014), "Partial distance correlation with methods for dissimilarities".
    """
    a = matrices.shape[1]
    is_off = 1 - torch.eye(a, dtype=matrices.dtype)
    rows = (matrices * is_off).sum(dim=2)
    everything = rows.sum(dim=1)[:, None, None] / ((a - 1) * (a - 2))
    centered = (matrices - rows[:, :, None] / (a - 2) - rows[:, None, :] / (a - 2) + everything) * is_off
    is_flat = centered.flatten(1).norm(dim=1) <= TIE * a
    return centered.masked_fill(is_flat[:, None, None], torch.nan)


def alignments(centered: Tensor, weights: Tensor) -> Tensor:
    """Cosines of matrices `without_diagonal`, every entry weighted by those of its two samples. [t a a] [a] -> [t t].

    A sample drawn twice is no pair of two: the diagonal counts nothing in resamplings, either.

    Reference:
        Cortes, Mohri, Rostamizadeh (2012), "Algorithms for learning kernels based on centered alignment".
    """
    flat = (centered * (weights[:, None] * weights).sqrt()).flatten(1)
    return _cosines(flat @ flat.T)


def correlations(values: Tensor, weights: Tensor) -> Tensor:
    """Correlations of the rows under weights that add up to 1. [t n] [n] -> [t t]; nan where a row is constant."""
    centered = values - (values @ weights)[:, None]
    return _cosines((centered * weights) @ centered.T)


def symmetric(found: Tensor, t: int) -> Tensor:
    """The matrix of what was found for pairs, row by row from the diagonal on. [t(t+1)/2] -> [t t]."""
    first, second = torch.triu_indices(t, t)
    matrix = torch.empty(t, t, dtype=found.dtype)
    matrix[first, second] = found
    matrix[second, first] = found
    return matrix


def _cosines(products: Tensor) -> Tensor:
    """From inner products. [t t] -> [t t]; nan where a square is 0."""
    norms = products.diagonal().clamp(min=0).sqrt()
    return products / (norms[:, None] * norms)
