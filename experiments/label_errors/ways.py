"""Ways to find label errors: name -> a score for each label, higher where it is more in doubt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from experiments.label_errors.planted import Planted
from experiments.label_errors.training import for_folds
from kinsight import GradientKernel, Index, Samples, label_suspects
from kinsight.baselines import InputCosine, LossValue, OutOfFold, PenultimateCosine, SelfInfluence
from kinsight.labels.calibration import calibrated
from kinsight.labels.leave_one_out import by_features
from kinsight.labels.votes import Ballots

OURS = "kinsight, four checkpoints"
CLEANLAB = ("self_confidence", "normalized_margin")
FIRST_OF_BASELINES = "penultimate cosine, power 8"


Way: TypeAlias = tuple[tuple[str, ...], Callable[[], Sequence[Tensor]]]
"""Names, and what gives the scores of each."""


def ways(data: Planted, networks: list[nn.Module], indexes: Path | None) -> Iterator[Way]:
    """All of them, one after another.

    Args:
        data: with wrong labels.
        networks: checkpoints of one training, the last one being what has memorized the labels.
        indexes: a folder to build indexes in that are asked in place of kernels; None: kernels.
    """
    samples, last = data.samples, networks[-1]

    def one(name: str, score: Callable[[Samples], Tensor]) -> Way:
        return (name,), lambda: [score(samples)]

    if indexes is None:
        kernels = [GradientKernel(network) for network in networks]
        yield one(OURS, lambda data: label_suspects(kernels, data, n_suspects=0).all_scores)
        yield one("kinsight, last network", lambda data: label_suspects(kernels[-1], data, n_suspects=0).all_scores)
        votes = partial(label_suspects, kernels[-1], method="votes", n_suspects=0)
        yield one("kinsight, last network, votes", lambda data: votes(data).all_scores)
    else:
        yield (OURS, "kinsight, last network"), partial(_by_indexes, samples, networks, indexes)
        yield one("kinsight, last network, votes", partial(_votes_by_index, networks, indexes))
    yield one(FIRST_OF_BASELINES, PenultimateCosine(last).label_scores)
    yield one("penultimate cosine, power 32", PenultimateCosine(last, power=32).label_scores)
    yield one("penultimate cosine, 10 nearest", PenultimateCosine(last, n_neighbors=10).label_scores)
    yield one("pixels, power 32", InputCosine(power=32).label_scores)
    yield one("pixels, 10 nearest", InputCosine(n_neighbors=10).label_scores)
    for way, baseline in (("loss value", LossValue), ("self-influence", SelfInfluence)):
        yield one(way, baseline(last).label_scores)
        yield one(f"{way}, four checkpoints", partial(_mean_score, baseline, networks))
    yield one("1 - p, four checkpoints", lambda _: _doubted(data, networks))
    yield one("5-fold self-confidence", OutOfFold(for_folds).label_scores)
    yield tuple(f"cleanlab, {method.replace('_', ' ')}" for method in CLEANLAB), partial(_cleanlab, data)
    yield one(
        "penultimate features, our regression, four checkpoints",
        lambda each: _regressed([PenultimateCosine(network).vectors(each) for network in networks], data.given),
    )
    yield one("pixels, our regression", lambda _: _regressed([data.inputs.flatten(1)], data.given))


def _mean_score(baseline: Any, networks: list[nn.Module], samples: Samples) -> Tensor:
    return torch.stack([baseline(network).label_scores(samples).double() for network in networks]).mean(dim=0)


def _index(number: int, networks: list[nn.Module], folder: Path, samples: Samples) -> Index:
    """That of one network; what an earlier run has built is not built again."""
    return Index.build(
        folder / str(number), GradientKernel(networks[number]), samples, dim=4096, normalization="flat",
        previews=False, resume=True,
    )  # fmt: skip


def _by_indexes(samples: Samples, networks: list[nn.Module], folder: Path) -> Sequence[Tensor]:
    """Of all networks, and of the last one."""
    *others, last = (_index(number, networks, folder, samples) for number in range(len(networks)))
    return last.label_suspects(others=others, n_suspects=0).all_scores, last.label_suspects(n_suspects=0).all_scores


def _votes_by_index(networks: list[nn.Module], folder: Path, samples: Samples) -> Tensor:
    last = _index(len(networks) - 1, networks, folder, samples)
    return last.label_suspects(method="votes", n_suspects=0).all_scores


def _regressed(features: list[Tensor], given: Tensor) -> Tensor:
    """The same regression, on other features than gradients: is it the network's view, or the regression?"""
    ballots = Ballots.of(given)
    labels = ballots.part(slice(0, len(given)))
    units = [normalize(each.float(), dim=1) for each in features]
    verdicts = [by_features(partial(_in_one_part, each), labels).values for each in units]
    found = calibrated(torch.stack(verdicts).mean(dim=0), ballots.values).values
    return 1 - found.gather(1, ballots.values[:, None])[:, 0]


def _in_one_part(features: Tensor) -> Iterator[tuple[int, Tensor]]:
    yield 0, features


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


def _cleanlab(data: Planted) -> Sequence[Tensor]:
    from cleanlab.count import estimate_confident_joint_and_cv_pred_proba  # here, so that tests do without it
    from cleanlab.rank import get_label_quality_scores

    given = data.given.numpy()
    _, said = estimate_confident_joint_and_cv_pred_proba(data.inputs.numpy(), given, _Classifier(), seed=0)
    return [1 - torch.from_numpy(get_label_quality_scores(given, said, method=method)) for method in CLEANLAB]
