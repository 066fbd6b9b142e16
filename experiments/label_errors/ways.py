"""Ways to find label errors: name -> a score for each label, higher where it is more in doubt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from cleanlab.count import estimate_confident_joint_and_cv_pred_proba
from cleanlab.rank import get_label_quality_scores
from torch import Tensor, nn
from torch.nn.functional import normalize

from experiments.label_errors.planted import Planted, for_folds
from kinsight import GradientKernel, Index, Samples, label_suspects
from kinsight.baselines import InputCosine, LossValue, OutOfFold, PenultimateCosine, SelfInfluence
from kinsight.calibration import calibrated
from kinsight.leave_one_out import by_features
from kinsight.votes import Ballots

OURS = "kinsight, four checkpoints"
FIRST_OF_BASELINES = "penultimate cosine, power 8"


def scores(data: Planted, networks: list[nn.Module], *, by_index: bool) -> Iterator[tuple[str, Tensor]]:
    """Of all ways, one after another."""
    samples, last = data.samples, networks[-1]
    yield from _ours_by_index(samples, networks) if by_index else _ours(samples, networks)
    yield FIRST_OF_BASELINES, PenultimateCosine(last).label_scores(samples)
    yield "penultimate cosine, power 32", PenultimateCosine(last, power=32).label_scores(samples)
    yield "penultimate cosine, 10 nearest", PenultimateCosine(last, n_neighbors=10).label_scores(samples)
    yield "pixels, power 32", InputCosine(power=32).label_scores(samples)
    yield "pixels, 10 nearest", InputCosine(n_neighbors=10).label_scores(samples)
    for way, baseline in (("loss value", LossValue), ("self-influence", SelfInfluence)):
        yield way, baseline(last).label_scores(samples)
        of_all = torch.stack([baseline(network).label_scores(samples).double() for network in networks])
        yield f"{way}, four checkpoints", of_all.mean(dim=0)
    yield "1 - p, four checkpoints", _doubted(data, networks)
    yield "5-fold self-confidence", OutOfFold(for_folds).label_scores(samples)
    yield from _cleanlab(data)
    features = [PenultimateCosine(network).vectors(samples) for network in networks]
    yield "penultimate features, our regression, four checkpoints", _regressed(features, data.given)
    yield "pixels, our regression", _regressed([data.inputs.flatten(1)], data.given)


def _ours(samples: Samples, networks: list[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    kernels = [GradientKernel(network) for network in networks]
    yield OURS, label_suspects(kernels, samples, n_suspects=0).all_scores
    yield "kinsight, last network", label_suspects(kernels[-1], samples, n_suspects=0).all_scores
    yield "kinsight, last network, votes", label_suspects(kernels[-1], samples, method="votes", n_suspects=0).all_scores


def _ours_by_index(samples: Samples, networks: list[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    with TemporaryDirectory() as folder:
        indexes = [
            Index.build(
                Path(folder) / str(number), GradientKernel(network), samples, dim=4096, normalization="flat",
                previews=False,
            )
            for number, network in enumerate(networks)
        ]  # fmt: skip
        yield OURS, indexes[-1].label_suspects(others=indexes[:-1], n_suspects=0).all_scores
        yield "kinsight, last network", indexes[-1].label_suspects(n_suspects=0).all_scores
        yield "kinsight, last network, votes", indexes[-1].label_suspects(method="votes", n_suspects=0).all_scores


def _regressed(features: list[Tensor], given: Tensor) -> Tensor:
    """The same regression, on other features than gradients: is it the network's view, or the regression?"""
    ballots = Ballots.of(given)
    labels = ballots.part(slice(0, len(given)))
    units = [normalize(each.float(), dim=1) for each in features]
    verdicts = [by_features(lambda each=each: iter([(0, each)]), labels).values for each in units]
    found = calibrated(torch.stack(verdicts).mean(dim=0), ballots.values).values
    return 1 - found.gather(1, ballots.values[:, None])[:, 0]


def _doubted(data: Planted, networks: list[nn.Module]) -> Tensor:
    """1 - p of the label given, mean over networks: what our regression has to be better than at the same cost."""
    with torch.no_grad():
        said = [
            torch.cat([network(part) for part in data.inputs.split(500)]).double().softmax(dim=1)
            for network in networks
        ]
    return 1 - torch.stack(said).mean(dim=0).gather(1, data.given[:, None])[:, 0]


class _Classifier:
    """What cleanlab trains in its cross-validation."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> _Classifier:
        self.model = for_folds(Samples(torch.from_numpy(x), torch.from_numpy(y).long()))
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            said = torch.cat([self.model(part) for part in torch.from_numpy(x).split(500)])
        return said.double().softmax(dim=1).numpy()

    def get_params(self, deep: bool = True) -> dict[str, object]:
        return {}


def _cleanlab(data: Planted) -> Iterator[tuple[str, Tensor]]:
    given = data.given.numpy()
    _, said = estimate_confident_joint_and_cv_pred_proba(data.inputs.numpy(), given, _Classifier(), seed=0)
    for method in ("self_confidence", "normalized_margin"):
        quality = get_label_quality_scores(given, said, method=method)
        yield f"cleanlab, {method.replace('_', ' ')}", 1 - torch.from_numpy(quality)
