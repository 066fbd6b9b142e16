"""The sum of the unit gradients of a data set, and reading it: u(x) . S adds up the similarities of x to all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kinsight.axes import Mixing, PerSample
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.differentiation.forward_mode import output_moves
from kinsight.differentiation.unit_gradients import Normalizer
from kinsight.errors import ModelError
from kinsight.gradients.contractions import add_in_float64, in_float64
from kinsight.kernel import GradientKernel
from kinsight.normalization import Normalization
from kinsight.samples import Batch, Samples

Route = Literal["auto", "forward", "captures"]
"""How the sum is read: in forward mode, from captures as it was made, or from captures that were kept."""


@dataclass(eq=False)
class UnitSum:
    """S_a = sum_j u_a(x_j), one direction an output, in float64.

    Unit gradients are linear maps of the gradients: u_a = sum_c M_ac g_c. They are never written down: sums take
    sum_jc M_jac g_jc, and reading takes sum_ac M_ac (g_c . S_a). `kernel_products` does the same for
    columns of any numbers in place of ones; what is only here is another way to read the sum, in forward mode, and the
    check that it is the same.

    Args:
        kernel: the gradient kernel.
        normalization: of the gradients.
        max_kept: bytes of gradients that are kept, so that their samples are read without another pass.
        directions: S, name -> [c *shape].
        kept: the gradients of the first batches.
        normalizers: of each batch; M is their `mixing`.
    """

    kernel: GradientKernel
    normalization: Normalization
    max_kept: int = 0
    directions: dict[str, Tensor] = field(default_factory=dict)
    kept: list[BatchGradients] = field(default_factory=list)
    normalizers: list[Normalizer] = field(default_factory=list)
    _n_bytes: int = 0

    def add(self, batch: Batch) -> None:
        """Add the unit gradients of a batch."""
        gradients = self.kernel.gradients(batch)
        by = self.kernel.normalizer(gradients, self.normalization)
        ready, mixing = _ready(gradients, by)
        for name, value in ready.weighted_sum(mixing.transpose(0, 1)).items():
            known = self.directions.get(name)
            self.directions[name] = in_float64(value) if known is None else add_in_float64(known, value)
        is_next = len(self.kept) == len(self.normalizers)
        if is_next and self._n_bytes + gradients.n_bytes <= self.max_kept:
            self.kept.append(gradients.owned())
            self._n_bytes += gradients.n_bytes
        self.normalizers.append(by)

    def read(self, samples: Samples, advance: Callable[[int], None]) -> tuple[PerSample, str]:
        """u(x) . S of any samples from their captures; nan where the gradient is zero. And the route taken."""
        parts: list[Tensor] = []
        for batch in samples.batches(self.kernel.block_size(samples)):
            parts.append(self._from_captures(batch, None))
            advance(len(batch))
        return torch.cat(parts), "captures"

    def read_own(self, samples: Samples, route: Route, advance: Callable[[int], None]) -> tuple[PerSample, str]:
        """u(x) . S of the samples that were added; nan where the gradient is zero. And the route taken.

        Raises:
            ModelError: the values of forward mode do not add up.
        """
        known = [self._dot(gradients, by) for gradients, by in zip(self.kept, self.normalizers, strict=False)]
        advance(sum(len(part) for part in known))
        if len(known) == len(self.normalizers):
            return torch.cat(known), "kept captures"
        how = "forward mode" if route == "forward" else "captures"
        parts = list(known)
        for batch in self._rest(samples, advance):
            read = self._forward if route == "forward" else self._from_captures
            parts.append(read(batch, self.normalizers[len(parts)]))
        values = torch.cat(parts)
        if route == "forward":
            self._check(values)
        return values, f"kept captures, {how}" if known else how

    def _rest(self, samples: Samples, advance: Callable[[int], None]) -> Iterator[Batch]:
        """The batches whose unit gradients were not kept."""
        for place, batch in enumerate(samples.batches(self.kernel.block_size(samples))):
            if place >= len(self.kept):
                yield batch
                advance(len(batch))

    def _check(self, values: PerSample) -> None:
        """Raise where values do not add up to what has to hold exactly: sum_n u(x_n) . S = |S|^2."""
        precision = self.kernel.precision
        tolerance = 1e-9 if precision == torch.float64 else 1e-4 if precision == torch.float32 else 1e-2
        square = sum(float(value.square().sum()) for value in self.directions.values())
        scale = max(square, float(values.nan_to_num().abs().sum()))
        if abs(float(values.nansum()) - square) > tolerance * scale:
            raise ModelError(
                f"The soft counts read in forward mode add up to {float(values.nansum()):.6g}, and must to "
                f"{square:.6g}: the model's forward-mode derivative is not its backward one (hooks, a custom backward "
                "function). Use route='captures'."
            )

    def _from_captures(self, batch: Batch, by: Normalizer | None) -> PerSample:
        gradients = self.kernel.gradients(batch)
        return self._dot(gradients, by or self.kernel.normalizer(gradients, self.normalization))

    def _dot(self, gradients: BatchGradients, by: Normalizer) -> PerSample:
        """sum_ac M[n, a, c] (g_c . S_a). [n]."""
        ready, mixing = _ready(gradients, by)
        products = ready.dot(self.directions).to(mixing)
        return _where_defined((mixing * products.transpose(1, 2)).sum(dim=(1, 2)), by)

    def _forward(self, batch: Batch, by: Normalizer) -> PerSample:
        """sum_ac M[n, a, c] (grad f_c . S_a). [n]."""
        kernel, moved = self.kernel, batch.to(self.kernel.device)
        try:
            moves = [
                output_moves(kernel.model, moved, kernel.output, kernel.parameters, _output(self.directions, a))
                for a in range(by.mixing.shape[1])
            ]
        except (NotImplementedError, RuntimeError) as error:
            raise ModelError(
                f"The model has no forward-mode derivative: {str(error).splitlines()[0]}. Use route='captures'."
            ) from error
        products = in_float64(torch.stack(moves, dim=1))  # [n a c]
        return _where_defined((by.mixing * products.to(by.mixing)).sum(dim=(1, 2)), by)


MOST_SPREAD = 10.0
"""Spread of a map above which it is applied to the gradients before anything is added up: it would magnify the rounding
of sums as much."""


def _ready(gradients: BatchGradients, by: Normalizer) -> tuple[BatchGradients, Mixing]:
    """What is added up, and the map that is still to be applied, [n a c]."""
    if not by.is_safe:  # 1 / |g| would leave the range of float32
        gradients = gradients.double()
    if by.spread is None or bool((by.spread <= MOST_SPREAD).all()):
        return gradients, by.mixing
    unit = torch.eye(by.mixing.shape[1], dtype=by.mixing.dtype, device=by.mixing.device)
    return gradients.mix(by.mixing), unit.expand(len(by.norms), -1, -1)


def _where_defined(values: PerSample, by: Normalizer) -> PerSample:
    """nan where the gradient is zero."""
    return values.masked_fill(~by.is_defined, torch.nan).cpu()


def _output(directions: Mapping[str, Tensor], output: int) -> dict[str, Tensor]:
    return {name: value[output] for name, value in directions.items()}
