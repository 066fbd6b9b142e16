"""Rank correlations, neighbors in common, alignments: how much networks agree, with intervals by bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2**24
"""Numbers of resampling weights that are held at once."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """How much each of t networks agrees with each other one, and 95 % intervals.

    Args:
        values: [t t], 1 on the diagonal.
        low, high: ends of the intervals, by bootstrap, [t t].
    """

    values: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def of(values: Tensor, drawn: Tensor) -> Agreement:
        """Values [t t], with the middle 95 % of those drawn, [b t t]."""
        low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype), dim=0)
        return Agreement(values, low, high)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Resampling with replacement.

    Args:
        n: resamplings.
        generator: of what is random.
    """

    n: int
    generator: torch.Generator

    def weights(self, n_samples: int) -> Tensor:
        """How often each sample is drawn, over their number. [b n], in parts."""
        size = max(1, CHUNK // n_samples)
        parts = []
        for start in range(0, self.n, size):
            m = min(size, self.n - start)
            drawn = torch.randint(n_samples, (m, n_samples), generator=self.generator)
            share = torch.full(drawn.shape, 1 / n_samples, dtype=torch.float64)
            parts.append(torch.zeros_like(share).scatter_add_(1, drawn, share))
        return torch.cat(parts)

    def correlations(self, ranks: Tensor) -> Agreement:
        """Correlations of the rows of [t n]."""
        t, n = ranks.shape
        centered = (ranks - ranks.mean(dim=1, keepdim=True)) / max(1, n)
        first, second = torch.triu_indices(t, t)
        moments = torch.cat([centered, centered[first] * centered[second]]).T  # [n m]
        drawn = []
        size = max(1, CHUNK // max(1, n))
        for start in range(0, self.n, size):
            part = Bootstrap(min(size, self.n - start), self.generator)
            drawn.append(part.weights(n) @ moments)
        return Agreement.of(_correlations(moments.mean(dim=0)[None], t)[0], _correlations(torch.cat(drawn), t))

    def means(self, each: Sequence[Tensor], compare: Callable[[Tensor, Tensor], Tensor]) -> Agreement:
        """The mean over anchors of what two networks have in common at each, `compare` [a ...] [a ...] -> [a]."""
        t, a = len(each), len(each[0])
        values = torch.stack([torch.stack([compare(one, other) for other in each]) for one in each])  # [t t a]
        drawn = self.weights(a) @ values.reshape(t * t, a).T
        return Agreement.of(values.mean(dim=2), drawn.reshape(-1, t, t))

    def alignments(self, matrices: Tensor) -> Agreement:
        """Centered alignments of [t a a]."""
        a = matrices.shape[1]
        drawn = []
        for _ in range(self.n):
            chosen = torch.randint(a, (a,), generator=self.generator)
            drawn.append(alignments(matrices[:, chosen][:, :, chosen]))
        return Agreement.of(alignments(matrices), torch.stack(drawn))


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


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each row with the same row of the other. [n m] [n m] -> [n]; nan where one is constant."""
    a, b = (each - each.mean(dim=1, keepdim=True) for each in (a, b))
    found: Tensor = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
    return found


def shared(a: Tensor, b: Tensor) -> Tensor:
    """The share of the entries of each row that are in the same row of the other. [n k] [n k] -> [n]."""
    return (a[:, :, None] == b[:, None, :]).any(dim=2).double().mean(dim=1)


def alignments(matrices: Tensor) -> Tensor:
    """Cosines of centered matrices. [t a a] -> [t t].

    Reference:
        Cortes, Mohri, Rostamizadeh (2012), "Algorithms for learning kernels based on centered alignment".
    """
    centered = matrices - matrices.mean(dim=1, keepdim=True)
    centered = centered - centered.mean(dim=2, keepdim=True)
    flat = centered.flatten(1)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
    found: Tensor = flat @ flat.T
    return found


def _correlations(moments: Tensor, t: int) -> Tensor:
    """From first and second moments, [b t + t(t+1)/2] -> [b t t]."""
    first, second = torch.triu_indices(t, t)
    products = moments[:, t:] - moments[:, first] * moments[:, second]
    covariances = torch.zeros(len(moments), t, t, dtype=moments.dtype)
    covariances[:, first, second] = products
    covariances[:, second, first] = products
    scales = covariances.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    return covariances / (scales[:, :, None] * scales[:, None, :])
