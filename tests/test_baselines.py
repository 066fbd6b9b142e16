"""What baselines say, against a computation by hand on a few samples."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinsight.baselines import InputCosine, LossValue, OutOfFold, PenultimateCosine, SelfInfluence
from kinsight.errors import InputError, ModelError, ShapeError, TargetError
from kinsight.labels.folds import Folds
from kinsight.samples import Batch, Samples
from tests.test_engine import EXACT, error

N = 50

IN_FLOAT32 = 1e-5
"""Cosines of baselines are products of float32 numbers."""


def network(c: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, c)).double().eval()


def data(task: str = "classification") -> Samples:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 4, dtype=torch.float64, generator=generator)
    values = torch.randn(N, 3, dtype=torch.float64, generator=generator)
    return Samples(x, torch.arange(N) % 3 if task == "classification" else values)


def parts(samples: Samples) -> tuple[Tensor, Tensor]:
    batch = samples.take(range(N))
    assert isinstance(batch.inputs, Tensor)
    assert batch.targets is not None
    return batch.inputs, batch.targets


def cosines(vectors: Tensor) -> Tensor:
    units = vectors / vectors.norm(dim=1, keepdim=True)
    return units @ units.T


def test_the_loss() -> None:
    x, y = parts(data())
    truth = nn.functional.cross_entropy(network()(x), y, reduction="none").detach()
    assert error(LossValue(network()).label_scores(data()), truth) < EXACT
    x, values = parts(data("regression"))
    squares = (network()(x) - values).square().mean(dim=1).detach()
    assert error(LossValue(network(), "mse").label_scores(data("regression")), squares) < EXACT
    with pytest.raises(TargetError, match=r"needs class numbers \[n\]; these targets are float64 \[50 3\]"):
        LossValue(network()).label_scores(data("regression"))


def test_the_length_of_the_gradient_of_the_loss() -> None:
    model = network()
    x, y = parts(data())
    found = SelfInfluence(model).label_scores(data())
    for place in range(5):
        loss = nn.functional.cross_entropy(model(x[place : place + 1]), y[place : place + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert float(found[place]) == pytest.approx(sum(float(each.square().sum()) for each in gradients))
    assert found.shape == (N,)


@pytest.mark.parametrize("made", [InputCosine, lambda **how: PenultimateCosine(network(), **how)])
def test_votes_by_cosines(made: Any) -> None:
    x, y = parts(data())
    baseline = made(power=3.0)
    similarities = cosines(x if isinstance(baseline, InputCosine) else network()[:2](x).detach())  # type: ignore[index]
    assert error(baseline.scores(data(), data()).double(), similarities) < IN_FLOAT32
    weights = similarities.clamp(min=0).fill_diagonal_(0) ** 3
    shares = weights @ torch.eye(3, dtype=torch.float64)[y] / weights.sum(dim=1, keepdim=True)
    assert error(baseline.label_scores(data()), 1 - shares[torch.arange(N), y]) < IN_FLOAT32
    near = similarities.fill_diagonal_(-2).topk(5, dim=1).indices
    truth = (y[near] != y[:, None]).double().mean(dim=1)
    assert error(made(n_neighbors=5).label_scores(data()), truth) < EXACT


def test_values_by_cosines() -> None:
    x, values = parts(data("regression"))
    near = cosines(x).fill_diagonal_(-2).topk(5, dim=1).indices
    off = (values - values[near].mean(dim=1)).abs()
    truth = (off / (1.4826 * off.median(dim=0).values)).amax(dim=1)
    assert error(InputCosine(n_neighbors=5).label_scores(data("regression")), truth) < EXACT


@pytest.mark.parametrize("n_neighbors", [40, 49, 500])
def test_nobody_is_a_neighbor_of_itself(n_neighbors: int) -> None:
    """Where more neighbors are asked for than are alike, those least alike come, and not the sample."""
    x = data().take(range(N)).inputs
    scores = InputCosine(n_neighbors=n_neighbors).label_scores(Samples(x, torch.arange(N)))
    assert scores.tolist() == [1.0] * N  # everybody has a label of its own


def test_features_are_computed_where_the_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], Batch.to

    def recorded(batch: Batch, device: torch.device) -> Batch:
        seen.append(device)
        return real(batch, device)

    monkeypatch.setattr(Batch, "to", recorded)
    PenultimateCosine(network()).label_scores(data())
    assert set(seen) == {torch.device("cpu")}


@pytest.mark.gpu
def test_features_on_a_gpu() -> None:
    found, truth = (PenultimateCosine(network().to(where)).label_scores(data()) for where in ("cuda", "cpu"))
    assert error(found, truth) < IN_FLOAT32


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_what_networks_say_of_samples_that_they_have_not_seen(task: str) -> None:
    x, y = parts(data(task))
    fitted: list[Samples] = []

    def fit(samples: Samples) -> nn.Module:
        fitted.append(samples)
        return network(seed=len(fitted))

    found = OutOfFold(fit, n_folds=4, seed=2).label_scores(data(task))
    folds = Folds.random(N, 4, seed=2)
    for fold in range(4):
        places = folds.held_out(fold)
        assert set(places.tolist()).isdisjoint(fitted[fold].ids)
        says = network(seed=fold + 1)(x[places]).detach()
        own = y[places]
        truth = (says - own).norm(dim=1) if task == "regression" else 1 - says.softmax(1).gather(1, own[:, None])[:, 0]
        assert error(found[places], truth) < EXACT


def test_values_are_as_many_as_outputs() -> None:
    x, _ = parts(data())
    with pytest.raises(ShapeError, match="say 3 numbers a sample and the targets have 1"):
        OutOfFold(lambda _: network()).label_scores(Samples(x, torch.rand(N)))
    with pytest.raises(TargetError, match="Class 3 has no output"):
        OutOfFold(lambda _: network()).label_scores(Samples(x, torch.arange(N) % 4))


def test_questions_that_make_no_sense() -> None:
    x, _ = parts(data())
    for power in (-1.0, 0.0, float("nan")):
        with pytest.raises(InputError, match="it must be positive"):
            InputCosine(power=power)
    with pytest.raises(InputError, match="n_neighbors is 0"):
        InputCosine(n_neighbors=0)
    with pytest.raises(InputError, match="head 'top' is no layer"):
        PenultimateCosine(network(), head="top")
    with pytest.raises(ModelError, match="No linear layer saw"):
        PenultimateCosine(nn.Tanh()).vectors(data())
    for baseline in (InputCosine(), LossValue(network()), SelfInfluence(network()), OutOfFold(lambda _: network())):
        with pytest.raises(TargetError, match="no targets"):
            baseline.label_scores(x)
