"""How crowded the data is around each sample, through the network's eyes.

    soft   N_S(x) = sum_j k(x, x_j)              linear time: from the sum of unit gradients
    hard   N_tau(x) = number of k(x, x_j) > tau  block by block
    power  N_a(x) = sum over k > 0 of k^a        block by block

with k the similarity. x itself counts where it is in the data: around the data's own samples or parts of the data, or
by id where both sides were given ids; `include_self=False` takes its exact term out. Other queries are strangers.
Samples with zero gradient have no similarity: they add nothing to any count, and their own count is nan.

Reference: Charpiat, Girard, Felardos, Tarabalka (2019), "Input Similarity from the Neural Network Perspective".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kinsight.differentiation.unit_gradients import warn_undefined
from kinsight.errors import InputError, UnknownNameError
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.namesakes import self_positions
from kinsight.normalization import Normalization
from kinsight.progress import Advance, progress_bar
from kinsight.samples import Id, Samples, queries_of
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
            f"Half of {len(values):,} samples have counts below {middle}; the loneliest, "
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

    Raises:
        UnknownNameError: there is no such normalization, or route.
        InputError: route='forward', and queries that are not the data.
        ModelError: route='forward', and the model has no derivative in forward mode.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> soft_count(GradientKernel(torch.nn.Linear(2, 1)), x).values  # the last one is the loneliest
        tensor([2.6723, 2.4063, 2.7107, 2.2595], dtype=torch.float64)
    """
    check_kernel(kernel, normalization)
    samples = Samples.wrap(data)
    asked = queries_of(samples, data, queries)
    if route not in ("auto", "forward", "captures"):
        raise UnknownNameError(f"route {route!r} is unknown: use 'auto', 'forward' or 'captures'.")
    is_own = asked is samples
    if route == "forward" and not is_own:
        raise InputError(
            "route='forward' reads the data's own samples only: their norms are known from the first pass."
        )
    total = UnitSum(kernel, normalization, max_kept=kernel.max_bytes // 2 if is_own and route == "auto" else 0)
    with progress_bar("soft count", len(samples) + len(asked), is_shown=progress) as advance:
        for batch in samples.batches(kernel.block_size(samples)):
            total.add(batch)
            advance(len(batch))
        values, how = total.read_own(samples, route, advance) if is_own else total.read(asked, advance)
    if not include_self:
        values = values - (self_positions(asked, samples) >= 0).to(values)
    warn_undefined([asked.ids[row] for row in values.isnan().nonzero().flatten().tolist()])
    return Counts(asked.ids, values, len(samples), normalization, include_self, how)


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
        UnknownNameError: there is no such normalization.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> hard_count(GradientKernel(torch.nn.Linear(2, 1)), x, thresholds=[0.8, 0.4]).values.tolist()
        [[2.0, 3.0], [2.0, 2.0], [2.0, 3.0], [2.0, 2.0]]
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
        UnknownNameError: there is no such normalization.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> power_count(GradientKernel(torch.nn.Linear(2, 1)), x, power=2).values
        tensor([2.2000, 2.0200, 2.1500, 1.8700], dtype=torch.float64)
    """
    count = powers(power)
    counts = _blockwise(kernel, data, queries, count, normalization, include_self=include_self, progress=progress)
    return counts.column(0)


def thresholds_of(thresholds: Thresholds) -> tuple[Tensor, bool]:
    """All thresholds, [k], and whether there is one by itself, and no list.

    Raises:
        InputError: there are none, they are a table, or one is nan.
    """
    try:
        taus = torch.as_tensor(thresholds, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"thresholds are {thresholds!r}: pass one similarity, or a list of them.") from error
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
    if not isinstance(power, Real) or not power > 0:
        raise InputError(f"power is {power!r}: it must be positive (0 would count every similarity above 0 as 1).")
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
    check_kernel(kernel, normalization)
    samples = Samples.wrap(data)
    asked = queries_of(samples, data, queries)
    pairs = kernel.similarity_blocks(asked, None if asked is samples else samples, normalization)
    same = self_positions(asked, samples)
    with progress_bar("counting", len(samples) * len(asked), is_shown=progress) as advance:
        values = counted(pairs, same, count, include_self=include_self, advance=advance)
    return Counts(asked.ids, values, len(samples), normalization, include_self, "blockwise")


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
