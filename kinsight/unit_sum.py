"""The sum of the unit gradients of a data set, and reading it: u(x) . S adds up the similarities of x to all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kinsight.axes import PerSample
from kinsight.contractions import in_float64
from kinsight.errors import ModelError
from kinsight.forward_mode import output_moves
from kinsight.kernel import GradientKernel, Normalization
from kinsight.samples import Batch, Samples
from kinsight.unit_gradients import UnitGradients

Route = Literal["auto", "forward", "captures"]
"""How the sum is read: in forward mode, from captures as it was made, or whichever is cheaper."""

_FEW = 8
"""Samples that are read both ways before forward mode is believed."""


@dataclass(eq=False)
class UnitSum:
    """S_a = sum_j u_a(x_j), one direction an output, in float64.

    Args:
        kernel: the gradient kernel.
        normalization: of the gradients.
        max_kept: bytes of unit gradients that are kept, so that their samples are read without another pass.
        directions: S, name -> [c *shape].
        kept: the unit gradients of the first batches.
        mixings: what normalized each batch, [n a c].
    """

    kernel: GradientKernel
    normalization: Normalization
    max_kept: int = 0
    directions: dict[str, Tensor] = field(default_factory=dict)
    kept: list[UnitGradients] = field(default_factory=list)
    mixings: list[Tensor] = field(default_factory=list)
    _n_bytes: int = 0

    def add(self, batch: Batch) -> None:
        """Add the unit gradients of a batch."""
        unit = self.kernel.unit_gradients(batch, self.normalization)
        for name, value in unit.sum().items():
            known = self.directions.get(name)
            self.directions[name] = in_float64(value) if known is None else known + in_float64(value)
        is_next = len(self.kept) == len(self.mixings)
        if is_next and self._n_bytes + unit.n_bytes <= self.max_kept:
            self.kept.append(unit)
            self._n_bytes += unit.n_bytes
        self.mixings.append(unit.mixing)

    def read(self, samples: Samples, advance: Callable[[int], None]) -> tuple[PerSample, str]:
        """u(x) . S of any samples from their captures; nan where the gradient is zero. And the route taken."""
        parts: list[Tensor] = []
        for batch in samples.batches(self.kernel.block_size(samples)):
            parts.append(self._from_captures(batch))
            advance(len(batch))
        return torch.cat(parts), "captures"

    def read_own(self, samples: Samples, route: Route, advance: Callable[[int], None]) -> tuple[PerSample, str]:
        """u(x) . S of the samples that were added; nan where the gradient is zero. And the route taken.

        Forward mode is compared with captures on a few samples, and all values with what has to hold exactly:
        sum_n N_S(x_n) = sum_n u(x_n) . S = |S|^2.
        """
        known = [self._dot(unit) for unit in self.kept]
        advance(sum(len(part) for part in known))
        if len(known) == len(self.mixings):
            return torch.cat(known), "kept captures"
        how = "captures"
        values = None
        if route == "forward" or (route == "auto" and self.mixings[0].shape[1] == 1):
            how = "forward mode"
            values = self._read_forward(samples, known, route, advance)
        if values is None:
            how = "captures"
            values = torch.cat([*known, *(self._from_captures(batch) for batch in self._rest(samples, advance))])
        return values, f"kept captures, {how}" if known else how

    def _rest(self, samples: Samples, advance: Callable[[int], None]) -> Iterator[Batch]:
        """The batches whose unit gradients were not kept."""
        for place, batch in enumerate(samples.batches(self.kernel.block_size(samples))):
            if place >= len(self.kept):
                yield batch
                advance(len(batch))

    def _read_forward(
        self, samples: Samples, known: list[Tensor], route: Route, advance: Callable[[int], None]
    ) -> Tensor | None:
        """What is known and the rest in forward mode; None where there is none that agrees with the backward mode."""
        parts = list(known)
        for batch in self._rest(samples, advance):
            mixing = self.mixings[len(parts)]
            if route == "auto" and len(parts) == len(known) and not self._agrees(batch, mixing):
                return None
            try:
                parts.append(self._forward(batch, mixing))
            except (NotImplementedError, RuntimeError):  # an operation without a forward mode, in this batch only
                if route == "forward":
                    raise
                return None
        values = torch.cat(parts)
        return values if self._adds_up(values, is_required=route == "forward") else None

    def _adds_up(self, values: Tensor, *, is_required: bool) -> bool:
        """Whether values add up to |S|^2."""
        square = sum(float(value.square().sum()) for value in self.directions.values())
        scale = max(square, float(values.nan_to_num().abs().sum()))
        if abs(float(values.nansum()) - square) <= self._tolerance * scale:
            return True
        if is_required:
            raise ModelError(
                f"The soft counts read in forward mode add up to {float(values.nansum()):.6g}, and must to "
                f"{square:.6g}: the model's forward-mode derivative is not its backward one (hooks, a custom backward "
                "function). Use route='captures'."
            )
        return False

    @property
    def _tolerance(self) -> float:
        precision = self.kernel.precision
        return 1e-9 if precision == torch.float64 else 1e-4 if precision == torch.float32 else 1e-2

    def _agrees(self, batch: Batch, mixing: Tensor) -> bool:
        """Whether forward mode exists for this model and gives what captures give.

        Not so for gradients that are altered on their way back: by hooks, by custom backward functions.
        """
        few = batch[:_FEW]
        truth = self._from_captures(few)
        try:
            found = self._forward(few, mixing[:_FEW])
        except (NotImplementedError, RuntimeError):
            return False
        scale = float(truth.nan_to_num().abs().max())
        return bool(torch.allclose(found, truth, rtol=0, atol=self._tolerance * scale, equal_nan=True))

    def _from_captures(self, batch: Batch) -> Tensor:
        return self._dot(self.kernel.unit_gradients(batch, self.normalization))

    def _dot(self, unit: UnitGradients) -> Tensor:
        return unit.dot(self.directions).masked_fill(~unit.is_defined, torch.nan).cpu()

    def _forward(self, batch: Batch, mixing: Tensor) -> Tensor:
        """sum_ac mixing[n, a, c] (grad f_c . S_a). [n]."""
        kernel, moved = self.kernel, batch.to(self.kernel.device)
        moves = [
            output_moves(kernel.model, moved, kernel.output, kernel.parameters, _output(self.directions, a))
            for a in range(mixing.shape[1])
        ]
        values = (mixing * in_float64(torch.stack(moves, dim=1))).sum(dim=(1, 2))
        return values.masked_fill(~(mixing != 0).flatten(1).any(dim=1), torch.nan).cpu()


def _output(directions: Mapping[str, Tensor], output: int) -> dict[str, Tensor]:
    return {name: value[output] for name, value in directions.items()}
