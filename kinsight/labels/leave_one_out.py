"""What all other samples say of each one's label: kernel ridge regression, each sample left out in turn.

With a Gram matrix K of similarities, labels y, a ridge r, and an intercept that is not penalized, the prediction for
sample i of a regression that never saw it is, in closed form,

    f_i = y_i - [B y]_i / B_ii    with    B = C - C 1 1^T C / (1^T C 1),  C = (K + r)^-1

The ridge is the one whose predictions are nearest to the labels; no true label is needed. It is what a linearized
network, trained on all others, would say: cross-validation without training anything again.

Reference: Allen (1974), "The relationship between variable selection and data augmentation and a method for
prediction"; Rifkin and Lippert (2007), "Notes on regularized least squares".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from kinsight.errors import NonFiniteError
from kinsight.progress import Advance

RIDGES = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Those that are tried; a sample's similarity with itself is 1."""

FEW = 1.5
"""Up to so many times as many samples as features, the Gram matrix of all samples costs less than that of features."""

MAX_FEATURES = 4096
"""Longer vectors, being sketches, are folded: a matrix of as many rows and columns is held, and diagonalized."""

FIRST = 4
"""Where the search for the best of them begins."""

Features: TypeAlias = Callable[[], Iterator[tuple[int, Tensor]]]
"""Vectors whose inner products are similarities, batch by batch: (first sample, values [m dim]); 0 if undefined."""


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Predictions for each sample by all others.

    Args:
        values: [n b], float64; nan where a sample has no similarities, or there is no other one.
        ridge: the best one.
        error: mean squared error of the predictions, summed up over axes.
    """

    values: Tensor
    ridge: float
    error: float


def by_gram(gram: Tensor, labels: Tensor, advance: Advance = lambda n: None) -> LeftOut:
    """From the similarities of all pairs: exact, in time cubic in the number of samples.

    Args:
        gram: [n n], float64; rows and columns of samples without similarities are nan.
        labels: [n b], float64.
        advance: is told of every ridge that is tried, in the end of those that need not be.
    """
    is_known = ~gram.diagonal().isnan()
    if int(is_known.sum()) < 2:
        advance(len(RIDGES))
        return LeftOut(torch.full_like(labels, torch.nan), RIDGES[FIRST], torch.nan)
    own, center = labels[is_known], labels[is_known].mean(dim=0)
    known = gram if bool(is_known.all()) else gram[is_known][:, is_known]

    found: dict[float, tuple[float, Tensor]] = {}
    n_tried = 0

    def error(ridge: float) -> float:
        nonlocal n_tried
        inverse = _inverse(known, ridge)
        n_tried += 1
        advance(1)
        if inverse is None:
            return torch.inf
        values = own - _left_out(
            inverse.diagonal()[:, None], inverse @ (own - center), inverse.sum(dim=1, keepdim=True)
        )
        found[ridge] = (float((own - values).square().sum(dim=1).mean()), values)
        return found[ridge][0]

    ridge = _least(error)
    if n_tried < len(RIDGES):
        advance(len(RIDGES) - n_tried)
    values = torch.full_like(labels, torch.nan)
    values[is_known] = found[ridge][1]
    return LeftOut(values, ridge, found[ridge][0])


def _left_out(
    diagonal: Tensor, of_labels: Tensor, of_ones: Tensor, sums: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Labels less predictions, from C = (K + r)^-1 up to a factor: its diagonal, C y and C 1. [... m 1 or b] each.

    Args:
        sums: of C y and C 1 over all samples, where these are some of them.
    """
    all_labels, all_ones = (of_labels.sum(dim=-2), of_ones.sum(dim=-2)) if sums is None else sums
    share = of_ones / all_ones.unsqueeze(-2)
    return (of_labels - share * all_labels.unsqueeze(-2)) / (diagonal - share * of_ones)


def _inverse(gram: Tensor, ridge: float) -> Tensor | None:
    """(K + r)^-1, or None where rounding has left K + r with negative eigenvalues. Three matrices are held at once."""
    matrix = gram.clone()
    matrix.diagonal().add_(ridge)
    factor, status = torch.linalg.cholesky_ex(matrix)
    del matrix
    return torch.cholesky_inverse(factor) if int(status) == 0 else None


def by_features(features: Features, labels: Tensor) -> LeftOut:
    """From vectors whose inner products are similarities, such as sketches: linear in the number of samples.

    Args:
        features: read at most four times.
        labels: [n b], float64.
    """
    dim = next(features())[1].shape[1]
    n_folded = -(-dim // MAX_FEATURES)
    if len(labels) > FEW * dim / n_folded and n_folded > 1:
        return by_features(lambda: ((first, folded(values, n_folded)) for first, values in features()), labels)
    if len(labels) <= FEW * dim:
        whole = torch.cat([values.double() for _, values in features()])
        gram, is_undefined = whole @ whole.T, ~whole.any(dim=1)
        gram[is_undefined] = gram[:, is_undefined] = torch.nan
        return by_gram(gram, labels)
    n_known, total = 0, torch.zeros(labels.shape[1], dtype=torch.float64)
    for first, values in features():
        is_known = values.any(dim=1)
        n_known += int(is_known.sum())
        total += labels[first : first + len(values)][is_known].sum(dim=0)
    centered = labels - total / max(1, n_known)
    moments, products, ones = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for first, values in features():
        moments = moments + (values.T @ values).double()
        products = products + values.double().T @ centered[first : first + len(values)]
        ones = ones + values.double().sum(dim=0)[:, None]
    eigenvalues, vectors = torch.linalg.eigh(moments)
    eigenvalues, turned, turned_ones = eigenvalues.clamp(min=0), vectors.T @ products, vectors.T @ ones
    narrow = vectors.float()

    def residuals(ridges: tuple[float, ...]) -> Iterator[tuple[slice, Tensor]]:
        """(samples, labels less predictions [ridges m b]), of those that have similarities; else nan."""
        inverses = 1 / (eigenvalues[:, None] + torch.tensor(ridges, dtype=torch.float64))  # [dim ridges]
        weights, of_one = ((inverses[:, :, None] * each[:, None]).flatten(1) for each in (turned, turned_ones))
        sums = (
            -(turned_ones.T @ weights).view(len(ridges), -1),  # labels are centered
            n_known - (turned_ones.T @ of_one).view(len(ridges), -1),
        )
        for first, values in features():
            rows = slice(first, first + len(values))
            along = (values @ narrow).double()
            of_labels = centered[rows] - (along @ weights).unflatten(1, (len(ridges), -1)).transpose(0, 1)
            of_ones = 1 - (along @ of_one).T[..., None]
            diagonal = (1 - along.square() @ inverses).T[..., None]
            left = _left_out(diagonal, of_labels, of_ones, sums)
            yield rows, left.masked_fill(~values.any(dim=1)[:, None], torch.nan)

    errors = torch.stack([left.square().sum(dim=2).nansum(dim=1) for _, left in residuals(RIDGES)]).sum(dim=0)
    best = int(errors.argmin())
    values = torch.cat([labels[rows] - left[0] for rows, left in residuals((RIDGES[best],))])
    return LeftOut(values, RIDGES[best], float(errors[best]) / max(1, n_known))


def folded(values: Tensor, n: int) -> Tensor:
    """Sketches an n-th as long: buckets that are so far apart become one. [m dim] -> [m dim/n], rounded up.

    It is what the same entries and signs give with as many buckets: inner products are without bias as before.
    """
    size = -(-values.shape[1] // n)
    padded = torch.nn.functional.pad(values, (0, n * size - values.shape[1]))
    return padded.reshape(len(values), n, size).sum(dim=1)


def _least(error: Callable[[float], float]) -> float:
    """The ridge of least error, found downhill from the first one.

    Raises:
        NonFiniteError: there is none: every error is infinite.
    """
    known: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in range(len(RIDGES)):
            return torch.inf
        if place not in known:
            known[place] = error(RIDGES[place])
        return known[place]

    place = next((place for place in range(FIRST, len(RIDGES)) if at(place) < torch.inf), None)
    if place is None:
        raise NonFiniteError(
            f"Similarities have eigenvalues below -{RIDGES[-1]:g}: they are no Gram matrix. Use contraction='full'."
        )
    while True:
        nearby = min((place, place - 1, place + 1), key=at)
        if nearby == place:
            return RIDGES[place]
        place = nearby
