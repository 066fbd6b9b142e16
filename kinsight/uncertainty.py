"""How sure a network is of its answer: by how much of the data would move along if the answer were moved.

    unc(x) = k(x, x) / sum_y |k(x, y)|

is at most 1 on the data, where x itself moves along, and without bound off it. With signs in place of absolute values
the sum takes linear time; it is another quantity, of any sign, and has a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.differentiation.unit_gradients import warn_undefined
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.kernel_products import kernel_products
from kinsight.progress import progress_bar
from kinsight.samples import Batch, Id, Samples, queries_of
from kinsight.stream import pair_blocks
from kinsight.whitening import spectrum


@dataclass(frozen=True, eq=False)
class Support:
    """How much of the data moves along with each sample.

    Args:
        ids: of the samples, n of them.
        sums: sum_y |k(x, y)| / k(x, x), or the same with signs, [n]; nan where the gradient of x is zero. For
            several outputs |K(y, x) K(x, x)^-1| / sqrt(r), or its trace / r, r being the rank of K(x, x).
        is_signed: whether terms have their sign.
        n_data: number of samples y.
        error: of `sums`, [n], where they are estimates from sketches; None: exact. With signs their standard error,
            else a bound: what they change by when all cosines are off one way.
    """

    ids: tuple[Id, ...]
    sums: Tensor
    is_signed: bool
    n_data: int
    error: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def uncertainties(self) -> Tensor:
        """1 / sums. [n]. With signs, it can be negative or without bound on the data, too."""
        return 1 / self.sums

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a sample: its uncertainty and support, and the error of that where it is an estimate."""
        errors = None if self.error is None else self.error.tolist()
        for place, (total, value) in enumerate(zip(self.sums.tolist(), self.uncertainties.tolist(), strict=True)):
            record = {"id": self.ids[place], "uncertainty": value, "support": total}
            yield record if errors is None else {**record, "support_error": errors[place]}

    def summary(self) -> str:
        """In words."""
        known = ~self.sums.isnan()
        if not bool(known.any()):
            return "The gradient of every sample is zero: nothing moves along with anything."
        middle, least = float(self.sums[known].median()), float(self.sums[known].min())
        first = self.ids[int(self.sums.nan_to_num(torch.inf).argmin())]
        if self.is_signed:
            return (
                f"Half of the samples have a signed support below {middle:,.3g}, of {self.n_data:,} samples; the "
                f"smallest, {least:,.3g}, is that of {first!r}. Terms of both signs cancel: this is no uncertainty."
            )
        return (
            f"To move its answer is, for half of the samples, to move those of less than {middle:,.3g} samples, of "
            f"{self.n_data:,}, itself included where it is one of them; the network is least sure of {first!r}, with "
            f"{least:,.3g}."
        )


def uncertainty(kernel: GradientKernel, data: Any, queries: Any = None, *, progress: bool = False) -> Support:
    """How uncertain a network is of each sample: k(x, x) / sum_y |k(x, y)|, over all y of the data; block by block.

    For c outputs |K(y, x) K(x, x)^-1| / sqrt(r), Frobenius norm and rank, is in place of |k(x, y)| / k(x, x).

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes: what the network was trained on.
        queries: the samples that are asked about; the data itself where left out.
        progress: whether to show a progress bar.

    Returns:
        `Support`, [n]; its `uncertainties` are at most 1 on the data.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> uncertainty(GradientKernel(torch.nn.Linear(2, 1)), x).uncertainties
        tensor([0.2857, 0.5000, 0.2500, 0.6250], dtype=torch.float64)

    Reference:
        Charpiat, Girard, Felardos, Tarabalka (2019), "Input Similarity from the Neural Network Perspective".
    """
    check_kernel(kernel)
    samples = Samples.wrap(data)
    asked = queries_of(samples, data, queries)
    sums = torch.zeros(len(asked), dtype=torch.float64)

    def dual(batch: Batch) -> BatchGradients:
        gradients = kernel.gradients(batch)
        inverses, ranks = _inverses(kernel, gradients)
        return gradients.mix(inverses / ranks.double().sqrt()[:, None, None])

    def moves(x: BatchGradients, y: BatchGradients) -> Tensor:
        blocks: Tensor = x.gram(y, "blocks").double()
        lengths: Tensor = blocks.square().sum(dim=(2, 3)).sqrt()
        return lengths

    rows, columns = kernel.each(asked, dual), kernel.each(samples, kernel.gradients)
    with progress_bar("uncertainty", len(samples) * len(asked), is_shown=progress) as advance:
        for r, _, block in pair_blocks(rows, columns, moves, max_bytes=kernel.max_bytes // 2):
            sums[r] += block.cpu().sum(dim=1)
            advance(block.numel())
    return _support(asked, sums, is_signed=False, n_data=len(samples))


def signed_support(kernel: GradientKernel, data: Any, queries: Any = None, *, progress: bool = False) -> Support:
    """sum_y k(x, y) / k(x, x) over all y of the data, in linear time: no uncertainty, terms of both signs cancel.

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes.
        queries: the samples that are asked about; the data itself where left out.
        progress: whether to show a progress bar.

    Returns:
        `Support`, [n]; `sums` may have any sign.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
        >>> signed_support(GradientKernel(torch.nn.Linear(2, 1)), x).sums
        tensor([2.0000, 0.8000, 2.5000, 0.4000], dtype=torch.float64)
    """
    check_kernel(kernel)
    samples = Samples.wrap(data)
    asked = queries_of(samples, data, queries)
    c = kernel.outputs(samples.take([0])).shape[1]

    def columns(rows: slice, outputs: Tensor) -> Tensor:
        return torch.eye(c, dtype=torch.float64, device=outputs.device).expand(len(outputs), -1, -1)

    queried = None if asked is samples else asked
    found = kernel_products(kernel, samples, columns, c, queried, weighting="blocks", progress=progress)
    batches = asked.batches(kernel.block_size(asked))
    parts = [_inverses(kernel, kernel.gradients(batch)) for batch in batches]
    inverses, ranks = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    sums = (found.values * inverses).sum(dim=(1, 2)) / ranks  # Tr(M K^-1) / r, K^-1 being symmetric
    return _support(asked, sums.masked_fill(found.lengths == 0, torch.nan), is_signed=True, n_data=len(samples))


def _inverses(kernel: GradientKernel, gradients: BatchGradients) -> tuple[Tensor, Tensor]:
    """K(x, x)^-1 on its range, [n c c], nan where the gradient is zero; and its rank, [n]."""
    own = spectrum(gradients.self_blocks(), kernel.precision)
    inverses: Tensor = own.power(-1.0)
    return inverses.masked_fill(own.ranks[:, None, None] == 0, torch.nan), own.ranks


def _support(samples: Samples, sums: Tensor, *, is_signed: bool, n_data: int) -> Support:
    is_zero = sums.isnan()
    warn_undefined([samples.ids[row] for row in is_zero.nonzero().flatten().tolist()])
    return Support(samples.ids, sums, is_signed, n_data)
