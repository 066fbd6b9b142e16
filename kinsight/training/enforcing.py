"""How alike the pairs of a batch are to the network, and which way its parameters are to move to make them more so.

With u(x) unit gradients, k(x, y) = u(x) . u(y), and w symmetric, the gradient of sum_nm w_nm k(x_n, x_m) is that of
2 sum_n u(x_n) . T_n with T_n = sum_m w_nm u(x_m) held fixed: one side of a Gram block needs a graph, and any number of
samples is done part by part. Where groups are alike, T_n is the sum over a group: pairs are never looked at, and memory
does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kinsight.batches import Batch
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.gradients import Gradients, gram_block
from kinsight.gradients.built import Built
from kinsight.gradients.contractions import chunks, mixed
from kinsight.gradients.factored import Product
from kinsight.gradients.products import CACHED_BYTES
from kinsight.kernel import GradientKernel, Normalization
from kinsight.training.pairs import Pairing
from kinsight.training.second_order import PullBack, Term, UnitRows, without_graph

Totals = dict[int, dict[str, Tensor]]
"""Sums of unit gradients by group, [c *shape] a parameter."""

Run = tuple[int, int, int]
"""(group, start, stop) of samples that lie together."""


@dataclass(frozen=True)
class Cost:
    """What pairs cost: 1 - mean similarity of those that are alike, and the mean excess of those that are apart.

    Args:
        dissimilar_weight: of pairs that are apart; 0 does not look at them.
        margin: similarity up to which they cost nothing.
    """

    dissimilar_weight: float = 0.0
    margin: float = 0.0


@dataclass(eq=False)
class Enforced:
    """What was seen of a batch, and the gradient of what its pairs cost.

    Args:
        gradients: over the parameters that are trained, as far as it has any.
        similarity: sum over pairs that are alike, in the end their mean; nan where there are none.
        excess: the same of max(0, similarity - margin) over those that are apart.
        n_alike, n_apart: pairs.
        undefined: positions of samples that were left out, since their gradient is zero.
    """

    gradients: list[Tensor | None]
    similarity: float = float("nan")
    excess: float = float("nan")
    n_alike: int = 0
    n_apart: int = 0
    undefined: list[int] = field(default_factory=list)

    def add(self, found: list[Tensor | None]) -> None:
        """The gradient of a term of the cost."""
        for place, part in enumerate(found):
            known = self.gradients[place]
            if part is not None:
                self.gradients[place] = part if known is None else known + part


@dataclass(eq=False)
class Parts:
    """A batch in parts whose gradients fit in memory: with their graph, or fixed.

    Args:
        kernel: makes gradients.
        batch: all samples.
        normalization: what makes them unit gradients.
        trained: the parameters that are moved; none: nothing has a graph.
    """

    kernel: GradientKernel
    batch: Batch
    normalization: Normalization
    trained: list[nn.Parameter]
    kept: dict[int, UnitRows] = field(default_factory=dict)
    only: BatchGradients | None = None
    n_bytes: int = 0

    def __post_init__(self) -> None:
        n = len(self.batch)
        size = max(1, min(n, self.kernel.block_size(self.batch)))
        self.places = [slice(start, min(start + size, n)) for start in range(0, n, size)]

    @property
    def is_whole(self) -> bool:
        """Whether one part is the whole batch."""
        return len(self.places) == 1

    def graphed(self, number: int) -> BatchGradients:
        """One part with its graph; made anew each time, where it is not the only one."""
        if not self.is_whole:
            return self._made(number, is_differentiable=True)
        if self.only is None:
            self.only = self._made(0, is_differentiable=True)
        return self.only

    def fixed(self, number: int) -> UnitRows:
        """One part without a graph; kept as far as there is room."""
        if number in self.kept:
            return self.kept[number]
        if self.is_whole and self.trained:
            gradients = without_graph(self.graphed(0))
        else:
            gradients = self._made(number, is_differentiable=False)
        gradients = gradients.compact(is_eager=True)  # once, for many inner products
        found = UnitRows.of(gradients, self.normalization, self.kernel.precision, is_followed=bool(self.trained))
        if self.n_bytes + gradients.n_bytes <= self.kernel.max_bytes or self.is_whole:
            self.kept[number] = found
            self.n_bytes += gradients.n_bytes
        return found

    def drop(self, number: int) -> None:
        """Forget a part, if it is the only one."""
        if self.is_whole:
            self.kept.pop(number)
            self.only = None

    def back(self, number: int) -> PullBack | None:
        """What takes the cost of a part back to parameters; None where none are trained."""
        return PullBack(self.graphed(number)) if self.trained else None

    def _made(self, number: int, *, is_differentiable: bool) -> BatchGradients:
        return self.kernel.gradients(self.batch[self.places[number]], is_differentiable=is_differentiable)


def enforce(
    kernel: GradientKernel,
    batch: Batch,
    pairing: Pairing,
    cost: Cost,
    normalization: Normalization,
    trained: list[nn.Parameter],
    *,
    by_groups: bool,
) -> Enforced:
    """What the pairs of a batch cost, and its gradient.

    Args:
        kernel: of the network, as it will be used.
        batch: n samples, on its device.
        pairing: their pairs.
        cost: of these.
        normalization: which similarity.
        trained: the parameters that are moved; none: only what is seen.
        by_groups: from sums over groups, without looking at pairs.
    """
    found = Enforced([None] * len(trained))
    if not _has_pairs(pairing, cost):
        return found
    if by_groups:
        _from_groups(found, kernel, batch, pairing, normalization, trained)
        return found
    parts = Parts(kernel, batch, normalization, trained)
    is_defined = torch.cat([parts.fixed(number).is_defined for number in range(len(parts.places))])
    found.undefined = (~is_defined).nonzero().flatten().tolist()
    pairing = pairing.without(~is_defined)
    found.n_alike = pairing.n_alike
    if _has_pairs(pairing, cost):
        _from_pairs(found, parts, pairing, cost, trained)
    return found


def _has_pairs(pairing: Pairing, cost: Cost) -> bool:
    return pairing.n >= 2 and (pairing.n_alike > 0 or cost.dissimilar_weight > 0)


def _from_pairs(found: Enforced, parts: Parts, pairing: Pairing, cost: Cost, trained: list[nn.Parameter]) -> None:
    """By Gram blocks, of each part with every part."""
    found.n_apart = pairing.n_apart if cost.dissimilar_weight else 0
    similarity, excess = 0.0, 0.0
    for number, place in enumerate(parts.places):
        rows = parts.fixed(number)
        back, of_own = parts.back(number), torch.zeros_like(rows.own, requires_grad=False)
        for other in sorted(range(len(parts.places)), key=lambda other: other == number):  # itself in the end
            where = parts.places[other]
            columns = parts.fixed(other).detached()
            block = rows.similarities(columns)
            values = block.detach()
            w = pairing.alike_weights(place, where).to(values) / max(1, found.n_alike)
            v = pairing.apart_weights(place, where).to(values) / found.n_apart if found.n_apart else 0 * w
            similarity += float((w * values).sum())
            excess += float((v * (values - cost.margin).clamp(min=0)).sum())
            if back is not None:
                slopes = 2 * (cost.dissimilar_weight * v * (values > cost.margin) - w)
                of_own += torch.autograd.grad((slopes * block).sum(), rows.own, retain_graph=True)[0]
                weights = slopes * rows.scale.detach().to(slopes)[:, None] * columns.scale.to(slopes)
                own = of_own if other == number else None
                back.add(OfPairs(rows, columns, weights, own, is_last=parts.is_whole))
        if back is not None:
            parts.drop(number)
            del rows, columns, block  # not looked at again
            found.add(back.over(trained))
    found.similarity = similarity if found.n_alike else float("nan")
    found.excess = excess if found.n_apart else float("nan")


class OfPairs(Term):
    """A sum over pairs of similarities times weights, and of what it is through K(x, x).

    Args:
        rows: the samples that are moved.
        columns: those that they are compared with.
        weights: of inner products, [n m].
        of_own: slopes over K(x, x), [n c c], where columns are the rows; None: not of this term.
        is_last: whether gradients that are multiplied out are used up: they are not looked at again.
    """

    def __init__(
        self, rows: UnitRows, columns: UnitRows, weights: Tensor, of_own: Tensor | None, *, is_last: bool
    ) -> None:
        self.mixing = None if rows.mixing is None else rows.mixing.detach()
        if self.mixing is None and of_own is not None:  # normalization sees the trace alone
            weights = weights + 2 * of_own[:, 0, 0].to(weights).diag()
            of_own = None
        self.others, self.weights, self.of_own = columns.gradients.by_parameter, weights, of_own
        self.used_up = [rows.gradients, columns.gradients] if is_last else []
        self.moved: set[str] = set()

    def concerns(self, name: str) -> bool:
        return name in self.others  # the columns may have taken other ways through the model

    def slopes(self, name: str, gradients: Product, which: slice) -> Tensor | None:
        others = self.others[name]
        if not isinstance(others, Built):
            return None
        found = self._moved(name, others.values, which)
        found = found if self.mixing is None else mixed(self.mixing[which].transpose(1, 2), found)
        return found if self.of_own is None else found + mixed(_both_ways(self.of_own[which]), gradients.build())

    def _moved(self, name: str, values: Tensor, which: slice) -> Tensor:
        """Sums of all gradients times weights, for some samples; in place of the gradients, where they are used up."""
        weights, flat = self.weights.to(values), values.flatten(1)
        if not self.used_up or not values.is_contiguous():  # flat would be a copy
            return (weights[which] @ flat).view(-1, *values.shape[1:])
        if name not in self.moved:
            self.moved.add(name)
            for columns in chunks(flat.shape[1], flat.element_size() * len(flat), CACHED_BYTES):
                flat[:, columns] = weights @ flat[:, columns]
        return values[which]

    def let_go(self, name: str) -> None:
        for gradients in self.used_up:
            gradients.let_go(name)

    def share(self, name: str, gradients: Gradients, which: slice) -> Tensor:
        own = gradients.compact(is_eager=True)
        block = gram_block(own if self.mixing is None else own.mix(self.mixing[which]), self.others[name], "trace")
        found = (block * self.weights[which].to(block)).sum()
        return found if self.of_own is None else found + _of_lengths(own, self.of_own[which])


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
            values = mixed(_both_ways(own), values)
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
        found = _of_lengths(gradients.compact(is_eager=True), self.of_own[which])
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


def _both_ways(slopes: Tensor) -> Tensor:
    """Slopes over K(x, x) as the map of gradients that they are: d tr(A g g^T) = (A + A^T) g."""
    return slopes + slopes.transpose(1, 2)


def _of_lengths(gradients: Gradients, slopes: Tensor) -> Tensor:
    """A parameter's share of a cost that depends on K(x, x), [n c c]."""
    own = gradients.self_blocks()
    return (own * slopes.to(own)).sum()


def _from_groups(
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
    """Sums over groups that there is room for; the number of outputs is looked up where no batch has been seen."""
    size = sum(each.numel() * each.element_size() for each in kernel.parameters.values())
    c = kernel.n_outputs or kernel.outputs(batch[: min(2, len(batch))]).shape[1]
    return max(1, kernel.max_bytes // (size * c))


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
