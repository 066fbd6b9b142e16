"""Votes: every sample is told by all others which label it should have, the more similar ones with far more weight.

    votes_i = sum over j != i of w_ij ballot_j    with    w_ij = similarity_ij^power, 0 where it is negative

A ballot is a label, one-hot, or a value less the mean of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from kinsight.errors import InputError, TargetError, UnknownNameError
from kinsight.outputs import OutputFunction
from kinsight.progress import progress_bar
from kinsight.samples import Id, Samples
from kinsight.stream import Pairs

Task = Literal["classification", "regression"]

Type = OutputFunction | type[OutputFunction]
"""What kind of outputs a network has."""

ROUNDING = torch.finfo(torch.float64).eps ** 0.5
"""Differences that are smaller than this share of how far values are from their mean are none."""

SAME = 64 * torch.finfo(torch.float64).eps
"""Values that are closer to their mean than this share of their size are all the same."""

LARGEST = 1e150
"""Of a target: squares of larger ones, summed up, are not finite in float64."""


def known_targets(samples: Samples) -> Tensor:
    """The targets of all samples, [n] or [n d].

    Raises:
        TargetError: there are none, or some cannot be counted with.
    """
    targets = samples.targets
    if targets is None:
        raise TargetError(
            "The data has no targets, and what is asked for is made of them. Pass Samples(inputs, targets), a Dataset "
            "of (input, target), or unpack=; on the command line, csv:data.csv?target=COLUMN, or npz with y in it."
        )
    check_targets(targets, samples.ids)
    return targets


def check_targets(targets: Tensor, ids: Sequence[Id]) -> None:
    """Raise where targets cannot be counted with.

    Raises:
        TargetError: they are complex, no numbers at all, nan or inf, or so large that their squares are not finite.
    """
    if targets.is_complex():
        raise TargetError("The targets are complex: means and distances are of real values. Pass torch.view_as_real.")
    if not targets.numel():
        raise TargetError(f"The targets are {list(targets.shape)}: there is no number in them to compare.")
    sizes = targets.double().reshape(len(targets), -1).abs().amax(dim=1)  # nan where one of them is
    bad = ~(sizes <= LARGEST)
    if bool(bad.any()):
        names = [ids[place] for place in bad.nonzero().flatten().tolist()]
        is_large = bool(sizes[bad].isfinite().all())
        what, way = (
            (f"beyond {LARGEST:g}", "Scale all targets") if is_large else ("nan or inf", "Leave these samples out")
        )
        raise TargetError(
            f"The targets of {len(names)} of {len(ids)} samples are {what}: {names[:5]}. A single one spoils the mean "
            f"of every neighborhood it is in. {way}."
        )


def scale_of(values: Tensor) -> float:
    """How far values [n d] are from their mean: their standard deviation, summed up over axes.

    The deviations of constant values are rounding: then it is their size in place of it, and 1 where they are all 0.
    """
    spread = float((values - values.mean(dim=0)).square().sum(dim=1).mean().sqrt())
    size = float(values.norm(dim=1).max())
    return spread if spread > SAME * size else size or 1.0


def task_of(targets: Tensor, task: Task | None = None) -> Task:
    """The task that is named, or by the targets' type: floating-point numbers are values, integers classes.

    Raises:
        TargetError: classes are no whole numbers [n], or negative.
        UnknownNameError: there is no such task.
    """
    if task not in (None, "classification", "regression"):
        raise UnknownNameError(f"task {task!r} is unknown: use 'classification' or 'regression'.")
    found: Task = task or ("regression" if targets.is_floating_point() else "classification")
    if found == "classification":
        check_classes(targets)
    return found


def ask_about_classes(targets: Tensor, task: Task | None, output: Type, n_outputs: Callable[[], int]) -> None:
    """Raise where targets are floats, and could be the classes of a network of so many outputs all the same.

    Tables with gaps hold class numbers so.

    Raises:
        TargetError: they could be, and no task is named.
    """
    if task is not None or not targets.is_floating_point() or targets.dim() != 1 or not output.is_logits:
        return
    least, most = float(targets.min()), float(targets.max())
    if _are_whole(targets) and 0 <= least < most and most < (c := n_outputs()):
        raise TargetError(
            f"Targets are {str(targets.dtype).removeprefix('torch.')}, all of them whole numbers from 0 to "
            f"{most:.0f}, and the network has {c} outputs: are they classes? Say so: "
            "task='classification' (--task classification), or 'regression' if they are values."
        )


def _are_whole(targets: Tensor) -> bool:
    return bool((targets == targets.round()).all())


def check_classes(targets: Tensor) -> None:
    """Raise where targets are no class numbers.

    Raises:
        TargetError: they are no whole numbers [n], or negative.
    """
    if targets.dim() != 1 or (targets.is_floating_point() and not _are_whole(targets)):
        raise TargetError(
            f"Classification needs whole numbers [n]; these are {str(targets.dtype).removeprefix('torch.')} "
            f"[{' '.join(map(str, targets.shape))}]. Use task='regression' (--task regression), or class numbers."
        )
    if int(targets.min()) < 0:
        raise TargetError(
            f"Class numbers start at 0; the smallest target is {int(targets.min())}. Leave samples without a label out."
        )


@dataclass(frozen=True, eq=False)
class Ballots:
    """What each sample votes with.

    Args:
        targets: as they were given, [n] or [n d]; classes as integers.
        task: 'classification' or 'regression'.
        classes: the labels there are, ascending, [b]; None for values.
        values: place of each sample's label among them, [n]; or the values, float64, [n b].
        center: what is subtracted from values in ballots: votes are sums, and digits that all share would cancel.
    """

    targets: Tensor
    task: Task
    classes: Tensor | None
    values: Tensor
    center: Tensor | float = 0.0

    @staticmethod
    def of(targets: Tensor, task: Task | None = None) -> Ballots:
        """Of targets; by their type where no task is named.

        Raises:
            TargetError: classes are no whole numbers [n], or negative.
            UnknownNameError: there is no such task.
        """
        found = task_of(targets, task)
        if found == "classification":
            numbers = targets.long() if targets.is_floating_point() else targets
            classes, values = torch.unique(numbers.long(), return_inverse=True)
            return Ballots(numbers, found, classes, values)
        values = targets.double().reshape(len(targets), -1)
        return Ballots(targets, found, None, values, values.mean(dim=0))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def n_columns(self) -> int:
        """Numbers in a ballot."""
        return self.values.shape[1] if self.classes is None else len(self.classes)

    def part(self, rows: slice) -> Tensor:
        """The ballots of some samples: one-hot, or values less `center`. [n b], float64."""
        values = self.values[rows]
        if self.classes is None:
            return values - self.center
        return torch.nn.functional.one_hot(values, self.n_columns).double()

    def distances(self, means: Tensor) -> Tensor:
        """How far means of ballots [n b] are from values, in robust standard deviations; nan where they are. [n].

        That of the axis on which it is most: each has a standard deviation of its own, 1.4826 times the median of
        |value - mean|; where that is 0, as where more than half of the means are exact, 1.2533 times the average. On an
        axis where this is 0, too, nothing is off.

        Reference:
            Iglewicz, Hoaglin (1993), "How to detect and handle outliers".
        """
        deviations = self.values - self.center
        off = (deviations - means).abs()
        known = off[~off.isnan().any(dim=1)]
        if not len(known):
            return off[:, 0]
        least = torch.maximum(ROUNDING * deviations.abs().amax(dim=0), SAME * self.values.abs().amax(dim=0))
        middle, average = 1.4826 * known.median(dim=0).values, 1.2533 * known.mean(dim=0)
        spread = torch.where(middle > least, middle, torch.where(average > least, average, torch.inf))
        return (off / spread).amax(dim=1)

    def suggested(self, shares: Tensor) -> Tensor:
        """The label with most votes, or the mean, in the targets' shape, and their type where that can hold it."""
        if self.classes is not None:
            return self.classes[shares.argmax(dim=1)].to(self.targets.dtype)
        means = (shares + self.center).reshape(self.targets.shape)
        return means.to(self.targets.dtype) if self.targets.is_floating_point() else means


def names_of_classes(numbers: Sequence[int], names: Sequence[str] | None) -> list[Any]:
    """What classes are called: their names where there are any, numbers as texts beyond them; else numbers."""
    if not names:
        return list(numbers)
    return [names[number] if 0 <= number < len(names) else str(number) for number in numbers]


def check_power(power: float) -> None:
    """Raise where a power is no exponent of weights.

    Raises:
        InputError: it is not positive, or not finite.
    """
    if not isinstance(power, Real) or not 0 < power < math.inf:
        raise InputError(f"power is {power!r}: it must be positive, and finite.")


def votes_of(pairs: Pairs, ballots: Ballots, power: float, *, progress: bool = False) -> tuple[Tensor, Tensor]:
    """sum_j w_ij ballot_j [n b] and sum_j w_ij [n], over all j but i, with w = similarity^power."""
    n = len(ballots)
    votes = torch.zeros(n, ballots.n_columns, dtype=torch.float64)
    total = torch.zeros(n, dtype=torch.float64)
    with progress_bar("votes", n**2, is_shown=progress) as advance:
        for r, c, block in pairs(None):
            weights = of_others(block, r, c).clamp(0, 1).pow(power)
            votes[r] += weights @ ballots.part(c)
            total[r] += weights.sum(dim=1)
            advance(weights.numel())
    return votes, total


def shares_of(pairs: Pairs, ballots: Ballots, power: float, *, progress: bool = False) -> Tensor:
    """The votes of all others, divided by their weight. [n b]; nan where there are none."""
    votes, total = votes_of(pairs, ballots, power, progress=progress)
    return votes / total[:, None]


def of_others(block: Tensor, rows: slice, columns: slice) -> Tensor:
    """Similarities of a block in float64, those that are not defined and that of a sample with itself being 0."""
    is_self = torch.arange(columns.start, columns.stop) == torch.arange(rows.start, rows.stop)[:, None]
    return block.cpu().double().nan_to_num(nan=0.0).masked_fill(is_self, 0.0)
