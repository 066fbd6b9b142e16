"""A fit of noisy values by least squares: what a network was trained on, and the kernel's sums over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinsight.errors import InputError, TargetError, UnknownNameError
from kinsight.kernel import GradientKernel
from kinsight.kernel_products import kernel_products
from kinsight.samples import Samples
from kinsight.smoother import Smoother, estimated_smoother, random_signs
from kinsight.votes import known_targets

LEAST_SHARE = 1e-3
"""Sums of the kernel that are less than so much of what they would be, were all gradients parallel, divide nothing."""

N_STEPS = 200
"""Products with the kernel at most, where matrices are not formed."""

LEAST_UNEXPLAINED, LEAST_FREEDOM = 1e-4, 0.02
"""Shares of the squares of labels, and of their number, below which a network interpolates: nothing is left to tell the
noise by."""


@dataclass(frozen=True, eq=False)
class KernelSums:
    """Sums over the data, read at the samples that are asked about, q of them.

    Args:
        of_one: M_i = sum_j w_j K_ij, [q c c].
        of_labels, of_predictions, of_residuals: sum_j w_j K_ij a_j, [q c], of y and f, centered, and f - y.
        of_probes: of random signs, [q c m].
        predictions: f_i, [q c].
        shares: how far M_i is from singular, [q].
    """

    of_one: Tensor
    of_labels: Tensor
    of_predictions: Tensor
    of_residuals: Tensor
    of_probes: Tensor
    predictions: Tensor
    shares: Tensor

    def mean(self, sums: Tensor) -> Tensor:
        """M_i^-1 sums_i, nan where M_i is as good as singular. [q c] or [q c m]."""
        is_sure = self.shares >= LEAST_SHARE
        unit = torch.eye(self.of_one.shape[1], dtype=self.of_one.dtype)
        divisor = torch.where(is_sure[:, None, None], self.of_one, unit)
        found: Tensor = torch.linalg.solve(divisor, sums if sums.dim() == 3 else sums[:, :, None])
        found = found.masked_fill(~is_sure[:, None, None], torch.nan)
        return found if sums.dim() == 3 else found[:, :, 0]

    def estimated_factors(self) -> tuple[Tensor, Tensor]:
        """D_i = sqrt(E |M_i^-1 sum_j w_j K_ij v_j|^2 / c) over random signs v, and its standard error. [q] each."""
        squares = self.mean(self.of_probes).square().mean(dim=1)
        factors = squares.mean(dim=1).sqrt()
        return factors, squares.std(dim=1) / (2 * squares.shape[1] ** 0.5 * factors)


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """What the network was trained on, and how.

    Args:
        labels: y, centered, [n c], float64.
        center: what was taken out of them, [c].
        weights: of the samples in the loss, [n].
        decay: lambda: weight decay over twice the scale of the loss.
        predictions: f on the data, filled while sums are made, [n c].
    """

    labels: Tensor
    center: Tensor
    weights: Tensor
    decay: float
    predictions: Tensor

    @staticmethod
    def of(
        kernel: GradientKernel, samples: Samples, weights: Any, weight_decay: float, loss_scale: float | None
    ) -> LeastSquares:
        """That of a data set.

        Raises:
            TargetError: it has no values to be compared with outputs.
            InputError: weights, decay or scale are none.
        """
        targets = known_targets(samples)
        labels = targets.double().reshape(len(targets), -1)
        c = kernel.outputs(samples.take([0])).shape[1]
        if not targets.is_floating_point() or labels.shape[1] != c:
            raise TargetError(
                f"Targets are {str(targets.dtype).removeprefix('torch.')} [{' '.join(map(str, targets.shape))}], and "
                f"the outputs of a sample {c}: denoising is about values that outputs are compared with, one each."
            )
        found = torch.ones(len(labels), dtype=torch.float64) if weights is None else torch.as_tensor(weights).double()
        if found.shape != (len(labels),) or not bool((found >= 0).all()) or not bool(found.isfinite().all()):
            raise InputError(f"sample_weights has to be {len(labels)} numbers, none of them negative.")
        scale = 1 / labels.numel() if loss_scale is None else loss_scale
        if not scale > 0 or not weight_decay >= 0:
            raise InputError(
                f"loss_scale is {scale} and weight_decay {weight_decay}: one is positive, the other not negative."
            )
        center = labels.mean(dim=0)
        return LeastSquares(labels - center, center, found, weight_decay / (2 * scale), torch.zeros_like(labels))

    def sums(
        self,
        kernel: GradientKernel,
        samples: Samples,
        asked: Samples | None,
        n_probes: int,
        seed: int,
        *,
        progress: bool,
    ) -> KernelSums:
        """All sums, in linear time."""
        n, c = self.labels.shape
        signs = random_signs(n, c, n_probes, seed)

        def columns(rows: slice | Tensor, outputs: Tensor) -> Tensor:
            said = outputs.detach().double().cpu() - self.center
            self.predictions[rows] = said + self.center
            unit = torch.eye(c, dtype=torch.float64).expand(len(said), -1, -1)
            labels = self.labels[rows]
            parts = [unit, torch.stack([labels, said, said - labels], dim=2), signs[rows]]
            return (self.weights[rows][:, None, None] * torch.cat(parts, dim=2)).to(outputs.device)

        found = kernel_products(
            kernel, samples, columns, c + 3 + n_probes, asked, weighting="blocks", progress=progress
        )
        of_one = found.values[:, :, :c]
        most = found.lengths * found.total_length * self.weights.mean()
        least = torch.linalg.svdvals(of_one)[:, -1]
        shares = torch.where(most > 0, c * least / most.clamp(min=1e-300), 0.0)
        of_labels, of_predictions, of_residuals = found.values[:, :, c : c + 3].unbind(dim=2)
        of_probes = found.values[:, :, c + 3 :]
        return KernelSums(of_one, of_labels, of_predictions, of_residuals, of_probes, found.outputs.double(), shares)

    def exact_factors(self, sums: KernelSums, matrix: Tensor) -> Tensor:
        """D_i = sqrt(sum_j |M_i^-1 w_j K_ij|^2 / c), of the matrix K_QD, [q c n c]. [q]."""
        q, c, n, _ = matrix.shape
        weighted = (matrix * self.weights[:, None]).reshape(q, c, n * c)
        return sums.mean(weighted).square().sum(dim=2).mean(dim=1).sqrt()

    def estimated_smoother(
        self, kernel: GradientKernel, samples: Samples, asked: Samples | None, n_probes: int, seed: int
    ) -> Smoother:
        """By products with the kernel alone."""

        def product(vectors: Tensor, queries: Samples | None = None) -> Tensor:
            return kernel_products(
                kernel, samples, lambda rows, outputs: vectors[rows].to(outputs.device), vectors.shape[2], queries,
                weighting="blocks",
            ).values  # fmt: skip

        of_queries = None if asked is None else lambda vectors: product(vectors, asked)
        return estimated_smoother(
            product, of_queries, self.weights, self.labels.shape[1], self.decay,
            n_probes=n_probes, n_steps=N_STEPS, seed=seed,
        )  # fmt: skip

    @property
    def residuals(self) -> Tensor:
        """f - y on the data. [n c]."""
        return self.predictions - self.center - self.labels

    @property
    def unexplained(self) -> float:
        """Sum of the squared residuals on the data."""
        return float(self.residuals.square().sum())

    @property
    def is_interpolated(self) -> bool:
        """Whether next to nothing of the labels is left unexplained."""
        return self.unexplained <= LEAST_UNEXPLAINED * float(self.labels.square().sum())

    def noise(self, smoother: Smoother) -> tuple[float, float]:
        """The standard deviation of the noise of a label, and the degrees of freedom it was estimated with."""
        freedom = self.labels.numel() - smoother.trace
        if self.is_interpolated or freedom < LEAST_FREEDOM * self.labels.numel():
            return float("nan"), freedom
        return (self.unexplained / freedom) ** 0.5, freedom


def matrix(kernel: GradientKernel, rows: Samples, columns: Samples) -> Tensor:
    """K of all pairs of samples and outputs, [n c m c]."""
    taken = [each.take(range(len(each))) for each in (rows, columns)]
    blocks: Tensor = kernel.blocks(taken[0]) if rows is columns else kernel.blocks(*taken)
    return blocks.cpu().double().permute(0, 2, 1, 3)


def moves_along_itself(kernel: GradientKernel, samples: Samples, decayed: Sequence[str] | None) -> Tensor:
    """g_i . theta, over the parameters that decay. [n c].

    Raises:
        UnknownNameError: there is no such parameter.
    """
    names = list(kernel.parameters) if decayed is None else list(decayed)
    unknown = [name for name in names if name not in kernel.parameters]
    if unknown:
        raise UnknownNameError(f"There is no parameter {unknown[0]!r} in the kernel: see kernel.parameters.")
    directions = {name: kernel.parameters[name].detach()[None].double() for name in names}
    parts = [kernel.gradients(batch).dot(directions)[:, :, 0] for batch in samples.batches(kernel.block_size(samples))]
    return torch.cat(parts).cpu()
