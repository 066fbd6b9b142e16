"""Products of a whole Gram matrix with vectors, in time linear in the number of samples: it is never formed.

    sum_j k(x_i, x_j) v_j = g_i . T    with    T = sum_j v_j g_j

One pass adds up T, one reads it; for similarities, unit gradients take the place of g. All that is linear in the kernel
is made of this: means of labels around every sample, what is left of residuals, systems of equations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from kinsight.axes import Outputs, PerSample
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.gradients.contractions import add_in_float64, in_float64
from kinsight.kernel import GradientKernel
from kinsight.plan import n_outputs_of
from kinsight.progress import Advance, progress_bar
from kinsight.samples import Samples

LEAST_SHARE = 1e-3
"""Below this share of |g_i| sum_j |g_j|, nothing is divided by a sum s_i of the kernel: what is left is rounding."""

Weighting: TypeAlias = Literal["whitened", "flat", "kernel", "blocks"]
"""Which matrix: whitened or flat similarities; the kernel, summed up over outputs; or K, of all pairs of outputs."""

Columns: TypeAlias = Callable[[slice, Outputs], Tensor]
"""(samples of the data, their outputs) -> what they are multiplied by: [n m], or for 'blocks' [n c m]."""


@dataclass(frozen=True, eq=False)
class KernelProducts:
    """The products, and what was seen on the way.

    Args:
        values: sum_j k(x_i, x_j) v_j, [q m]; for 'blocks' [q c m]; float64. For similarities, nan where the gradient of
            the sample is zero.
        lengths: of the vectors whose inner products k is, for the samples the products are of: |g(x)| over all outputs,
            or for similarities 1, [q]; 0 where the gradient is zero.
        outputs: their outputs, [q c].
        total_length: of all vectors of the data, each times the weight of its sample.
    """

    values: Tensor
    lengths: PerSample
    outputs: Outputs
    total_length: float


def kernel_products(
    kernel: GradientKernel,
    data: Samples,
    columns: Columns,
    n_columns: int,
    queries: Samples | None = None,
    *,
    weighting: Weighting,
    sample_weights: Tensor | None = None,
    progress: bool = False,
) -> KernelProducts:
    """sum_j k(x_i, x_j) v_j for every query x_i, over all samples x_j of the data, exact.

    Args:
        kernel: the gradient kernel.
        data: the samples summed over.
        columns: what they are multiplied by.
        n_columns: m. As many as have room in a quarter of the kernel's `max_bytes` are done in one pass.
        queries: the samples the sums are read for; those of the data where left out.
        weighting: which matrix.
        sample_weights: of the data in `total_length`, [n]; 1 where left out.
        progress: whether to show a progress bar.
    """
    asked = data if queries is None else queries
    n_each = 1 if weighting == "blocks" else n_outputs_of(kernel, data)
    n_bytes = 8 * n_each * sum(parameter.numel() for parameter in kernel.parameters.values())
    size = max(1, min(n_columns, kernel.max_bytes // 4 // n_bytes))
    groups = [slice(start, min(n_columns, start + size)) for start in range(0, n_columns, size)]
    found = []
    with progress_bar("kernel sums", len(groups) * (len(data) + len(asked)), is_shown=progress) as advance:
        for group in groups:
            one = _Pass(kernel, weighting, kernel.max_bytes // 2 if queries is None else 0, sample_weights)
            one.add(data, columns, group, advance)
            found.append(one.read(asked, advance))
    values = torch.cat([each.values for each in found], dim=-1)
    return KernelProducts(values, found[0].lengths, found[0].outputs, found[0].total_length)


@dataclass(eq=False)
class _Pass:
    """T, added up and read: T_am = sum_j v_jm u_a(x_j), with u_a the gradients that the weighting asks for."""

    kernel: GradientKernel
    weighting: Weighting
    max_kept: int
    sample_weights: Tensor | None = None
    directions: list[dict[str, Tensor]] = field(default_factory=list)
    kept: list[BatchGradients] = field(default_factory=list)
    total_length: float = 0.0

    def add(self, data: Samples, columns: Columns, group: slice, advance: Advance) -> None:
        """Add all samples, multiplied by a group of their columns."""
        first, n_bytes = 0, 0
        for place, batch in enumerate(data.batches(self.kernel.block_size(data))):
            gradients = self.kernel.gradients(batch)
            vectors = columns(slice(first, first + len(batch)), gradients.outputs)[..., group]
            lengths, parts = self._parts(gradients)
            for a, part in enumerate(parts):
                if a == len(self.directions):
                    self.directions.append({})
                weights = vectors.permute(2, 0, 1) if self.weighting == "blocks" else vectors.T[:, :, None]
                for name, value in part.weighted_sum(weights).items():
                    known = self.directions[a].get(name)
                    self.directions[a][name] = in_float64(value) if known is None else add_in_float64(known, value)
            weighed = 1.0 if self.sample_weights is None else self.sample_weights[first : first + len(batch)]
            self.total_length += float((lengths.cpu() * weighed).sum())
            if len(self.kept) == place and n_bytes + gradients.n_bytes <= self.max_kept:
                self.kept.append(gradients.owned())
                n_bytes += gradients.n_bytes
            first += len(batch)
            advance(len(batch))

    def read(self, samples: Samples, advance: Advance) -> KernelProducts:
        """The products of all samples."""
        values, lengths, outputs = [], [], []
        for gradients in self._gradients(samples):
            length, parts = self._parts(gradients)
            read = [part.dot(each) for part, each in zip(parts, self.directions, strict=True)]  # [n c m] each
            total = read[0] if self.weighting == "blocks" else torch.stack(read).sum(dim=(0, 2))
            if self.weighting in ("whitened", "flat"):
                total[length == 0] = torch.nan
            values.append(total.cpu())
            lengths.append(length.cpu())
            outputs.append(gradients.outputs.detach().cpu())
            advance(len(gradients))
        return KernelProducts(torch.cat(values), torch.cat(lengths), torch.cat(outputs), self.total_length)

    def _gradients(self, samples: Samples) -> Iterator[BatchGradients]:
        """The gradients of all samples; those of the first batches were kept."""
        for place, batch in enumerate(samples.batches(self.kernel.block_size(samples))):
            yield self.kept[place] if place < len(self.kept) else self.kernel.gradients(batch)

    def _parts(self, gradients: BatchGradients) -> tuple[PerSample, Iterator[BatchGradients]]:
        """Lengths, and the gradients that are summed: all outputs at once for 'blocks', else one after another."""
        by = self.kernel.normalizer(gradients, "whitened" if self.weighting == "whitened" else "flat")
        if self.weighting == "blocks":
            return by.norms, iter([gradients])
        lengths = by.norms if self.weighting == "kernel" else (by.norms > 0).to(by.norms)
        mixing = by.mixing
        if self.weighting == "kernel":
            mixing = torch.eye(mixing.shape[1], dtype=mixing.dtype, device=mixing.device).expand_as(mixing)
        ready = gradients if by.is_safe else gradients.double()
        return lengths, (ready.mix(mixing[:, a : a + 1]) for a in range(mixing.shape[1]))
