"""The cost of groups, and its gradient: by sums S of unit gradients. Pairs are never looked at."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kinsight.batches import Batch
from kinsight.gradients import Gradients
from kinsight.gradients.built import Built
from kinsight.gradients.contractions import mixed
from kinsight.gradients.factored import Product
from kinsight.kernel import GradientKernel
from kinsight.normalization import Normalization
from kinsight.plan import n_outputs_of
from kinsight.training.pairs import Pairing
from kinsight.training.parts import Enforced, Parts, both_ways, of_lengths
from kinsight.training.second_order import Term, UnitRows

Totals = dict[int, dict[str, Tensor]]
"""Sums of unit gradients by group, [c *shape] a parameter."""

Run = tuple[int, int, int]
"""(group, start, stop) of samples that lie together."""


def from_groups(
    found: Enforced,
    kernel: GradientKernel,
    batch: Batch,
    pairing: Pairing,
    normalization: Normalization,
    trained: list[nn.Parameter],
) -> None:
    """By sums S of groups: over the pairs of one, sum k = (|S|^2 - n) / 2, and |S|^2 = sum_n u_n . S."""
    assert pairing.groups is not None
    order = pairing.groups.argsort(stable=True)  # samples of one group lie together
    total = 0.0
    for bundle in _bundles(kernel, batch, pairing.groups[order]):
        places = order[bundle]
        some = Pairing(len(places), pairing.groups[places])
        parts = Parts(kernel, batch[places.tolist()], normalization, trained)
        totals = _totals(parts, some)
        is_defined = torch.cat([parts.fixed(number).is_defined for number in range(len(parts.places))])
        found.undefined += places[~is_defined].tolist()
        some = some.without(~is_defined)
        found.n_alike += some.n_alike
        total += _of_bundle(found, parts, some, totals)
    found.undefined.sort()
    if found.n_alike:
        found.similarity = total / found.n_alike
        found.gradients = [None if each is None else each / found.n_alike for each in found.gradients]


def has_room_for(kernel: GradientKernel, batch: Batch, n_groups: int) -> bool:
    """Whether the sums of so many groups fit in memory at once."""
    return n_groups <= _most_sums(kernel, batch)


def _most_sums(kernel: GradientKernel, batch: Batch) -> int:
    """Sums over groups that there is room for."""
    size = sum(each.numel() * each.element_size() for each in kernel.parameters.values())
    return max(1, kernel.max_bytes // (size * n_outputs_of(kernel, batch)))


def _bundles(kernel: GradientKernel, batch: Batch, groups: Tensor) -> Iterator[slice]:
    """Samples of as many groups, which lie together, as there is room for the sums of."""
    most = _most_sums(kernel, batch)
    start = stop = n_sums = 0
    for group, _, end in _runs(groups):
        is_summed = group >= 0 and end - stop > 1
        if is_summed and n_sums == most:
            yield slice(start, stop)
            start, n_sums = stop, 0
        stop, n_sums = end, n_sums + is_summed
    if stop > start:
        yield slice(start, stop)


def _of_bundle(found: Enforced, parts: Parts, pairing: Pairing, totals: Totals) -> float:
    """Sum of the similarities of all pairs; minus its gradient is added to what was found."""
    assert pairing.groups is not None
    squares, n = 0.0, 0
    for number, place in enumerate(parts.places):
        runs = [run for run in _runs(pairing.groups[place]) if run[0] in totals]
        if not runs:
            continue
        rows = parts.fixed(number)
        along = torch.cat([rows.rows(start, stop).along(totals[group]) for group, start, stop in runs])
        squares += float(along.detach().sum())
        n += len(along)
        if (back := parts.back(number)) is not None:
            (of_own,) = torch.autograd.grad(-along.sum(), rows.own)
            back.add(OfGroups(rows, totals, runs, -1.0, of_own))
            parts.drop(number)
            del rows, along  # not looked at again
            found.add(back.over(parts.trained))
    return (squares - n) / 2


def _totals(parts: Parts, pairing: Pairing) -> Totals:
    """Sums of unit gradients by group, [c *shape] a parameter; samples of zero gradient add nothing."""
    assert pairing.groups is not None
    totals: Totals = {}
    sizes = torch.bincount(pairing.groups[pairing.groups >= 0]).tolist()
    for number, place in enumerate(parts.places):
        fixed = parts.fixed(number).detached()
        for group, start, stop in _runs(pairing.groups[place]):
            if group >= 0 and sizes[group] > 1:
                known = totals.setdefault(group, {})
                for name, value in fixed.rows(start, stop).total().items():
                    known[name] = value if name not in known else known[name] + value
    return totals


def _runs(groups: Tensor) -> Iterator[Run]:
    """(group, start, stop) of samples of one group that lie together."""
    numbers, counts = torch.unique_consecutive(groups, return_counts=True)
    stop = 0
    for group, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        start, stop = stop, stop + count
        yield group, start, stop


class OfGroups(Term):
    """weight sum_n u_n . S, S the sum of the sample's group, and what it is through K(x, x).

    Args:
        rows: the samples that are moved; those of one group lie together.
        totals: S of each group, by parameter.
        runs: (group, start, stop) of samples.
        weight: of the sum.
        of_own: slopes over K(x, x), [n c c].
    """

    def __init__(self, rows: UnitRows, totals: Totals, runs: list[Run], weight: float, of_own: Tensor) -> None:
        self.totals, self.runs, self.of_own = totals, runs, of_own
        self.scale = weight * rows.scale.detach()
        self.mixing = None if rows.mixing is None else rows.mixing.detach()
        self.rows = rows.gradients

    def slopes(self, name: str, gradients: Product, which: slice) -> Tensor | None:
        values, own = self._multiplied_out(name, gradients, which), self.of_own[which]
        if values is None:
            return None
        ones = (-1, *(1,) * (values.dim() - 1))
        if self.mixing is None:  # normalization sees the trace alone
            values *= 2 * own[:, 0, 0].to(values).reshape(ones)
        else:
            values = mixed(both_ways(own), values)
        for group, rows, here in self._within(which):
            total = self.totals[group][name].to(values)
            if self.mixing is None:
                values[here].addcmul_(self.scale[rows].to(values).reshape(ones), total)
            else:
                back = (self.scale[rows, None, None] * self.mixing[rows]).transpose(1, 2)
                values[here] += mixed(back, total.expand(len(back), *total.shape))
        return values

    def _multiplied_out(self, name: str, gradients: Product, which: slice) -> Tensor | None:
        """Gradients of some samples, to be written into: nobody looks at the rows again. None: factors stay factors."""
        known = self.rows.by_parameter[name] if self.mixing is None else gradients  # those of the rows are mixed
        found = known.rows(which.start, which.stop).compact(is_eager=True)
        return found.values if isinstance(found, Built) else None

    def let_go(self, name: str) -> None:
        self.rows.let_go(name)

    def share(self, name: str, gradients: Gradients, which: slice) -> Tensor:
        found = of_lengths(gradients.compact(is_eager=True), self.of_own[which])
        turned = gradients if self.mixing is None else gradients.mix(self.mixing[which])
        for group, rows, here in self._within(which):
            part = turned.rows(here.start, here.stop)
            moved = part.dot(self.totals[group][name].to(part.tensors[0])).diagonal(dim1=1, dim2=2).sum(dim=1)
            found = found + (moved * self.scale[rows].to(moved)).sum()
        return found

    def _within(self, which: slice) -> Iterator[tuple[int, slice, slice]]:
        """Groups among some samples: the number, where its samples lie among all, and where among these."""
        for group, start, stop in self.runs:
            low, high = max(start, which.start), min(stop, which.stop)
            if low < high:
                yield group, slice(low, high), slice(low - which.start, high - which.start)
