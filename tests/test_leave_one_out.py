"""Each sample is told by a regression on all others: against a refit for every one that is left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import kinsight
from kinsight.errors import NonFiniteError
from kinsight.labels.leave_one_out import RIDGES, by_features, by_gram, folded
from kinsight.labels.votes import Ballots, shares_of
from kinsight.sketch import error_of
from tests.clusters import REFIT, N, clusters, network
from tests.test_engine import error

IN_FLOAT32 = 1e-4
"""Leverages are made of float32 products, and 1 less them is divided by."""


def refits(gram: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """Kernel ridge regression with an intercept, once for every sample that is left out."""
    found = torch.empty_like(labels)
    for i in range(len(gram)):
        rest = [j for j in range(len(gram)) if j != i]
        bordered = torch.ones(len(gram), len(gram), dtype=gram.dtype)
        bordered[:-1, :-1] = gram[rest][:, rest] + ridge * torch.eye(len(rest), dtype=gram.dtype)
        bordered[-1, -1] = 0
        right = torch.cat([labels[rest], torch.zeros_like(labels[:1])])
        found[i] = torch.cat([gram[i, rest], torch.ones(1, dtype=gram.dtype)]) @ torch.linalg.solve(bordered, right)
    return found


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_each_sample_is_predicted_by_all_others(kind: str) -> None:
    x, y, _ = clusters()
    gram = network().flat_similarity(x)
    labels = Ballots.of(y).part(slice(0, N)) if kind == "classes" else torch.stack([x[:, 0].sin(), x[:, 1]], dim=1)
    told: list[int] = []
    found = by_gram(gram, labels, told.append)
    assert sum(told) == len(RIDGES)
    assert error(found.values, refits(gram, labels, found.ridge)) < REFIT
    assert found.error == pytest.approx(float((found.values - labels).square().sum(dim=1).mean()))
    place = RIDGES.index(found.ridge)
    for other in RIDGES[max(0, place - 1) : place + 2]:
        assert found.error <= float((refits(gram, labels, other) - labels).square().sum(dim=1).mean()) * (1 + REFIT)


@pytest.mark.parametrize("batch", [7, 100])
@pytest.mark.parametrize("few", [0.0, 1.5])
def test_features_say_the_same_as_their_gram_matrix(batch: int, few: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinsight.labels.leave_one_out.FEW", few)
    x, y, _ = clusters()
    gram = network().flat_similarity(x)
    values, vectors = torch.linalg.eigh(gram)
    features = (vectors * values.clamp(min=0).sqrt()).float()
    features[5] = 0  # a sample without similarities
    gram[5] = gram[:, 5] = torch.nan
    labels = Ballots.of(y).part(slice(0, N))
    found = by_features(lambda: ((at, features[at : at + batch]) for at in range(0, N, batch)), labels)
    truth = by_gram(gram, labels)
    assert found.ridge == truth.ridge
    is_known = torch.arange(N) != 5
    assert bool(found.values[5].isnan().all())
    assert bool(truth.values[5].isnan().all())
    assert error(found.values[is_known], truth.values[is_known]) < IN_FLOAT32
    assert found.error == pytest.approx(truth.error, rel=IN_FLOAT32)


def test_long_sketches_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, is_wrong = clusters()
    kernel, labels = network(), Ballots.of(y).part(slice(0, N))
    values = kinsight.sketch(kernel, x, 1000, normalization="flat").values
    short = folded(values, 3)
    assert short.shape == (N, 334)
    assert error_of(short, kernel.flat_similarity(x))["inner"] < 2 / 334**0.5
    monkeypatch.setattr("kinsight.labels.leave_one_out.MAX_FEATURES", 340)
    monkeypatch.setattr("kinsight.labels.leave_one_out.FEW", 0.0)
    found = by_features(lambda: iter([(0, values)]), labels)
    assert torch.equal(found.values, by_features(lambda: iter([(0, short)]), labels).values)
    assert bool((found.values.argmax(dim=1) != y)[is_wrong].all())


def test_a_sample_does_not_hear_its_own_label() -> None:
    x, y, _ = clusters()
    gram, labels = network().flat_similarity(x), Ballots.of(y).part(slice(0, N))
    other = labels.clone()
    other[3] = other[3].roll(1)
    ridge = by_gram(gram, labels).ridge
    assert by_gram(gram, other).ridge == ridge
    assert error(by_gram(gram, other).values[3], by_gram(gram, labels).values[3]) < REFIT
    changed_y = y.clone()
    changed_y[3] = (y[3] + 1) % 3
    pairs = [(slice(0, N), slice(0, N), gram)]
    before, after = (shares_of(lambda _: iter(pairs), Ballots.of(each), 8.0)[3] for each in (y, changed_y))
    assert torch.equal(before, after)


def test_a_matrix_that_is_no_gram_matrix() -> None:
    """Rounding, of inner products in bfloat16 say, leaves negative eigenvalues: small ridges are passed over."""
    x, y, is_wrong = clusters()
    gram, labels = network().flat_similarity(x), Ballots.of(y).part(slice(0, N))
    noise = torch.randn(N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rough = gram + 0.05 * (noise + noise.T)
    assert float(torch.linalg.eigvalsh(rough)[0]) < -RIDGES[5]
    found = by_gram(rough, labels)
    assert found.ridge > RIDGES[5]
    assert bool((found.values.argmax(dim=1) != y)[is_wrong].all())
    with pytest.raises(NonFiniteError, match="they are no Gram matrix"):
        by_gram(-1000 * torch.ones(3, 3, dtype=torch.float64), labels[:3])
