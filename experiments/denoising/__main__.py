"""Noise left in predictions, foretold and measured: `python -m experiments.denoising [setting ...]`.

Networks learn from noisy labels by how much digits were moved. The noise is drawn anew 20 times, with the inputs and
the start of the training as they are; what changes in predictions is compared with what `kinsight.denoise` foretells
from the first network alone. Goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.denoising.moved import WEIGHT_DECAY, Moved, fit, moved, network
from experiments.records import run_seeds
from kinsight import GradientKernel, Samples, denoise
from kinsight.agreement import ranked
from kinsight.denoising.denoise import Denoising
from kinsight.denoising.least_squares import LeastSquares

N_TRAIN, N_TEST, N_DRAWS, N_MORE, N_BOOTSTRAP = 1000, 300, 20, 400, 1000
TASKS, LEVELS = ("rotated", "translated"), (0.1, 0.3, 1.0)
REGIMES = ("early-stopped", "converged", "memorized")
SETTINGS = {
    f"{task}-{level:g}-{regime}": (task, level, regime) for task in TASKS for level in LEVELS for regime in REGIMES
}
"""Task, noise over the spread of the truth, and how long is trained."""


def run(setting: str, seed: int) -> dict[str, Any]:
    """One setting: the first network foretells what 20 show."""
    task, level, regime = SETTINGS[setting]
    data, test = moved(task, N_TRAIN, seed), moved(task, N_TEST, seed, is_test=True)
    generator = torch.Generator().manual_seed(10_000 + seed)
    noise = level * torch.randn(N_DRAWS, *data.truth.shape, generator=generator, dtype=torch.float64)
    start = network(regime, data.truth.shape[1], seed)
    if regime == "converged":  # all draws begin where the first one ended, near one and the same minimum
        fit(start, data.x, data.truth + noise[0], regime)
    models, gradients = [], []
    for draw in noise:
        model = copy.deepcopy(start)
        gradients.append(fit(model, data.x, data.truth + draw, regime))
        models.append(model)
    kernel, decay = GradientKernel(models[0]), WEIGHT_DECAY[regime]
    foretold = denoise(kernel, Samples(data.x, data.truth + noise[0]), weight_decay=decay, method="exact")
    of_test = denoise(kernel, Samples(data.x, data.truth + noise[0]), test.x, weight_decay=decay, method="exact")
    more = level * torch.randn(N_MORE, *data.truth.shape, generator=generator, dtype=torch.float64)
    fixed, fixed_more = (torch.stack([_mean_of_noise(kernel, data, draw) for draw in each]) for each in (noise, more))
    refit = torch.stack([_mean_of_noise(GradientKernel(m), data, draw) for m, draw in zip(models, noise, strict=True)])
    return {
        "largest_gradient": max(gradients), "is_credible": foretold.is_credible,
        "failed": [check.name for check in foretold.checks if not check.is_met],
        "median_factor": float(foretold.factors.nanmedian()), "median_noise_left": float(foretold.noise_left.median()),
        "estimated_noise": foretold.noise, "noise": level, "realized_noise": float(noise[0].square().mean().sqrt()),
        "decomposition_off": _decomposition(kernel, models[0], data, noise[0], foretold),
        "means_kernel_fixed": _ratio(fixed, level * foretold.factors),
        f"means_kernel_fixed_{N_MORE}_draws": _ratio(fixed_more, level * foretold.factors),
        "means_kernel_refit": _ratio(refit, level * foretold.factors),
        "predictions": _ratio(_said(models, data.x), level * foretold.noise_left),
        "predictions_of_test": _ratio(_said(models, test.x), level * of_test.noise_left),
        "predictions_by_factor": _ratio(_said(models, data.x), level * foretold.factors),
        "errors": _errors(models[0], data, foretold), "errors_of_test": _errors(models[0], test, of_test),
    }  # fmt: skip


def _mean_of_noise(kernel: GradientKernel, data: Moved, labels: Tensor) -> Tensor:
    """E_k of labels, [n c]: those of the noise, where they are nothing but noise."""
    samples = Samples(data.x, labels)
    fit = LeastSquares.of(kernel, samples, None, 0.0, None, None)
    sums = fit.sums(kernel, samples, None, n_probes=0, seed=0, progress=False)
    return sums.mean(sums.of_labels) + fit.center


def _said(models: list[nn.Module], x: Tensor) -> Tensor:
    """Predictions of all, [draws n c]."""
    with torch.no_grad():
        return torch.stack([model(x) for model in models])


def _ratio(values: Tensor, deviations: Tensor) -> dict[str, float]:
    """Standard deviation over draws over the one foretold, root mean squares over samples; and a 95 % interval of it.

    Args:
        values: [draws n c].
        deviations: foretold, [n].
    """
    known = ~deviations.isnan()
    expected = deviations[known].square().mean().sqrt()

    def ratio(draws: Tensor) -> float:
        return float(draws[:, known].var(dim=0).mean().sqrt() / expected)

    generator = torch.Generator().manual_seed(0)
    n = len(values)
    again = torch.tensor([
        ratio(values[torch.randint(n, (n,), generator=generator)]) * (n / (n - 1)) ** 0.5 for _ in range(N_BOOTSTRAP)
    ])  # fmt: skip
    return {"ratio": ratio(values), "low": float(again.quantile(0.025)), "high": float(again.quantile(0.975))}


def _errors(model: nn.Module, data: Moved, foretold: Denoising) -> dict[str, float]:
    """How errors to the truth go with those foretold: rank correlation, scale, and share within 1.96 of them."""
    with torch.no_grad():
        errors = (model(data.x) - data.truth).square().mean(dim=1).sqrt()
    expected = foretold.predicted_errors
    if bool(expected.isnan().any()):
        return {"rms": float(errors.square().mean().sqrt())}
    ranks = ranked(torch.stack([errors, expected]))
    return {
        "rank_correlation": float(torch.corrcoef(ranks)[0, 1]), "rms": float(errors.square().mean().sqrt()),
        "rms_over_foretold": float(errors.square().mean().sqrt() / expected.square().mean().sqrt()),
        "within_1.96": float((errors <= 1.96 * expected).double().mean()),
    }  # fmt: skip


def _decomposition(kernel: GradientKernel, model: nn.Module, data: Moved, draw: Tensor, foretold: Denoising) -> float:
    """How far f - E_k[truth] is from E_k[e] + shift + residual, relative to the largest prediction."""
    with torch.no_grad():
        said = model(data.x)
    plain = denoise(
        kernel, Samples(data.x, data.truth + draw), method="estimate", n_probes=2
    )  # residual with its decay
    sums = _mean_of_noise(kernel, data, draw) + foretold.shifts + plain.residuals
    return float((said - _mean_of_noise(kernel, data, data.truth) - sums).abs().max() / said.abs().max())


def main() -> None:
    """Read the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("settings", nargs="*", metavar="setting", help="; all if left out")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    for setting in given.settings or SETTINGS:
        if setting not in SETTINGS:
            raise SystemExit(f"setting {setting!r} is unknown: there are {', '.join(SETTINGS)}")
        command = f"python -m experiments.denoising {setting}"
        run_seeds("denoising", setting, [0], command, partial(run, setting))


if __name__ == "__main__":
    main()
