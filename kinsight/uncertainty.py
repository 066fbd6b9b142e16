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
from kinsight.kernel import GradientKernel
from kinsight.kernel_products import kernel_products
from kinsight.progress import progress_bar
from kinsight.samples import Batch, Id, Samples
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
        """One record a sample."""
        for id_, total, value in zip(self.ids, self.sums.tolist(), self.uncertainties.tolist(), strict=True):
            yield {"id": id_, "uncertainty": value, "support": total}

    def summary(self) -> str:
        """In words."""
        known = ~self.sums.isnan()
        if not bool(known.any()):
            return "The gradient of every sample is zero: nothing moves along with anything."
        what = "sums with signs, which are no uncertainties, " if self.is_signed else "other samples "
        middle, most = float(self.sums[known].median()), self.ids[int(self.sums.nan_to_num(torch.inf).argmin())]
        return (
            f"Half of the samples move less than {middle:,.3g} {what}along, of {self.n_data:,}; the network is least "
            f"sure of {most!r}, with {float(self.sums[known].min()):.3g}."
        )


def uncertainty(kernel: GradientKernel, data: Any, queries: Any = None, *, progress: bool = False) -> Support:
    """How uncertain a network is of each sample: k(x, x) / sum_y |k(x, y)|, over all y of the data; block by block.

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes: what the network was trained on.
        queries: the samples that are asked about; the data itself where left out.
        progress: whether to show a progress bar.

    Returns:
        `Support`, [n]; its `uncertainties` are at most 1 on the data.

    Reference:
        Charpiat, Girard, Felardos, Tarabalka (2019), "Input Similarity from the Neural Network Perspective".
    """
    samples = Samples.wrap(data)
    targets = samples if queries is None or queries is data else Samples.wrap(queries)
    sums = torch.zeros(len(targets), dtype=torch.float64)

    def dual(batch: Batch) -> BatchGradients:
        gradients = kernel.gradients(batch)
        inverses, ranks = _inverses(kernel, gradients)
        return gradients.mix(inverses / ranks.double().sqrt()[:, None, None])

    def moves(x: BatchGradients, y: BatchGradients) -> Tensor:
        blocks: Tensor = x.gram(y, "blocks").double()
        lengths: Tensor = blocks.square().sum(dim=(2, 3)).sqrt()
        return lengths

    rows, columns = kernel.each(targets, dual), kernel.each(samples, kernel.gradients)
    with progress_bar("uncertainty", len(samples) * len(targets), is_shown=progress) as advance:
        for r, _, block in pair_blocks(rows, columns, moves, max_bytes=kernel.max_bytes // 2):
            sums[r] += block.cpu().sum(dim=1)
            advance(block.numel())
    return _support(targets, sums, is_signed=False, n_data=len(samples))


def signed_support(kernel: GradientKernel, data: Any, queries: Any = None, *, progress: bool = False) -> Support:
    """sum_y k(x, y) / k(x, x) over all y of the data, in linear time: no uncertainty, terms of both signs cancel.

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes.
        queries: the samples that are asked about; the data itself where left out.
        progress: whether to show a progress bar.

    Returns:
        `Support`, [n]; `sums` may have any sign.
    """
    samples = Samples.wrap(data)
    targets = samples if queries is None or queries is data else Samples.wrap(queries)
    c = kernel.outputs(samples.take([0])).shape[1]

    def columns(rows: slice, outputs: Tensor) -> Tensor:
        return torch.eye(c, dtype=torch.float64, device=outputs.device).expand(len(outputs), -1, -1)

    asked = None if targets is samples else targets
    found = kernel_products(kernel, samples, columns, c, asked, weighting="blocks", progress=progress)
    batches = targets.batches(kernel.block_size(targets))
    parts = [_inverses(kernel, kernel.gradients(batch)) for batch in batches]
    inverses, ranks = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    sums = (found.values * inverses).sum(dim=(1, 2)) / ranks  # Tr(M K^-1) / r, K^-1 being symmetric
    return _support(targets, sums.masked_fill(found.lengths == 0, torch.nan), is_signed=True, n_data=len(samples))


def _inverses(kernel: GradientKernel, gradients: BatchGradients) -> tuple[Tensor, Tensor]:
    """K(x, x)^-1 on its range, [n c c], nan where the gradient is zero; and its rank, [n]."""
    own = spectrum(gradients.self_blocks(), kernel.precision)
    inverses: Tensor = own.power(-1.0)
    return inverses.masked_fill(own.ranks[:, None, None] == 0, torch.nan), own.ranks


def _support(samples: Samples, sums: Tensor, *, is_signed: bool, n_data: int) -> Support:
    is_zero = sums.isnan()
    warn_undefined([samples.ids[row] for row in is_zero.nonzero().flatten().tolist()])
    return Support(samples.ids, sums, is_signed, n_data)
