"""A fit of noisy values by least squares: what a network was trained on, and the kernel's sums over it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinsight.batches import Batch, map_leaves
from kinsight.denoising.smoother import Smoother, estimated_smoother, random_signs
from kinsight.errors import InputError, KinsightError, TargetError, UnknownNameError
from kinsight.kernel import GradientKernel
from kinsight.kernel_products import LEAST_SHARE, kernel_products
from kinsight.labels.votes import known_targets
from kinsight.plan import n_outputs_of
from kinsight.samples import Samples

N_STEPS = 200
"""Products with the kernel at most, where matrices are not formed."""

LEAST_UNEXPLAINED = 1e-10
"""Share of the labels' squares below which what is left of them is rounding."""

NO_FREEDOM = 0.02
"""Share of the labels' number below which a network interpolates: nothing is left to tell their noise by."""


@dataclass(frozen=True, eq=False)
class KernelSums:
    """Sums over the data, read at the samples that are asked about, q of them.

    Args:
        of_one: M_i = sum_j w_j K_ij, [q c c].
        of_labels, of_predictions, of_residuals: sum_j w_j K_ij a_j, [q c], of y and f, centered, and f - y.
        of_probes: of random signs, [q c m].
        predictions: f_i, [q c].
        shares: how far M_i is from singular, [q].
        on_data: f of the data, [n c].
    """

    of_one: Tensor
    of_labels: Tensor
    of_predictions: Tensor
    of_residuals: Tensor
    of_probes: Tensor
    predictions: Tensor
    shares: Tensor
    on_data: Tensor

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
class Noise:
    """What is left of the labels, and what that says of their noise.

    Args:
        value: standard deviation of the noise of a label; nan where nothing is left to tell it by.
        error: its standard error: of a sample of noise like this one, and of the estimated degrees of freedom.
        freedom: degrees of freedom that are left of the labels.
        n_labels: their number, those of weight 0 left out.
        unexplained: sum of their squared residuals.
        share: of the squares of the labels around their mean, that is unexplained.
    """

    value: float
    error: float
    freedom: float
    n_labels: int
    unexplained: float
    share: float


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """What the network was trained on, and how: loss_scale sum_j w_j |f_j - y_j|^2 + weight_decay / 2 |theta|^2.

    Noise is independent, and as large for all labels, whatever their weights. A sample of weight 0 is one that the
    network was not trained on.

    Args:
        labels: y, centered, [n c], float64.
        center: what was taken out of them, [c].
        weights: of the samples in the loss, [n].
        decay: lambda: weight decay over twice the scale of the loss.
        decayed: names of the parameters that decay; None: all.
    """

    labels: Tensor
    center: Tensor
    weights: Tensor
    decay: float
    decayed: tuple[str, ...] | None

    @staticmethod
    def of(
        kernel: GradientKernel,
        samples: Samples,
        weights: Any,
        weight_decay: float,
        loss_scale: float | None,
        decayed: Sequence[str] | None,
    ) -> LeastSquares:
        """That of a data set.

        Raises:
            TargetError: it has no values to be compared with outputs.
            InputError: weights, decay or scale are none.
            UnknownNameError: there is no such parameter.
        """
        targets = known_targets(samples)
        labels = targets.double().reshape(len(targets), -1)
        c = n_outputs_of(kernel, samples)
        if not targets.is_floating_point() or labels.shape[1] != c:
            raise TargetError(
                f"Targets are {str(targets.dtype).removeprefix('torch.')} [{' '.join(map(str, targets.shape))}], and "
                f"the outputs of a sample {c}: denoising is about values that outputs are compared with, floats, one "
                "each."
            )
        if not kernel.output.is_values:
            raise TargetError(
                f"output={kernel.output.name!r} is nothing that values could be compared with, and denoising is about "
                "their differences: use output='logits', the model's own outputs, or a callable."
            )
        found = _weights(weights, len(labels))
        scale = 1 / labels.numel() if loss_scale is None else loss_scale
        if not 0 < scale < float("inf") or not 0 <= weight_decay < float("inf"):
            raise InputError(
                f"loss_scale is {scale} and weight_decay {weight_decay}: one is positive, the other not negative, and "
                "both finite."
            )
        names = _decaying(kernel, decayed)
        decay = 0.0 if names == () else weight_decay / (2 * scale)
        center = labels[found > 0].mean(dim=0)
        return LeastSquares(labels - center, center, found, decay, names if decay else None)

    @property
    def is_trained_on(self) -> Tensor:
        """Which samples have a weight. [n]."""
        return self.weights > 0

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
        signs, predictions = random_signs(n, c, n_probes, seed), torch.zeros_like(self.labels)

        def columns(rows: slice | Tensor, outputs: Tensor) -> Tensor:
            predictions[rows] = outputs.detach().double().cpu()
            said = predictions[rows] - self.center
            unit = torch.eye(c, dtype=torch.float64).expand(len(said), -1, -1)
            labels = self.labels[rows]
            parts = [unit, torch.stack([labels, said, said - labels], dim=2), signs[rows]]
            return (self.weights[rows][:, None, None] * torch.cat(parts, dim=2)).to(outputs.device)

        found = kernel_products(
            kernel, samples, columns, c + 3 + n_probes, asked, weighting="blocks", sample_weights=self.weights,
            progress=progress,
        )  # fmt: skip
        of_one = found.values[:, :, :c]
        most = found.lengths * found.total_length
        least = torch.linalg.svdvals(of_one)[:, -1]
        shares = torch.where(most > 0, c * least / most.clamp(min=1e-300), 0.0)
        of_labels, of_predictions, of_residuals = found.values[:, :, c : c + 3].unbind(dim=2)
        return KernelSums(
            of_one, of_labels, of_predictions, of_residuals, found.values[:, :, c + 3 :], found.outputs.double(),
            shares, predictions,
        )  # fmt: skip

    def exact_factors(self, sums: KernelSums, matrix: Tensor) -> Tensor:
        """D_i = sqrt(sum_j |M_i^-1 w_j K_ij|^2 / c), of the matrix K_QD, [q c n c]. [q]."""
        q, c, n, _ = matrix.shape
        weighted = (matrix * self.weights[:, None]).reshape(q, c, n * c)
        return sums.mean(weighted).square().sum(dim=2).mean(dim=1).sqrt()

    def estimated_smoother(
        self, kernel: GradientKernel, samples: Samples, asked: Samples | None, n_probes: int, seed: int
    ) -> Smoother:
        """By products with the kernel alone.

        Raises:
            InputError: some parameters decay and others do not.
        """
        if self.decayed is not None:
            raise InputError(
                f"Only {len(self.decayed)} of {len(kernel.parameters)} parameters decay: what is left of noise then "
                "takes matrices of all pairs. Use method='exact', with fewer samples if need be."
            )

        def product(vectors: Tensor, queries: Samples | None = None) -> Tensor:
            return kernel_products(
                kernel, samples, lambda rows, outputs: vectors[rows].to(outputs.device), vectors.shape[2], queries,
                weighting="blocks",
            ).values  # fmt: skip

        of_queries = None if asked is None else lambda vectors: product(vectors, asked)
        return estimated_smoother(
            product, of_queries, self.weights, self.labels.shape[1], self.decay,
            n_probes=n_probes, n_steps=N_STEPS, seed=seed, precision=kernel.precision,
        )  # fmt: skip

    def residuals(self, sums: KernelSums) -> Tensor:
        """f - y on the data. [n c]."""
        return sums.on_data - self.center - self.labels

    def noise(self, sums: KernelSums, smoother: Smoother) -> Noise:
        """The noise of labels, from what is left of them."""
        own = self.is_trained_on
        n, unexplained = self.labels[own].numel(), float(self.residuals(sums)[own].square().sum())
        freedom, share = n - smoother.trace, unexplained / max(float(self.labels[own].square().sum()), 1e-300)
        if share <= LEAST_UNEXPLAINED or freedom < NO_FREEDOM * n:
            return Noise(float("nan"), float("nan"), freedom, n, unexplained, share)
        value = (unexplained / freedom) ** 0.5
        error = value * (1 / (2 * freedom) + (smoother.trace_error / (2 * freedom)) ** 2) ** 0.5
        return Noise(value, error, freedom, n, unexplained, share)


def _weights(weights: Any, n: int) -> Tensor:
    """Weights of n samples, [n]; 1 where left out."""
    if weights is None:
        return torch.ones(n, dtype=torch.float64)
    try:
        found = torch.as_tensor(weights).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"sample_weights has to be {n} numbers, and is a {type(weights).__name__}.") from error
    if found.shape != (n,):
        raise InputError(
            f"sample_weights is {list(found.shape)}: there are {n} samples, and each has one weight, [{n}]."
        )
    wrong = ~((found >= 0) & found.isfinite())
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise InputError(
            f"sample_weights has {int(wrong.sum())} of {n} numbers that are negative or not finite, the first, at "
            f"{first}, is {float(found[first]):g}. Leave such samples out, or give them the weight 0."
        )
    if not bool((found > 0).any()):
        raise InputError("sample_weights are all 0: the network was trained on nothing.")
    return found


def _decaying(kernel: GradientKernel, decayed: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of the parameters that decay; None where all do."""
    if decayed is None:
        return None
    unknown = [name for name in decayed if name not in kernel.parameters]
    if unknown:
        raise UnknownNameError(f"There is no parameter {unknown[0]!r} in the kernel: see kernel.parameters.")
    names = tuple(name for name in kernel.parameters if name in set(decayed))
    return None if len(names) == len(kernel.parameters) else names


def matrix(kernel: GradientKernel, rows: Samples, columns: Samples) -> Tensor:
    """K of all pairs of samples and outputs, [n c m c]."""
    taken = [each.take(range(len(each))) for each in (rows, columns)]
    blocks: Tensor = kernel.blocks(taken[0]) if rows is columns else kernel.blocks(*taken)
    return blocks.cpu().double().permute(0, 2, 1, 3)


def over(kernel: GradientKernel, names: Sequence[str]) -> GradientKernel:
    """The same kernel over some of its parameters."""
    return GradientKernel(
        kernel.model, kernel.output, parameters=names, batch_size=kernel.batch_size, max_bytes=kernel.max_bytes
    )


def finer(kernel: GradientKernel, *data: Samples | None) -> tuple[GradientKernel, tuple[Samples | None, ...]] | None:
    """A copy of the kernel's model, and all samples, in float64; None where there is none, or it is there already.

    Small eigenvalues of matrices of all pairs are lost in the rounding of float32: those of inputs far from 0, say.
    """
    if kernel.precision == torch.float64 or kernel.device.type == "mps":
        return None

    def wide(samples: Samples | None) -> Samples | None:
        if samples is None:
            return None
        batch = samples.take(range(len(samples)))
        return Samples(Batch(map_leaves(_doubled, batch.inputs), batch.ids, batch.targets))

    try:
        model = copy.deepcopy(kernel.model).double()
        found = GradientKernel(model, kernel.output, parameters=list(kernel.parameters), max_bytes=kernel.max_bytes)
        converted = tuple(wide(samples) for samples in data)
        found.gradients(next(each for each in converted if each is not None).take([0]))
    except (KinsightError, RuntimeError, TypeError, ValueError, NotImplementedError):  # no copy, or float32 inside
        return None
    return (found, converted) if found.precision == torch.float64 else None


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def moves_along_itself(kernel: GradientKernel, samples: Samples, decayed: Sequence[str] | None) -> Tensor:
    """g_i . theta, over the parameters that decay. [n c]."""
    names = list(kernel.parameters) if decayed is None else list(decayed)
    directions = {name: kernel.parameters[name].detach()[None].double() for name in names}
    parts = [kernel.gradients(batch).dot(directions)[:, :, 0] for batch in samples.batches(kernel.block_size(samples))]
    return torch.cat(parts).cpu()
