"""Self-denoising: how much of the noise of labels is left in what a network predicts, and how far that can be believed.

A network that minimizes the squared error of noisy labels y = truth + e has, at a stationary point, exactly

    f_i - E_k[y]_i = (f_i - E_k[f]_i) + E_k[f - y]_i    with    E_k[a]_i = (sum_j K_ij)^-1 sum_j K_ij a_j

the last term being 0: what it predicts is a mean of labels, and of their noise, but for a shift that needs no labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from kinsight.batches import checked_count
from kinsight.denoising.assumptions import Check, checks
from kinsight.denoising.least_squares import KernelSums, LeastSquares, Noise, finer, matrix, moves_along_itself, over
from kinsight.denoising.misfit import Misfit, misfit
from kinsight.denoising.smoother import Pair, Smoother, exact_smoother
from kinsight.errors import UnknownNameError
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.samples import Id, Samples, queries_of

MAX_EXACT = 4096
"""Samples times outputs up to which matrices are formed."""

Method = Literal["auto", "exact", "estimate"]


@dataclass(frozen=True, eq=False)
class Denoising:
    """What a network makes of the noise of labels.

    Args:
        ids: of the samples, n of them.
        predictions: f_i, [n d].
        means: E_k[y]_i, the labels around each sample, weighted by the kernel, [n d].
        shifts: f_i - E_k[f]_i, [n d].
        residuals: E_k[f - y]_i, without what weight decay explains, [n d]: 0 at a stationary point.
        factors: D_i, the standard deviation of E_k[e]_i over that of e, [n]; nan where the kernel's sums cancel.
        factors_error: standard error of that, [n]; None where it is exact.
        noise_left: |H_i|, the standard deviation of the noise in f_i over that of e, to first order, [n].
        noise_left_error: standard error of that, [n]; None where it is exact.
        shares: smallest singular value of sum_j K_ij over what it would be if all gradients were parallel, [n].
        noise: standard deviation of the noise of one label, estimated without clean labels; nan where the network
            interpolates. Misfit biases it up, a network that follows its labels closely down: see the checks.
        noise_error: its standard error, were that the only trouble.
        degrees_of_freedom: N d - Tr(2H - H H^T), what is left of the labels to estimate it by.
        checks: the assumptions that all this rests on.
        method: 'exact' or 'estimate'.
    """

    ids: tuple[Id, ...]
    predictions: Tensor
    means: Tensor
    shifts: Tensor
    residuals: Tensor
    factors: Tensor
    factors_error: Tensor | None
    noise_left: Tensor
    noise_left_error: Tensor | None
    shares: Tensor
    noise: float
    noise_error: float
    degrees_of_freedom: float
    checks: tuple[Check, ...]
    method: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def effective_neighbors(self) -> Tensor:
        """1 / D_i^2: so many labels of equal weight would average as well. [n]."""
        return 1 / self.factors.square()

    @property
    def predicted_errors(self) -> Tensor:
        """Standard deviation of the noise in each prediction, in the unit of labels; misfit comes on top. [n]."""
        return self.noise * self.noise_left

    @property
    def is_credible(self) -> bool:
        """Whether every assumption holds."""
        return all(check.is_met for check in self.checks)

    def summary(self) -> str:
        """In words."""
        known = self.factors[~self.factors.isnan()]
        left = float(self.noise_left.nanmedian())
        text = f"The median prediction keeps {left:.1%} of the noise of a label"
        if len(known):
            text += f"; the mean of labels around a sample {float(known.median()):.1%}"
        if self.noise == self.noise:
            told = f"{self.noise:.3g} ± {self.noise_error:.1g}"
            text += f". Labels are off by {told} (standard deviation), as estimated without clean ones"
        failed = [check.name for check in self.checks if not check.is_met]
        if failed:
            return f"{text}. Do not believe this: it rests on {', '.join(failed)}, which is not so here."
        return f"{text}. All checks hold."

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a sample."""
        columns: dict[str, list[Any]] = {
            "prediction": self.predictions.tolist(), "mean": self.means.tolist(), "shift": self.shifts.tolist(),
            "residual": self.residuals.tolist(), "factor": self.factors.tolist(),
            "effective_neighbors": self.effective_neighbors.tolist(), "noise_left": self.noise_left.tolist(),
            "predicted_error": self.predicted_errors.tolist(),
        }  # fmt: skip
        errors = {"factor_error": self.factors_error, "noise_left_error": self.noise_left_error}
        columns |= {name: values.tolist() for name, values in errors.items() if values is not None}
        for row, id_ in enumerate(self.ids):
            yield {"id": id_, **{name: column[row] for name, column in columns.items()}}


def denoise(
    kernel: GradientKernel,
    data: Any,
    queries: Any = None,
    *,
    sample_weights: Any = None,
    weight_decay: float = 0.0,
    loss_scale: float | None = None,
    decayed: Sequence[str] | None = None,
    method: Method = "auto",
    n_probes: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Denoising:
    """How a network that was trained on noisy values averages their noise, around every sample.

    It is assumed to minimize loss_scale sum_j w_j |f_j - y_j|^2 + weight_decay / 2 |theta|^2 on this very data; the
    checks of the result say how far it does.

    Args:
        kernel: the gradient kernel of the network, over the outputs that are compared with labels.
        data: whatever `Samples` takes, with values [n] or [n d] as targets: what the network was trained on.
        queries: the samples that are asked about; those of the data where left out.
        sample_weights: w, [n]; 1 where left out. A sample of weight 0 was not trained on. Noise is as large for all.
        weight_decay: as in torch.optim.SGD. That of AdamW is not of this form: then only residuals mean something.
        loss_scale: of the squared errors; 1 / (n d) where left out, as in torch.nn.MSELoss.
        decayed: names of the parameters that decay; all where left out. Some of them: by matrices only.
        method: 'exact' forms the matrices of all pairs; 'estimate' takes time linear in the number of samples, and
            random probes, whose spread gives the errors; 'auto': exact up to 4,096 samples times outputs.
        n_probes: of estimates, off by sqrt(1 / (2 n_probes)), 16 or more; and draws of noise to compare residuals with.
        seed: of the probes.
        progress: whether to show a progress bar.

    Raises:
        TargetError: no targets, classes, or not as many values as outputs.
        InputError: weights, decay or scale are none; only some parameters decay, and there are too many samples.
        UnknownNameError: there is no parameter of a name in `decayed`, or no such method.

    Reference:
        Charpiat, Girard, Felardos, Tarabalka (2019), "Input Similarity from the Neural Network Perspective".
    """
    _check_asked(kernel, method, n_probes)
    samples = Samples.wrap(data)
    asked = None if (rows := queries_of(samples, data, queries)) is samples else rows
    fit = LeastSquares.of(kernel, samples, sample_weights, weight_decay, loss_scale, decayed)
    is_exact = method == "exact" or (method == "auto" and fit.labels.numel() <= MAX_EXACT)
    sums = fit.sums(kernel, samples, asked, n_probes=0 if is_exact else n_probes, seed=seed, progress=progress)
    if is_exact:
        factors, factors_error, smoother = _exactly(kernel, samples, asked, fit, sums, n_probes, seed)
    else:
        factors, factors_error = sums.estimated_factors()
        smoother = fit.estimated_smoother(kernel, samples, asked, n_probes, seed)
    residuals, noise = _residuals(kernel, samples if asked is None else asked, fit, sums), fit.noise(sums, smoother)
    missed = _missed(kernel, samples, fit, fit.residuals(sums), smoother, noise, seed)
    return Denoising(
        (samples if asked is None else asked).ids, sums.predictions, sums.mean(sums.of_labels) + fit.center,
        sums.predictions - fit.center - sums.mean(sums.of_predictions), residuals, factors, factors_error,
        smoother.noise_left, smoother.error, sums.shares, noise.value, noise.error, noise.freedom,
        tuple(checks(noise, residuals, factors, smoother, missed)), "exact" if is_exact else "estimate",
    )  # fmt: skip


def _check_asked(kernel: GradientKernel, method: Method, n_probes: int) -> None:
    check_kernel(kernel)
    if method not in ("auto", "exact", "estimate"):
        raise UnknownNameError(f"method {method!r} is unknown: use 'auto', 'exact' or 'estimate'.")
    checked_count("n_probes", n_probes, 2)  # whose spread gives an error


def _exactly(
    kernel: GradientKernel,
    samples: Samples,
    asked: Samples | None,
    fit: LeastSquares,
    sums: KernelSums,
    n_probes: int,
    seed: int,
) -> tuple[Tensor, None, Smoother]:
    """Denoising factors and the smoother, from matrices of all pairs, of float64 where the model can be copied so."""
    if (copied := finer(kernel, samples, asked)) is not None:
        kernel, (wide, asked) = copied
        assert wide is not None
        samples = wide

    def pair(of: GradientKernel) -> Pair:
        return Pair(matrix(of, samples, samples), None if asked is None else matrix(of, asked, samples))

    if fit.decayed is None:
        whole = decaying = pair(kernel)
        free = None
    else:
        decaying = pair(over(kernel, fit.decayed))
        free = pair(over(kernel, [name for name in kernel.parameters if name not in fit.decayed]))
        whole = decaying + free
    smoother = exact_smoother(
        decaying, free, fit.weights, fit.decay, kernel.precision, n_probes=n_probes, seed=seed
    )  # fmt: skip
    return fit.exact_factors(sums, whole.asked), None, smoother


def _residuals(kernel: GradientKernel, asked: Samples, fit: LeastSquares, sums: KernelSums) -> Tensor:
    """E_k[f - y], without what weight decay explains. [q c]."""
    residuals = sums.mean(sums.of_residuals)
    if fit.decay:
        residuals += fit.decay * sums.mean(moves_along_itself(kernel, asked, fit.decayed))
    return residuals


def _missed(
    kernel: GradientKernel,
    samples: Samples,
    fit: LeastSquares,
    residuals: Tensor,
    smoother: Smoother,
    noise: Noise,
    seed: int,
) -> Misfit | None:
    """Whether there is misfit, where there is noise."""
    if noise.value != noise.value:
        return None
    return misfit(kernel, samples, residuals, smoother.noise, fit.is_trained_on, seed=seed)
