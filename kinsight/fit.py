"""Over- and underfit, sample by sample: is it alone, do its neighbors agree, and does the network reproduce its label?

                      label as its neighbors'    another label
    crowded, fitted   learned                    memorized: against its neighbors
    crowded, not      underfit                   contradicted, by the network too
    lonely            alone where it is fitted, else not learned

and ambiguous, where a crowded sample is not fitted and its neighbors' labels differ among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kinsight.averages import Averages, Labels, averages_among
from kinsight.errors import InputError, TargetError, UnknownNameError
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.labels.votes import Ballots, Task, check_power, known_targets, names_of_classes, scale_of, votes_of
from kinsight.normalization import Normalization
from kinsight.samples import Id, Samples
from kinsight.stream import Pairs

Regime = Literal[
    "learned", "memorized", "underfit", "contradicted", "ambiguous", "alone", "not learned", "undefined"
]  # fmt: skip

MEANINGS: dict[Regime, str] = {
    "learned": "Many samples are alike, their labels are as this one, and the network says so.",
    "memorized": "Many samples are alike and have other labels, and the network reproduces this one: it was learned by "
    "itself, against its neighbors. Look at the label.",
    "underfit": "Many samples are alike, with labels as this one, and the network says something else: it could do "
    "better here, or was stopped early.",
    "contradicted": "Many samples are alike and have other labels, and the network does not reproduce this one. Look "
    "at the label.",
    "ambiguous": "Many samples are alike, their labels differ, and the network does not reproduce this one: noise in "
    "the labels, or inputs that do not tell.",
    "alone": "Few samples are alike, and the network reproduces the label: it was learned by itself, and says little "
    "of others. More such data would help.",
    "not learned": "Few samples are alike, and the network does not reproduce the label: rare, or broken.",
    "undefined": "The gradient is zero, or no other sample is alike at all.",
}
"""What each regime means."""


@dataclass(frozen=True)
class Splits:
    """Where a number is small or large; see `FitMap`. The count that is to be found from the data is None.

    Raises:
        InputError: one is nan, which nothing is above or below.
    """

    count: float | None
    variance: float = 0.5
    disagreement: float = 0.5
    residual: float = 0.5

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if number is not None and (not isinstance(number, Real) or math.isnan(number)):
                raise InputError(f"The {name} that splits regimes is {number!r}: no number is above it or below it.")

    def regime(self, count: float, variance: float, disagreement: float, residual: float) -> Regime:
        """Of a sample with these numbers."""
        if any(math.isnan(number) for number in (count, variance, disagreement, residual)):
            return "undefined"
        is_fitted, is_other = residual <= self.residual, disagreement > self.disagreement
        assert self.count is not None
        if count < self.count:
            return "alone" if is_fitted else "not learned"
        if is_fitted:
            return "memorized" if is_other else "learned"
        if variance > self.variance:
            return "ambiguous"
        return "contradicted" if is_other else "underfit"


@dataclass(frozen=True, eq=False)
class FitMap:
    """Where the network fits well, and where too much or too little.

    Args:
        ids: of the samples, n of them.
        counts: how many others are alike, [n]: sum_j max(0, k_ij)^power, or, for a power of 1, sum_j k_ij.
        variances: of the labels around each, itself left out, over that of all labels: 1 is no better than chance, [n].
        disagreements: |y - E_k[y]|, of the label with the mean of those around it, itself left out, [n]; for classes
            over sqrt(2), the distance between two of them, for values over the spread of all, or,
            where these are constant, over their size.
        residuals: |f - y|, of the label with what the network says, on the same scale, [n].
        regimes: of each sample.
        splits: counts below which a sample is lonely; variances, disagreements and residuals above which its neighbors
            differ, its label is another, and is not fitted.
        groups: of each sample, where they were given, or its class.
        error: root mean square error of the cosines that all this is made of; None where it is exact. Regimes of
            samples near a split can be others.
    """

    ids: tuple[Id, ...]
    counts: Tensor
    variances: Tensor
    disagreements: Tensor
    residuals: Tensor
    regimes: tuple[Regime, ...]
    splits: Splits
    groups: tuple[Any, ...] | None
    error: float | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, regime: Regime) -> Tensor:
        """Positions of the samples of a regime, the most pronounced first.

        Raises:
            UnknownNameError: there is no such regime.
        """
        if regime not in MEANINGS:
            raise UnknownNameError(f"regime {regime!r} is unknown: there are {', '.join(MEANINGS)}.")
        places = torch.tensor([place for place, each in enumerate(self.regimes) if each == regime], dtype=torch.long)
        by = {
            "learned": self.counts, "alone": -self.counts, "memorized": self.disagreements,
            "contradicted": self.disagreements, "ambiguous": self.variances,
        }.get(regime, self.residuals)  # fmt: skip
        return places[by[places].argsort(descending=True, stable=True)]

    def by_group(self) -> list[dict[str, Any]]:
        """One record a group, numbers before texts: its size, medians, and the share of each regime.

        Raises:
            InputError: there are no groups.
        """
        if self.groups is None:
            raise InputError("There are no groups: labels are values. Pass groups= (--groups).")
        records: list[dict[str, Any]] = []
        for group in sorted(set(self.groups), key=_in_order):
            rows = torch.tensor([place for place, each in enumerate(self.groups) if each == group])
            found = [self.regimes[row] for row in rows.tolist()]
            record: dict[str, Any] = {"group": group, "n": len(rows)}
            for name in ("count", "variance", "disagreement", "residual"):
                record[name] = float(getattr(self, f"{name}s")[rows].nanmedian())
            records.append({**record, **{regime: found.count(regime) / len(found) for regime in MEANINGS}})
        return records

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a sample."""
        names = ("count", "variance", "disagreement", "residual")
        values = torch.stack([self.counts, self.variances, self.disagreements, self.residuals], dim=1).tolist()
        for place, (id_, regime, numbers) in enumerate(zip(self.ids, self.regimes, values, strict=True)):
            record: dict[str, Any] = {"id": id_, "regime": regime}
            record.update(zip(names, numbers, strict=True))
            yield record if self.groups is None else {**record, "group": self.groups[place]}

    def summary(self) -> str:
        """In words."""
        counts = {regime: self.regimes.count(regime) for regime in MEANINGS}
        parts = [f"{n:,} are {regime}" for regime, n in counts.items() if n]
        text = f"Of {len(self):,} samples, {', '.join(parts)}."
        doubtful: tuple[Regime, ...] = ("contradicted", "memorized", "underfit", "ambiguous")
        looked_at = [regime for regime in doubtful if counts[regime]]
        if looked_at:
            first = self.ids[int(self.of(looked_at[0])[0])]
            text += f" Look first at the {looked_at[0]}, such as {first!r}. {MEANINGS[looked_at[0]]}"
        if self.error is not None:
            text += f" Similarities are off by {self.error:.2g}: samples near a split can be on its other side."
        return text


def fit_map(
    kernel: GradientKernel,
    data: Any,
    *,
    power: float = 8.0,
    normalization: Normalization = "flat",
    groups: Sequence[Any] | Tensor | np.ndarray | None = None,
    least_count: float | None = None,
    most_variance: float = 0.5,
    most_disagreement: float = 0.5,
    most_residual: float = 0.5,
    task: Task | None = None,
    progress: bool = False,
) -> FitMap:
    """Which samples are learned with others, memorized alone, underfit, or ambiguous.

    Four numbers a sample: how many others are alike, sum_j max(0, k(x, x_j))^power; how much their labels vary, with
    that as weight; how far their mean is from its label; and how far the network is. A power of 1 is the one exception:
    weights are k(x, x_j) with their sign, since only those are summed up in linear time.

    Args:
        kernel: the gradient kernel of the network, over outputs that are compared with labels.
        data: whatever `Samples` takes, with targets: what the network was trained on.
        power: of the positive similarities. 8 listens to close neighbors alone, and takes time quadratic in the number
            of samples; 1 takes linear time, hears everybody, and those of negative similarity against.
        normalization: 'whitened' or 'flat' similarity.
        groups: of each sample, for `FitMap.by_group`, in a list, an array or a tensor; its class where left out.
        least_count: below, a sample is lonely; the first tenth of all where left out.
        most_variance: above, neighbors differ: share of the variance of all labels.
        most_disagreement: above, a label is another than those around it: of the distance between two classes, or of
            the spread of all values.
        most_residual: above, a label is not fitted, on the same scale.
        task: 'classification' or 'regression'; by the targets' type where left out.
        progress: whether to show a progress bar.

    Returns:
        `FitMap`.

    Raises:
        TargetError: no targets, or the network says something that cannot be compared with them.
        InputError: the power is not positive, a split is nan, or groups are not one a sample.
        UnknownNameError: there is no such normalization, or task.
    """
    check_kernel(kernel, normalization)
    check_power(power)
    samples = Samples.wrap(data)
    targets = known_targets(samples)
    labels = Labels.of(kernel, samples, task)
    check_comparable(labels)
    named = groups_of(groups, targets, labels, samples.class_names)
    splits = Splits(least_count, most_variance, most_disagreement, most_residual)
    measured = _measured(kernel, samples, labels, power, normalization, progress=progress)
    return mapped(samples.ids, labels, measured, splits, named)


def check_comparable(labels: Labels) -> None:
    """Raise where what the network says is in other axes than labels.

    Raises:
        TargetError: it is.
    """
    if labels.kind is None:
        raise TargetError(
            "The network's outputs cannot be compared with the targets, and residuals are differences of the two. "
            "Classes need logits, one for each: output='logits'; what a callable gives is not known to be logits, so "
            "let the model return them itself. Values need as many outputs as a target has numbers: output='logits', "
            "or a callable."
        )


def mapped(
    ids: tuple[Id, ...], labels: Labels, around: Around, splits: Splits, groups: tuple[Any, ...] | None
) -> FitMap:
    """The map, from what is around every sample."""
    spread = scale_of(labels.values)
    scale = 2**0.5 if labels.classes is not None else spread
    disagreements, residuals = ((each - labels.values).norm(dim=1) / scale for each in (around.means, around.said))
    known = around.counts[~around.counts.isnan()]
    if splits.count is None:
        splits = replace(splits, count=float(known.quantile(0.1)) if len(known) else 0.0)
    numbers = around.counts, around.variances / spread**2, disagreements, residuals
    regimes = tuple(splits.regime(*row) for row in torch.stack(numbers, dim=1).tolist())
    return FitMap(ids, *numbers, regimes, splits, groups)


@dataclass(frozen=True, eq=False)
class Around:
    """What is around every sample, itself left out.

    Args:
        counts: weights of all others, [n].
        means: of their labels, [n d].
        variances: of their labels, [n].
        said: what the network says, [n d].
    """

    counts: Tensor
    means: Tensor
    variances: Tensor
    said: Tensor

    @staticmethod
    def by_averages(found: Averages) -> Around:
        """From means that a sample has no part in."""
        assert found.own is not None
        return Around(found.weights, found.labels, found.variances, found.own)

    @staticmethod
    def by_votes(pairs: Pairs, labels: Labels, said: Tensor, power: float, *, progress: bool) -> Around:
        """From similarities of all pairs, to a power."""
        centered = labels.values - labels.center
        ballots = torch.cat([centered, centered.square().sum(dim=1, keepdim=True)], dim=1)
        votes, counts = votes_of(pairs, Ballots(ballots, "regression", None, ballots), power, progress=progress)
        counts = counts.masked_fill(counts == 0, torch.nan)
        shares = votes / counts[:, None]
        variances = shares[:, -1] - shares[:, :-1].square().sum(dim=1)
        return Around(counts, shares[:, :-1] + labels.center, variances, said)


def groups_of(
    groups: Sequence[Any] | Tensor | np.ndarray | None, targets: Tensor, labels: Labels, names: Sequence[str] | None
) -> tuple[Any, ...] | None:
    """The groups given, those that are nan as None, or classes by name; None where labels are values.

    Raises:
        InputError: groups are not one a sample.
    """
    if groups is not None:
        listed = getattr(groups, "tolist", None)  # of arrays and tensors: what is in them, not views of it
        given = tuple(groups if listed is None else listed())
        if len(given) != len(targets):
            raise InputError(f"There are {len(given)} groups and {len(targets)} samples: pass one a sample.")
        try:
            set(given)
        except TypeError as error:
            raise InputError(f"A group is no name or number ({error}): pass one of these a sample.") from error
        return tuple(None if isinstance(each, float) and math.isnan(each) else each for each in given)
    return None if labels.classes is None else tuple(names_of_classes(targets.long().tolist(), names))


def _in_order(group: Any) -> tuple[bool, float, str]:
    """What groups are sorted by: numbers by their size, then texts."""
    is_number = isinstance(group, Real)
    return not is_number, float(group) if is_number else 0.0, str(group)


def _measured(
    kernel: GradientKernel,
    samples: Samples,
    labels: Labels,
    power: float,
    normalization: Normalization,
    *,
    progress: bool,
) -> Around:
    if power == 1:
        return Around.by_averages(
            averages_among(
                kernel, samples, labels, None, weighting=normalization, include_self=False, progress=progress
            )
        )
    pairs = kernel.similarity_blocks(samples, None, normalization)
    batches = samples.batches(kernel.block_size(samples))
    said = labels.said(torch.cat([kernel.outputs(batch).detach().cpu() for batch in batches]).double())
    assert said is not None
    return Around.by_votes(lambda _: pairs, labels, said, power, progress=progress)
