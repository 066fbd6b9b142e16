"""Near-duplicates with different labels, against a loop over all pairs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kinsight
from kinsight.errors import InputError, TargetError
from kinsight.kernel import GradientKernel
from kinsight.labels.conflicts import label_conflicts
from kinsight.samples import Samples
from tests.zoo import ZOO

N = 30


def data() -> tuple[GradientKernel, Tensor]:
    """Inputs of which some are there twice, and a kernel that works on a few at once."""
    x = ZOO[0].batch(N)
    x[20:25] = x[:5] + 1e-3 * torch.randn(5, x.shape[1], dtype=x.dtype)
    return GradientKernel(ZOO[0].model(), batch_size=7), x


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("least", [0.5, 0.999])
def test_all_pairs_that_are_alike_and_labelled_otherwise(least: float, task: str) -> None:
    kernel, x = data()
    y = torch.randint(0, 3, (N,)) if task == "classification" else torch.randn(N, 2, dtype=torch.float64)
    similarity = kernel.flat_similarity(x)
    spread = float((y.double() - y.double().mean(dim=0)).square().reshape(N, -1).sum(dim=1).mean().sqrt())
    near = [(i, j) for i in range(N) for j in range(i + 1, N) if similarity[i, j] >= least]
    truth = {
        (i, j) for i, j in near
        if (int(y[i]) != int(y[j]) if task == "classification" else float((y[i] - y[j]).norm()) >= 0.7 * spread)
    }  # fmt: skip
    found = label_conflicts(kernel, Samples(x, y), least=least, least_difference=0.7)
    assert set(found.ids) == truth
    assert (found.n_conflicts, found.n_duplicates) == (len(truth), len(near))
    assert torch.equal(found.similarities, found.similarities.sort(descending=True).values)
    for (i, j), value, labels in zip(found.ids, found.similarities.tolist(), found.labels, strict=True):
        assert value == pytest.approx(float(similarity[i, j]))
        assert torch.equal(labels, y[[i, j]])
    few = label_conflicts(kernel, Samples(x, y), least=least, least_difference=0.7, n_conflicts=2)
    assert few.ids == found.ids[:2]
    assert few.n_conflicts == found.n_conflicts
    assert f"{len(near):,} pairs" in found.summary()
    assert len(list(found.rows())) == len(found)


@pytest.mark.parametrize("normalization", ["flat", "whitened"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_copies_are_alike_to_the_last_rounding(dtype: torch.dtype, normalization: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    x = torch.randn(40, 4, dtype=dtype)
    samples, kernel = Samples(torch.cat([x, x]), torch.arange(80) % 3), GradientKernel(model, batch_size=7)
    copies = {(place, place + 40) for place in range(40)}
    found = label_conflicts(kernel, samples, least=1.0, normalization=normalization)
    assert set(found.ids) == copies
    index = kinsight.Index.build(tmp_path / "index", kernel, samples, dim=256, normalization=normalization)
    assert set(index.label_conflicts(least=1.0).ids) == copies


def test_values_that_are_all_the_same_differ_nowhere() -> None:
    kernel, x = data()
    found = label_conflicts(kernel, Samples(x, torch.full((N,), 0.1, dtype=torch.float64)), least=0.5)
    assert (found.n_conflicts, found.n_duplicates > 0) == (0, True)


def test_conflicts_of_an_index(tmp_path: object) -> None:
    kernel, x = data()
    y = torch.arange(N) % 3
    index = kinsight.Index.build(f"{tmp_path}/index", kernel, Samples(x, y), dim=1024, normalization="flat")
    truth, found = label_conflicts(kernel, Samples(x, y), least=0.99), index.label_conflicts(least=0.99)
    assert set(found.ids) == set(truth.ids)
    assert len(found)
    assert found.error == index.error


def test_questions_that_make_no_sense() -> None:
    kernel, x = data()
    with pytest.raises(InputError, match="least is 0"):
        label_conflicts(kernel, Samples(x, torch.arange(N)), least=0)
    with pytest.raises(InputError, match="n_conflicts is -1"):
        label_conflicts(kernel, Samples(x, torch.arange(N)), n_conflicts=-1)
    with pytest.raises(InputError, match="least_difference nan"):
        label_conflicts(kernel, Samples(x, torch.arange(N)), least_difference=float("nan"))
    with pytest.raises(TargetError, match="no targets"):
        label_conflicts(kernel, x)
