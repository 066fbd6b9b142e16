"""Near-duplicates with different labels: at most one of the two is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from kinsight.errors import InputError
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.labels.votes import Ballots, Task, ask_about_classes, known_targets, scale_of
from kinsight.normalization import Normalization
from kinsight.plan import n_outputs_of
from kinsight.progress import progress_bar
from kinsight.samples import Id, Samples
from kinsight.stream import Pairs
from kinsight.whitening import GRADIENT_PRECISION

LEAST = 0.95
"""Similarity from which on two samples are near-duplicates."""

ROUNDINGS = 64
"""By so many roundings, similarities of exact copies can be below 1."""


@dataclass(frozen=True, eq=False)
class LabelConflicts:
    """Pairs of samples that are as good as the same to the network, and have different labels.

    Args:
        ids: of both, the most similar pair first, m pairs.
        positions: where they lie in the data, [m 2].
        similarities: [m].
        labels: their targets, [m 2] or [m 2 d].
        n_conflicts: number of pairs before the list was cut.
        n_duplicates: number of pairs as similar, whatever their labels.
        least: similarity from which on a pair counts.
        error: root mean square error of the similarities, where they are estimates from sketches; None: exact.
    """

    columns: ClassVar = ("first", "second", "similarity", "labels")
    ids: tuple[tuple[Id, Id], ...]
    positions: Tensor
    similarities: Tensor
    labels: Tensor
    n_conflicts: int
    n_duplicates: int
    least: float
    error: float | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a pair."""
        for (first, second), value, labels in zip(
            self.ids, self.similarities.tolist(), self.labels.tolist(), strict=True
        ):
            yield dict(zip(self.columns, (first, second, value, labels), strict=True))

    def summary(self) -> str:
        """In words."""
        return (
            f"{self.n_duplicates:,} pairs of samples have a similarity of {self.least:g} or more; {self.n_conflicts:,} "
            "of them have different labels, and at most one of the two is right."
        )


def label_conflicts(
    kernel: GradientKernel,
    data: Any,
    *,
    least: float = LEAST,
    n_conflicts: int = 1000,
    least_difference: float = 1.0,
    normalization: Normalization = "flat",
    task: Task | None = None,
    progress: bool = False,
) -> LabelConflicts:
    """Near-duplicates with different labels, from all pairs of samples, block by block.

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes, with targets: classes [n], or values [n] or [n d].
        least: similarity from which on two samples are near-duplicates, but for rounding: 1 is of exact copies.
        n_conflicts: at most so many pairs, the most similar ones.
        least_difference: of two values that differ, in standard deviations of all; classes differ or do not.
        normalization: 'flat' or 'whitened' similarity.
        task: 'classification' or 'regression'; by the targets' type where left out.
        progress: whether to show a progress bar.

    Returns:
        `LabelConflicts`, pairs of samples, the most similar first.

    Raises:
        TargetError: no targets, or of the wrong kind.
        InputError: a number is out of range.
        UnknownNameError: there is no such normalization, or task.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [5.0, 5.0]])
        >>> data = Samples(x, torch.tensor([0, 1, 0, 1]))
        >>> found = label_conflicts(GradientKernel(torch.nn.Linear(2, 2)), data)
        >>> [(row["first"], row["second"], row["labels"]) for row in found.rows()]
        [(1, 2, [1, 0])]
    """
    check_kernel(kernel, normalization)
    samples = Samples.wrap(data)
    targets = known_targets(samples)
    ask_about_classes(targets, task, kernel.output, partial(n_outputs_of, kernel, samples))
    ballots = Ballots.of(targets, task)
    return conflicts_among(
        lambda _: kernel.similarity_blocks(samples, None, normalization), samples.ids, ballots, least=least,
        n_conflicts=n_conflicts, least_difference=least_difference, precision=kernel.precision, error=None,
        progress=progress,
    )  # fmt: skip


def conflicts_among(
    pairs: Pairs,
    ids: Sequence[Id],
    ballots: Ballots,
    *,
    least: float,
    n_conflicts: int,
    least_difference: float,
    precision: torch.dtype,
    error: float | None,
    progress: bool,
) -> LabelConflicts:
    """The same, of samples whose similarities come block by block; see `label_conflicts`.

    Args:
        pairs: all similarities.
        ids: of all samples.
        ballots: their labels.
        precision: what gradients were computed in.
    """
    if not 0 < least <= 1:
        raise InputError(f"least is {least}: near-duplicates have a similarity above 0, and at most 1.")
    if n_conflicts < 0 or not least_difference >= 0:
        raise InputError(
            f"n_conflicts is {n_conflicts} and least_difference {least_difference}: they are not negative."
        )
    n, spread = len(ids), 1.0 if ballots.classes is not None else scale_of(ballots.values)
    n_found, n_duplicates = 0, 0
    places, values = torch.empty(0, 2, dtype=torch.long), torch.empty(0, dtype=torch.float64)
    with progress_bar("near-duplicates", n**2, is_shown=progress) as advance:
        for r, c, block in pairs(None):
            rows, columns = torch.arange(r.start, r.stop), torch.arange(c.start, c.stop)
            similarities = block.cpu().double().clamp(-1, 1)
            is_near = (similarities >= least - _tolerance(precision)) & (columns > rows[:, None])
            found = torch.nonzero(is_near)
            first, second = rows[found[:, 0]], columns[found[:, 1]]
            differs = _differ(ballots, first, second, least_difference * spread)
            n_duplicates, n_found = n_duplicates + len(found), n_found + int(differs.sum())
            places = torch.cat([places, torch.stack([first, second], dim=1)[differs]])
            values = torch.cat([values, similarities[is_near][differs]])
            order = values.argsort(descending=True, stable=True)[:n_conflicts]
            places, values = places[order], values[order]
            advance(block.numel())
    return LabelConflicts(
        ids=tuple((ids[first], ids[second]) for first, second in places.tolist()), positions=places,
        similarities=values, labels=ballots.targets[places], n_conflicts=n_found, n_duplicates=n_duplicates,
        least=least, error=error,
    )  # fmt: skip


def _tolerance(precision: torch.dtype) -> float:
    """How far below 1 similarities of copies can be: by rounding, and by the square of the error of gradients."""
    products = torch.float64 if precision == torch.float64 else torch.float32
    return max(ROUNDINGS * torch.finfo(products).eps, GRADIENT_PRECISION[precision] ** 2)


def _differ(ballots: Ballots, first: Tensor, second: Tensor, least: float) -> Tensor:
    """Whether the labels of these pairs are different. [m]."""
    if ballots.classes is not None:
        return ballots.values[first] != ballots.values[second]
    distances: Tensor = (ballots.values[first] - ballots.values[second]).norm(dim=1)
    return distances >= max(least, 1e-300)
