"""How crowded the data is around each sample, through the network's eyes.

    soft   N_S(x) = sum_j k(x, x_j)              linear time: from the sum of unit gradients
    hard   N_tau(x) = number of k(x, x_j) > tau  block by block
    power  N_a(x) = sum over k > 0 of k^a        block by block

with k the similarity. x itself counts where it is in the data: around the data's own samples or parts of the data, or
by id where both sides were given ids; `include_self=False` takes its exact term out. Other queries are strangers.
Samples with zero gradient have no similarity: they add nothing to any count, and their own count is nan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kinsight.differentiation.unit_gradients import warn_undefined
from kinsight.errors import InputError, UnknownNameError
from kinsight.kernel import GradientKernel, Normalization
from kinsight.namesakes import self_positions
from kinsight.progress import Advance, progress_bar
from kinsight.samples import Id, Samples
from kinsight.unit_sum import Route, UnitSum

Thresholds: TypeAlias = float | Sequence[float] | Tensor | np.ndarray
"""One similarity, or a list, an array or a tensor of several."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Neighbor counts.

    Args:
        ids: of the samples counted around, n of them.
        values: [n]; for several thresholds [n k]. nan where the sample's gradient is zero.
        n_data: number of samples counted.
        normalization: which similarity.
        includes_self: whether a sample that is in the data counts itself.
        route: how they were computed.
        error: of the values, of their shape, where they are estimates from sketches; None: exact. Their standard error,
            or, of power counts, a bound: how far they are off if all similarities are off one way.
        is_bound: whether the error is such a bound.
    """

    ids: tuple[Id, ...]
    values: Tensor
    n_data: int
    normalization: Normalization
    includes_self: bool
    route: str
    error: Tensor | None = None
    is_bound: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def density(self) -> Tensor:
        """Counts divided by the number of samples counted."""
        return self.values / self.n_data

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a sample: id, count, and its error where it is an estimate."""
        values, errors = self.values.tolist(), None if self.error is None else self.error.tolist()
        for place, (id_, value) in enumerate(zip(self.ids, values, strict=True)):
            yield {"id": id_, "count": value} if errors is None else {"id": id_, "count": value, "error": errors[place]}

    def summary(self) -> str:
        """In words (the first column of several)."""
        order = self.order()
        values = (self.values if self.values.dim() == 1 else self.values[:, 0])[order].tolist()
        if not values:
            return "No sample has a count: every gradient is zero."
        low, middle, high = (f"{values[place]:,.3g}" for place in (0, len(values) // 2, -1))
        text = (
            f"Around half of {len(values):,} samples, counts are below {middle}; the loneliest, "
            f"{self.ids[int(order[0])]!r}, has {low}, the most crowded, {self.ids[int(order[-1])]!r}, {high}."
        )
        if self.error is not None:
            errors = self.error if self.error.dim() == 1 else self.error[:, 0]
            kind = "at most, if all similarities are off one way" if self.is_bound else "standard error"
            text += f" These are estimates from sketches, off by {float(errors[order].median()):.2g} ({kind})."
        n_undefined = len(self) - len(values)
        return text + (f" {n_undefined:,} have zero gradients, and none." if n_undefined else "")

    def column(self, number: int) -> Counts:
        """The counts of one of several thresholds."""
        error = None if self.error is None else self.error[:, number]
        return replace(self, values=self.values[:, number], error=error)

    def order(self) -> Tensor:
        """Positions from the loneliest to the most crowded, undefined ones left out (first column of several)."""
        values = self.values if self.values.dim() == 1 else self.values[:, 0]
        order = values.argsort(stable=True)
        return order[~values[order].isnan()]


def soft_count(
    kernel: GradientKernel,
    data: Any,
    queries: Any = None,
    *,
    normalization: Normalization = "whitened",
    include_self: bool = True,
    route: Route = "auto",
    progress: bool = False,
) -> Counts:
    """The soft count N_S(x) = sum_j k(x, x_j), in time linear in the number of samples.

    N_S(x) = u(x) . S with u the unit gradient and S = sum_j u(x_j): one pass adds up S, one reads it. For c outputs
    there are c directions, S_a = sum_j (whitened gradient a of x_j), and N_S = sum_a u_a(x) . S_a. Of single
    samples only captures are kept, as far as memory allows; S is accumulated in float64.

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes: the samples counted.
        queries: the samples counted around; the data itself where left out.
        normalization: 'whitened' or 'flat' similarity.
        include_self: whether a query that is in the data, by id, counts itself.
        route: how S is read: from 'captures', as S was made; 'auto': the same, without another pass for what fits in
            half of the kernel's `max_bytes`; or in 'forward' mode, an independent way to the same numbers, about as
            fast, for models that have such a derivative and the data's own samples.
        progress: whether to show a progress bar.

    Returns:
        `Counts`, [n].
    """
    samples = Samples.wrap(data)
    targets = samples if queries is None or queries is data else Samples.wrap(queries)
    if route not in ("auto", "forward", "captures"):
        raise UnknownNameError(f"route {route!r} is unknown: use 'auto', 'forward' or 'captures'.")
    is_own = targets is samples
    if route == "forward" and not is_own:
        raise InputError(
            "route='forward' reads the data's own samples only: their norms are known from the first pass."
        )
    total = UnitSum(kernel, normalization, max_kept=kernel.max_bytes // 2 if is_own and route == "auto" else 0)
    with progress_bar("soft count", len(samples) + len(targets), is_shown=progress) as advance:
        for batch in samples.batches(kernel.block_size(samples)):
            total.add(batch)
            advance(len(batch))
        values, how = total.read_own(samples, route, advance) if is_own else total.read(targets, advance)
    if not include_self:
        values = values - (self_positions(targets, samples) >= 0).to(values)
    warn_undefined([targets.ids[row] for row in values.isnan().nonzero().flatten().tolist()])
    return Counts(targets.ids, values, len(samples), normalization, include_self, how)


def hard_count(
    kernel: GradientKernel,
    data: Any,
    queries: Any = None,
    *,
    thresholds: Thresholds = 0.5,
    normalization: Normalization = "whitened",
    include_self: bool = True,
    progress: bool = False,
) -> Counts:
    """The hard count N_tau(x), the number of samples with similarity above tau: exact, block by block.

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes: the samples counted.
        queries: the samples counted around; the data itself where left out.
        thresholds: tau, or several of them, all counted in one pass. Similarities are as exact as the precision of the
            network: of copies they can be a few roundings below 1, and not above a threshold that is as close to 1.
        normalization: 'whitened' or 'flat' similarity.
        include_self: whether a query that is in the data, by id, counts itself; its similarity is 1 exactly.
        progress: whether to show a progress bar.

    Returns:
        `Counts`, [n], or [n k] for k thresholds.

    Raises:
        InputError: there are no thresholds, or one is nan.
    """
    taus, is_single = thresholds_of(thresholds)
    counts = _blockwise(kernel, data, queries, above(taus), normalization, include_self=include_self, progress=progress)
    return counts.column(0) if is_single else counts


def power_count(
    kernel: GradientKernel,
    data: Any,
    queries: Any = None,
    *,
    power: float = 8.0,
    normalization: Normalization = "whitened",
    include_self: bool = True,
    progress: bool = False,
) -> Counts:
    """The power count N_a(x) = sum over positive similarities of k(x, x_j)^a: exact, block by block.

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes: the samples counted.
        queries: the samples counted around; the data itself where left out.
        power: a; N_1 is the integral of the hard count over tau in [0, 1].
        normalization: 'whitened' or 'flat' similarity.
        include_self: whether a query that is in the data, by id, counts itself.
        progress: whether to show a progress bar.

    Returns:
        `Counts`, [n].

    Raises:
        InputError: the power is not positive.
    """
    count = powers(power)
    counts = _blockwise(kernel, data, queries, count, normalization, include_self=include_self, progress=progress)
    return counts.column(0)


def thresholds_of(thresholds: Thresholds) -> tuple[Tensor, bool]:
    """All thresholds, [k], and whether there is one by itself, and no list.

    Raises:
        InputError: there are none, they are a table, or one is nan.
    """
    taus = torch.as_tensor(thresholds, dtype=torch.float64)
    if taus.dim() > 1 or not taus.numel():
        raise InputError(f"thresholds are {list(taus.shape)}: pass one similarity, or a list of them.")
    if bool(taus.isnan().any()):
        raise InputError("A threshold is nan: no similarity is above it or below it.")
    return taus.reshape(-1), taus.dim() == 0


def above(taus: Tensor) -> Callable[[Tensor], Tensor]:
    """What counts the similarities [r c] above each of k thresholds, [r k]; one after another, to save memory."""
    return lambda similarities: torch.stack([(similarities > tau).sum(dim=1) for tau in taus], dim=1).double()


def powers(power: float) -> Callable[[Tensor], Tensor]:
    """What adds up powers of the positive similarities [r c], [r 1].

    Raises:
        InputError: the power is not positive.
    """
    if not power > 0:
        raise InputError(f"power is {power}: it must be positive (0 would count every similarity above 0 as 1).")
    return lambda similarities: similarities.clamp(min=0).pow(power).sum(dim=1, keepdim=True)


def _blockwise(
    kernel: GradientKernel,
    data: Any,
    queries: Any,
    count: Callable[[Tensor], Tensor],
    normalization: Normalization,
    *,
    include_self: bool,
    progress: bool,
) -> Counts:
    samples = Samples.wrap(data)
    targets = samples if queries is None or queries is data else Samples.wrap(queries)
    pairs = kernel.similarity_blocks(targets, None if targets is samples else samples, normalization)
    same = self_positions(targets, samples)
    with progress_bar("counting", len(samples) * len(targets), is_shown=progress) as advance:
        values = counted(pairs, same, count, include_self=include_self, advance=advance)
    return Counts(targets.ids, values, len(samples), normalization, include_self, "blockwise")


def counted(
    pairs: Iterable[tuple[slice, slice, Tensor]],
    same: Tensor,
    count: Callable[[Tensor], Tensor],
    *,
    include_self: bool,
    advance: Advance,
) -> Tensor:
    """Counts, [n k], from similarities that come block by block.

    Args:
        pairs: (rows, columns, similarities) of all samples counted around with all samples counted.
        same: which of the columns each row is itself, [n]; -1 for none.
        count: of the similarities of some rows with some columns, [r c] -> [r k]; those that do not count are -inf.
        include_self: whether a sample counts itself, with similarity 1.
        advance: is told how many pairs are done.
    """
    values: Tensor | None = None
    undefined = torch.ones(len(same), dtype=torch.bool)
    for r, c, block in pairs:
        similarities = block.cpu().double().clamp(-1, 1)
        undefined[r] &= similarities.isnan().all(dim=1)
        is_self = torch.arange(c.start, c.stop) == same[r, None]
        similarities = similarities.masked_fill(is_self, 1.0 if include_self else -torch.inf)
        part = count(similarities.masked_fill(similarities.isnan(), -torch.inf))
        values = torch.zeros(len(same), part.shape[1], dtype=torch.float64) if values is None else values
        values[r] += part
        advance(similarities.numel())
    assert values is not None
    values[undefined] = torch.nan
    return values
