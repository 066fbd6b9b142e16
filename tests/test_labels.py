"""Suspected labels: the wrong ones, of classes and of values, told by one network or several; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kinsight
from kinsight.errors import InputError, SampleTypeError, TargetError, ZeroGradientWarning
from kinsight.explorer.findings import auroc
from kinsight.kernel import GradientKernel
from kinsight.labels.calibration import calibrated
from kinsight.labels.folds import Folds
from kinsight.labels.leave_one_out import by_gram
from kinsight.labels.votes import Ballots
from kinsight.samples import Samples
from tests.clusters import REFIT, N, clusters, network
from tests.test_engine import error
from tests.zoo import ZOO


@pytest.mark.parametrize("method", ["leave_one_out", "votes"])
def test_wrong_labels_are_suspects(method: str) -> None:
    x, y, is_wrong = clusters()
    kernel = network()
    found = kinsight.label_suspects(kernel, Samples(x, y, ids=[f"s{i}" for i in range(N)]), method=method)
    assert set(found.positions.tolist()) == set(is_wrong.nonzero().flatten().tolist())
    assert found.n_contradicted == len(found) == 5
    assert torch.equal(found.scores, found.all_scores[found.positions])
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert bool(((found.all_scores >= 0) & (found.all_scores <= 1)).all())
    assert torch.equal(found.given, y[found.positions])
    assert torch.equal(found.suggested, (y[found.positions] + 2) % 3)
    similarity = kernel.flat_similarity(x).fill_diagonal_(-2)
    for row, suspect in enumerate(found.positions.tolist()):
        allowed = (y == found.suggested[row]).nonzero().flatten()
        best = allowed[similarity[suspect, allowed].argsort(descending=True)][:5]
        assert found.supporter_positions[row].tolist() == best.tolist()
        assert found.supporter_ids[row] == tuple(f"s{i}" for i in best.tolist())
    record = next(found.rows())
    assert record["id"] == found.ids[0]
    assert record["suggested"] == int(found.suggested[0])
    few = kinsight.label_suspects(kernel, Samples(x, y), method=method, n_suspects=2)
    assert (len(few), few.n_contradicted) == (2, 5)
    assert kinsight.label_suspects(kernel, Samples(x, y), method=method, threshold=0.9999).n_contradicted < 5


def test_votes_are_sums_of_powers() -> None:
    x, y, _ = clusters()
    kernel = network()
    weights = kernel.flat_similarity(x).clamp(min=0).fill_diagonal_(0) ** 4
    shares = weights @ Ballots.of(y).part(slice(0, N)) / weights.sum(dim=1, keepdim=True)
    found = kinsight.label_suspects(kernel, Samples(x, y), method="votes", power=4)
    truth = 1 - calibrated(shares.clamp(min=1e-3).log(), y).values.gather(1, y[:, None])[:, 0]
    assert error(found.all_scores, truth) < REFIT


def test_labels_that_say_nothing_make_no_suspects() -> None:
    y = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(1))
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(2)).double()
    for method in ("leave_one_out", "votes"):
        assert kinsight.label_suspects(network(), Samples(x, y), method=method).n_contradicted <= 3


@pytest.mark.parametrize("method", ["leave_one_out", "votes"])
def test_label_suspects_of_a_regression(method: str) -> None:
    x = torch.randn(N, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x[:, 0].tanh()
    y[7] += 9
    kernel = GradientKernel(ZOO[1].model(), batch_size=16)
    found = kinsight.label_suspects(kernel, Samples(x, y), method=method, power=4)
    assert (found.task, found.ids[0]) == ("regression", 7)
    gram = kernel.flat_similarity(x)
    weights = gram.clamp(min=0).fill_diagonal_(0) ** 4
    said = by_gram(gram, y[:, None]).values[:, 0] if method == "leave_one_out" else (weights @ y) / weights.sum(dim=1)
    assert error(found.suggested, said[found.positions]) < REFIT
    distance = (y - said).abs()
    assert error(found.all_scores, distance / (1.4826 * distance.median())) < REFIT


@pytest.mark.parametrize("method", ["leave_one_out", "votes"])
def test_what_all_values_have_in_common_hides_nothing(method: Any) -> None:
    """Such as times: seconds since 1970."""
    x, _, _ = clusters()
    values = x[:, 0].double().sin()
    values[3] += 5
    plain, late = (kinsight.label_suspects(network(), Samples(x, values + at), method=method) for at in (0.0, 1.7e9))
    assert plain.ids[0] == late.ids[0] == 3
    torch.testing.assert_close(late.all_scores, plain.all_scores, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(late.suggested, plain.suggested + 1.7e9, rtol=0, atol=1e-5)
    maps = [kinsight.label_conflicts(network(), Samples(x, values + at), least=0.9) for at in (0.0, 1.7e9)]
    assert maps[0].n_conflicts == maps[1].n_conflicts > 0


def test_labels_that_are_all_the_same_are_not_contradicted() -> None:
    x, _, _ = clusters()
    for value in (0.1, 1e6 + 0.1, 0.0):
        data = Samples(x, torch.full((N,), value, dtype=torch.float64))
        for method in ("leave_one_out", "votes"):
            assert kinsight.label_suspects(network(), data, method=method).n_contradicted == 0


@pytest.mark.usefixtures("without_type_checks")
def test_several_networks_are_averaged_and_folds_judge_their_own() -> None:
    x, y, _ = clusters()
    samples, kernels = Samples(x, y), [network(seed) for seed in range(3)]
    labels = Ballots.of(y).part(slice(0, N))
    verdicts = torch.stack([by_gram(kernel.flat_similarity(x), labels).values for kernel in kernels])
    found = kinsight.label_suspects(kernels, samples)
    own = y[:, None]
    assert error(found.all_scores, 1 - calibrated(verdicts.mean(dim=0), y).values.gather(1, own)[:, 0]) < REFIT
    folds = Folds.random(N, 3, seed=1)
    assert sorted(torch.bincount(folds.numbers).tolist()) == [20, 20, 20]
    of_folds = verdicts[folds.numbers, torch.arange(N)]
    same = kinsight.label_suspects(kernels, samples, folds=folds)
    found = kinsight.label_suspects(kernels, samples, folds=folds.numbers)
    assert torch.equal(same.all_scores, found.all_scores)
    assert error(found.all_scores, 1 - calibrated(of_folds, y).values.gather(1, own)[:, 0]) < REFIT
    assert len(folds.training(samples, 0)) == 40
    assert set(folds.training(samples, 0).take(range(40)).ids).isdisjoint(folds.held_out(0).tolist())
    for bad in (torch.zeros(N - 1, dtype=torch.long), torch.full((N,), 3), torch.zeros(N)):
        with pytest.raises(InputError, match="pass the number of one of the kernels"):
            kinsight.label_suspects(kernels, samples, folds=bad)
    with pytest.raises(InputError, match="folds is a list that no tensor can be made of"):
        kinsight.label_suspects(kernels, samples, folds=["first"] * N)
    with pytest.raises(SampleTypeError, match="kernel is a NoneType"):
        kinsight.label_suspects(None, samples)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="There are no kernels"):
        kinsight.label_suspects([], samples)
    with pytest.raises(InputError, match="ask for 2 to 60"):
        Folds.random(N, 1)


def test_what_says_nothing_of_a_rare_label_makes_no_suspect() -> None:
    y = (torch.arange(N) % 10 == 0).long()
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(2)).double()
    for method in ("leave_one_out", "votes"):
        assert kinsight.label_suspects(network(), Samples(x, y), method=method).n_contradicted <= 2


def test_classes_that_are_stored_as_floats() -> None:
    """A table with a gap holds them so. Without being asked, they are taken for nothing."""
    x, y, _ = clusters()
    kernel = network()
    floats = Samples(x, y.double())
    for ask in (kinsight.label_suspects, kinsight.label_conflicts):
        with pytest.raises(TargetError, match="are they classes"):
            ask(kernel, floats)
        ask(kernel, floats, task="regression")
    found, plain = (
        kinsight.label_suspects(kernel, floats, task="classification"),
        kinsight.label_suspects(kernel, Samples(x, y)),
    )
    assert found.ids == plain.ids
    torch.testing.assert_close(found.all_scores, plain.all_scores)
    with pytest.raises(TargetError, match="whole numbers"):
        kinsight.label_suspects(kernel, Samples(x, y + 0.5), task="classification")
    named = Samples(x, y.double(), class_names=["a", "b", "c"])
    assert [record["group"] for record in kinsight.fit_map(kernel, named, task="classification").by_group()] == list(
        "abc"
    )
    assert kinsight.label_conflicts(kernel, named, task="classification").labels.dtype == torch.long


class Squeezed(nn.Module):
    """Of one sample alone, it says a number without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze()


def test_outputs_that_are_squeezed() -> None:
    x, y, _ = clusters()
    for targets in (y, x[:, 0].abs().round()):
        found = kinsight.label_suspects(GradientKernel(Squeezed()), Samples(x, targets))
        assert bool(found.all_scores.isfinite().all())
        assert len(kinsight.label_conflicts(GradientKernel(Squeezed()), Samples(x, targets)).ids) > 0
        assert bool(kinsight.averages(GradientKernel(Squeezed()), Samples(x, targets)).labels.isfinite().all())
    assert len(kinsight.denoise(GradientKernel(Squeezed()), Samples(x, x[:, 0]), method="exact")) == N


def test_few_samples() -> None:
    x, y, _ = clusters()
    kernel = network()
    alone = kinsight.label_suspects(kernel, Samples(x[:1], y[:1])).all_scores
    assert bool(alone.isnan().all())  # no other sample says anything
    two = kinsight.label_suspects(kernel, Samples(x[:2], torch.tensor([0, 1])))
    assert (
        error(two.all_scores, torch.full((2,), 0.5, dtype=torch.float64)) < 0.02
    )  # each is told by the other one alone
    assert kinsight.label_suspects(kernel, Samples(x, torch.zeros(N, dtype=torch.long))).n_contradicted == 0
    assert kinsight.label_suspects({"first": kernel, "second": kernel}, Samples(x, y)).n_contradicted == 5
    with pytest.raises(InputError, match="dim is 0"):
        kinsight.label_suspects(kernel, Samples(x, y), dim=0)
    dead = GradientKernel(nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False)).double())
    for dim in (None, 64):
        with pytest.warns(ZeroGradientWarning):
            nothing = kinsight.label_suspects(dead, Samples(0 * x, y), dim=dim)
        assert bool(nothing.all_scores.isnan().all())
        assert nothing.summary().startswith("Nothing is said of any label")


def test_a_network_without_a_gradient_has_no_say() -> None:
    x, y, _ = clusters()
    x[4] = 0
    dead = GradientKernel(nn.Sequential(nn.Linear(3, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)).double())
    labels = Ballots.of(y).part(slice(0, N))
    with pytest.warns(ZeroGradientWarning):
        found = kinsight.label_suspects([network(), dead], Samples(x, y))
    with pytest.warns(ZeroGradientWarning):
        grams = [each.flat_similarity(x) for each in (network(), dead)]
    verdicts = torch.stack([by_gram(gram, labels).values for gram in grams])
    truth = calibrated(verdicts.nanmean(dim=0), y).values.gather(1, y[:, None])[:, 0]
    assert error(found.all_scores, 1 - truth) < REFIT


def test_many_samples_are_sketched() -> None:
    x, y, _ = clusters()
    exact, sketched = (kinsight.label_suspects(network(), Samples(x, y), dim=dim) for dim in (None, 1024))
    assert exact.error is None
    assert sketched.error is not None
    assert 0 < sketched.error < 0.1
    assert set(sketched.ids) == set(exact.ids)
    assert float((sketched.all_scores - exact.all_scores).abs().max()) < 0.1
    kernel = network()
    kernel.max_bytes = 24 * N**2 - 1  # three matrices of all pairs do not fit, nor do sketches
    with pytest.raises(InputError, match=r"Sketches of 60 samples, .* take 983 kB, more than .* 86.4 kB. Ask an index"):
        kinsight.label_suspects(kernel, Samples(x, y))


def test_samples_without_gradients_are_not_judged() -> None:
    x, y, is_wrong = clusters()
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    x[4] = 0
    for method in ("leave_one_out", "votes"):
        with pytest.warns(ZeroGradientWarning) as seen:
            found = kinsight.label_suspects(GradientKernel(model), Samples(x, y), method=method)
        assert len(seen) == 1
        assert len(found)
        assert found.all_scores.isnan().nonzero().flatten().tolist() == [4]
        assert auroc(found.all_scores.nan_to_num(), is_wrong) > 0.95


def test_label_suspects_say_what_is_missing() -> None:
    kernel = GradientKernel(ZOO[0].model())
    x = ZOO[0].batch(4)
    with pytest.raises(TargetError, match="has no targets"):
        kinsight.label_suspects(kernel, x)
    with pytest.raises(TargetError, match=r"needs whole numbers \[n\]; these are float32 \[4\]"):
        kinsight.label_suspects(kernel, Samples(x, torch.full((4,), 0.5)), task="classification")
    with pytest.raises(TargetError, match="smallest target is -1"):
        kinsight.label_suspects(kernel, Samples(x, torch.tensor([-1, 0, 1, 1])))
    with pytest.raises(TargetError, match=r"targets of 1 of 4 samples are nan or inf: \[2\]"):
        kinsight.label_suspects(kernel, Samples(x, torch.tensor([0.0, 1.0, torch.nan, 2.0])))
    with pytest.raises(TargetError, match=r"targets of 1 of 4 samples are beyond 1e\+150: \[1\]. .* Scale all targets"):
        kinsight.label_suspects(kernel, Samples(x, torch.tensor([0.0, 1e160, 1.0, 2.0], dtype=torch.float64)))
    with pytest.raises(TargetError, match=r"targets are \[4, 0\]: there is no number"):
        kinsight.label_suspects(kernel, Samples(x, torch.zeros(4, 0)))
    with pytest.raises(TargetError, match="targets are complex"):
        kinsight.label_suspects(kernel, Samples(x, torch.ones(4, dtype=torch.complex64)))
    for threshold in (torch.nan, -0.1, 1.1):
        with pytest.raises(InputError, match="for classification it is a probability, from 0 to 1"):
            kinsight.label_suspects(kernel, Samples(x, torch.tensor([0, 0, 1, 1])), threshold=threshold)
    for threshold in (torch.nan, -0.1):
        with pytest.raises(InputError, match="for regression it is a number of standard deviations, from 0 on"):
            kinsight.label_suspects(kernel, Samples(x, torch.rand(4)), threshold=threshold)
    with pytest.raises(InputError, match="n_supporters is -1"):
        kinsight.label_suspects(kernel, Samples(x, torch.tensor([0, 0, 1, 1])), n_supporters=-1)
    with pytest.raises(InputError, match="threshold is nan"):
        kinsight.hard_count(kernel, x, thresholds=torch.nan)
    sparse = kinsight.label_suspects(kernel, Samples(x, torch.tensor([3, 3, 10**9, 3])), threshold=0.0)
    assert set(sparse.suggested.tolist()) <= {3, 10**9}
    whole = kinsight.label_suspects(kernel, Samples(x, torch.tensor([1, 2, 3, 4])), task="regression", threshold=0.0)
    assert whole.suggested.is_floating_point()
    with pytest.raises(InputError, match="power is 0"):
        kinsight.label_suspects(kernel, Samples(x, torch.tensor([0, 0, 1, 1])), power=0)
