"""Human noise: `python -m experiments.human_noise`. A regressor on a MiniLM encoder learns from ONE rating a text.

What `kinsight.denoise` then says of the noise of ratings is compared with how far the raters of a text are apart, which
it has not seen; and predictions and single ratings with the mean of the other raters. Goes on where it stopped.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.human_noise.tweets import Tweets, embedded, load_tweets
from experiments.records import run_seeds
from kinsight import GradientKernel, Samples, denoise, fit_map
from kinsight.agreement import ranked
from kinsight.baselines import PenultimateCosine

SEEDS, N_TRAIN, WIDTH = 5, 3600, 32
WEIGHT_DECAYS = (0.003, 0.01, 0.03, 0.1)
"""The one with the least error of generalized cross-validation is taken: no other rating is looked at."""


def fit(x: Tensor, y: Tensor, decay: float, seed: int) -> nn.Module:
    """A small tanh network on embeddings, at a minimum of mean squared error plus weight decay."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=1e-9,
        tolerance_change=1e-14,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        squares = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
        loss = F.mse_loss(model(x), y) + decay / 2 * squares
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def run(seed: int, tweets: Tweets, x: Tensor) -> dict[str, Any]:
    """One draw of a rating a text."""
    own, others = tweets.drawn(seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(100 + seed))
    train, test = order[:N_TRAIN], order[N_TRAIN:]
    y = own[train, None]
    models = {decay: fit(x[train], y, decay, seed) for decay in WEIGHT_DECAYS}
    told = {
        decay: denoise(GradientKernel(model), Samples(x[train], y), weight_decay=decay, method="exact")
        for decay, model in models.items()
    }
    scores = {decay: _cross_validation(models[decay], x[train], y, told[decay].degrees_of_freedom) for decay in models}
    best = min(scores, key=scores.__getitem__)
    model, found = models[best], told[best]
    spreads = tweets.spreads[train]
    kernel, data = GradientKernel(model), Samples(x[train], y)
    local = fit_map(kernel, data).variances
    cosines = PenultimateCosine(model).scores(data, data).double().clamp(0, 1).fill_diagonal_(0).pow(8)
    weights = cosines / cosines.sum(dim=1, keepdim=True)
    penultimate = weights @ y[:, 0].square() - (weights @ y[:, 0]).square()
    with torch.no_grad():
        said = {"train": model(x[train])[:, 0], "test": model(x[test])[:, 0]}
    return {
        "weight_decay": best, "is_credible": found.is_credible,
        "failed": [check.name for check in found.checks if not check.is_met],
        "estimated_noise": found.noise, "raters": float(spreads.square().mean().sqrt()),
        "estimated_over_raters": found.noise / float(spreads.square().mean().sqrt()),
        "rank_correlation": _ranks(local, spreads), "rank_correlation_penultimate": _ranks(penultimate, spreads),
        "median_factor": float(found.factors.nanmedian()), "median_noise_left": float(found.noise_left.median()),
        "error_of_labels": float((own - others).square().mean().sqrt()),
        "error_of_predictions": float((said["train"] - others[train]).square().mean().sqrt()),
        "error_of_predictions_of_test": float((said["test"] - others[test]).square().mean().sqrt()),
    }  # fmt: skip


def _cross_validation(model: nn.Module, x: Tensor, y: Tensor, freedom: float) -> float:
    """Generalized cross-validation: n RSS over the square of the degrees of freedom that are left."""
    with torch.no_grad():
        unexplained = float((model(x) - y).square().sum())
    return len(x) * unexplained / freedom**2


def _ranks(first: Tensor, second: Tensor) -> float:
    known = ~(first.isnan() | second.isnan())
    return float(torch.corrcoef(ranked(torch.stack([first[known].double(), second[known].double()])))[0, 1])


def main() -> None:
    """Read the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    tweets = load_tweets()
    x = embedded(tweets.texts)
    command = "python -m experiments.human_noise"
    run_seeds("human_noise", "tweets", range(SEEDS), command, lambda seed: run(seed, tweets, x))


if __name__ == "__main__":
    main()
