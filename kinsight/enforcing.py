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

from kinsight.batch_gradients import BatchGradients
from kinsight.batches import Batch
from kinsight.gradients import Gradients, gram_block
from kinsight.kernel import GradientKernel, Normalization
from kinsight.pairs import Pairing
from kinsight.second_order import Local, PullBack, UnitRows, without_graph


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
        is_multiplied: whether gradients are multiplied out once, for many inner products.
    """

    kernel: GradientKernel
    batch: Batch
    normalization: Normalization
    trained: list[nn.Parameter]
    is_multiplied: bool
    kept: dict[int, UnitRows] = field(default_factory=dict)
    only: BatchGradients | None = None
    n_bytes: int = 0

    def __post_init__(self) -> None:
        n = len(self.batch)
        size = max(1, min(n, self.kernel.block_size(self.batch)))
        self.places = [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def graphed(self, number: int) -> BatchGradients:
        """One part with its graph; made anew each time, where it is not the only one."""
        if len(self.places) > 1:
            return self._made(number, is_differentiable=True)
        if self.only is None:
            self.only = self._made(0, is_differentiable=True)
        return self.only

    def fixed(self, number: int) -> UnitRows:
        """One part without a graph; kept as far as there is room."""
        if number in self.kept:
            return self.kept[number]
        if len(self.places) == 1 and self.trained:
            gradients = without_graph(self.graphed(0))
        else:
            gradients = self._made(number, is_differentiable=False)
        gradients = gradients.compact(is_eager=True) if self.is_multiplied else gradients
        found = UnitRows.of(gradients, self.normalization, self.kernel.precision, is_followed=bool(self.trained))
        if self.n_bytes + gradients.n_bytes <= self.kernel.max_bytes or len(self.places) == 1:
            self.kept[number] = found
            self.n_bytes += gradients.n_bytes
        return found

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
    order = torch.arange(len(batch))
    if by_groups:  # samples of one group lie together
        assert pairing.groups is not None
        order = pairing.groups.argsort(stable=True)
        batch, pairing = batch[order.tolist()], Pairing(len(order), pairing.groups[order])
    parts = Parts(kernel, batch, normalization, trained, is_multiplied=not by_groups)
    totals = _totals(parts, pairing) if by_groups else {}
    is_defined = torch.cat([parts.fixed(number).is_defined for number in range(len(parts.places))])
    found.undefined = sorted(order[~is_defined].tolist())
    pairing = pairing.without(~is_defined)
    found.n_alike = pairing.n_alike
    if by_groups and found.n_alike:
        _from_groups(found, parts, pairing, totals, trained)
    elif not by_groups and _has_pairs(pairing, cost):
        _from_pairs(found, parts, pairing, cost, trained)
    return found


def _has_pairs(pairing: Pairing, cost: Cost) -> bool:
    return pairing.n >= 2 and (pairing.n_alike > 0 or cost.dissimilar_weight > 0)


def _from_pairs(found: Enforced, parts: Parts, pairing: Pairing, cost: Cost, trained: list[nn.Parameter]) -> None:
    """By Gram blocks, of each part with every part."""
    alike = pairing.alike_weights / max(1, found.n_alike)
    apart = pairing.apart_weights if cost.dissimilar_weight else torch.zeros_like(alike)
    found.n_apart = round(float(apart.sum()))
    apart = apart / max(1, found.n_apart)
    similarity, excess = 0.0, 0.0
    for number, place in enumerate(parts.places):
        rows = parts.fixed(number)
        back, of_own = parts.back(number), torch.zeros_like(rows.own, requires_grad=False)
        for other, where in enumerate(parts.places):
            columns = parts.fixed(other).detached()
            block = rows.similarities(columns)
            values = block.detach()
            w, v = alike[place, where].to(values), apart[place, where].to(values)
            similarity += float((w * values).sum())
            excess += float((v * (values - cost.margin).clamp(min=0)).sum())
            if back is not None:
                slopes = 2 * (cost.dissimilar_weight * v * (values > cost.margin) - w)
                of_own += torch.autograd.grad((slopes * block).sum(), rows.own, retain_graph=True)[0]
                share = _of_pairs(rows, columns, slopes)
                back.add(_with_lengths(share, of_own) if other == len(parts.places) - 1 else share)
        if back is not None:
            found.add(back.over(trained))
    found.similarity = similarity if found.n_alike else float("nan")
    found.excess = excess if found.n_apart else float("nan")


def _with_lengths(local: Local, of_own: Tensor) -> Local:
    """A share of a cost, and what it is through K(x, x), by which inner products were normalized."""

    def share(name: str, gradients: Gradients, which: slice) -> Tensor:
        own = gradients.self_blocks()
        return local(name, gradients, which) + (own * of_own[which].to(own)).sum()

    return share


def _of_pairs(rows: UnitRows, columns: UnitRows, slopes: Tensor) -> Local:
    """A parameter's share of the cost of pairs, [n m]."""
    weights = slopes * rows.scale.detach()[:, None].to(slopes) * columns.scale.to(slopes)
    mixing = None if rows.mixing is None else rows.mixing.detach()

    def share(name: str, gradients: Gradients, which: slice) -> Tensor:
        mixed = gradients if mixing is None else gradients.mix(mixing[which])
        block = gram_block(mixed, columns.gradients.by_parameter[name], "trace")
        return (block * weights[which].to(block)).sum()

    return share


def _from_groups(
    found: Enforced, parts: Parts, pairing: Pairing, totals: dict[int, dict[str, Tensor]], trained: list[nn.Parameter]
) -> None:
    """By sums S of groups: over the pairs of one, sum k = (|S|^2 - n) / 2, and |S|^2 = sum_n u_n . S."""
    squares = 0.0
    assert pairing.groups is not None
    for number, place in enumerate(parts.places):
        runs = [run for run in _runs(pairing.groups[place]) if run[0] in totals]
        if not runs:
            continue
        rows = parts.fixed(number)
        along = torch.cat([rows.rows(start, stop).along(totals[group]) for group, start, stop in runs])
        squares += float(along.detach().sum())
        if (back := parts.back(number)) is not None:
            (of_own,) = torch.autograd.grad(-along.sum() / found.n_alike, rows.own)
            back.add(_with_lengths(_of_groups(rows, totals, runs, -1 / found.n_alike), of_own))
            found.add(back.over(trained))
    found.similarity = (squares - int((pairing.groups >= 0).sum())) / (2 * found.n_alike)


def _of_groups(
    rows: UnitRows, totals: dict[int, dict[str, Tensor]], runs: list[tuple[int, int, int]], weight: float
) -> Local:
    """A parameter's share of weight sum_n u_n . S."""
    scale = weight * rows.scale.detach()
    mixing = None if rows.mixing is None else rows.mixing.detach()

    def share(name: str, gradients: Gradients, which: slice) -> Tensor:
        mixed = gradients if mixing is None else gradients.mix(mixing[which])
        found = []
        for group, start, stop in runs:
            low, high = max(start, which.start), min(stop, which.stop)
            if low < high:
                part = mixed.rows(low - which.start, high - which.start)
                moved = part.dot(totals[group][name].to(part.tensors[0])).diagonal(dim1=1, dim2=2).sum(dim=1)
                found.append((moved * scale[low:high].to(moved)).sum())
        return torch.stack(found).sum() if found else gradients.tensors[0].sum() * 0

    return share


def _totals(parts: Parts, pairing: Pairing) -> dict[int, dict[str, Tensor]]:
    """Sums of unit gradients by group, [c *shape] a parameter; samples of zero gradient add nothing."""
    assert pairing.groups is not None
    totals: dict[int, dict[str, Tensor]] = {}
    for number, place in enumerate(parts.places):
        fixed = parts.fixed(number).detached()
        for group, start, stop in _runs(pairing.groups[place]):
            if group >= 0:
                known = totals.setdefault(group, {})
                for name, value in fixed.rows(start, stop).total().items():
                    known[name] = value if name not in known else known[name] + value
    return totals


def _runs(groups: Tensor) -> Iterator[tuple[int, int, int]]:
    """(group, start, stop) of samples of one group that lie together."""
    numbers, counts = torch.unique_consecutive(groups, return_counts=True)
    stop = 0
    for group, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        start, stop = stop, stop + count
        yield group, start, stop
