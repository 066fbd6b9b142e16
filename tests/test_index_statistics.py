"""Statistics from the sketches of an index: those of the kernel, within the errors they state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kinsight
from kinsight import GradientKernel, Index, Samples
from kinsight.errors import ChangedDataError, InputError, TargetError, WrongModelError, ZeroGradientWarning
from tests.test_engine import error

N, DIM, SEEDS = 120, 512, 6

TOO_WIDE = 0.3
"""Root mean square of errors over what is stated: sketches of one seed err alike, so six of them are few."""


def network(n_outputs: int) -> GradientKernel:
    torch.manual_seed(0)
    return GradientKernel(nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, n_outputs)).double())


def samples(n_outputs: int) -> Samples:
    y = torch.arange(N) % 3
    generator = torch.Generator().manual_seed(1)
    x = (2 * nn.functional.one_hot(y, 4) + torch.randn(N, 4, generator=generator)).double()
    values = x[:, :1] + 0.1 * torch.randn(N, 1, generator=generator).double()
    return Samples(x, values if n_outputs == 1 else y, ids=range(N), class_names=["a", "b", "c"])


def built(folder: Path, n_outputs: int, seed: int = 0, **how: Any) -> tuple[GradientKernel, Samples, Index]:
    kernel, data = network(n_outputs), samples(n_outputs)
    how = {"dim": DIM, "normalization": "flat", **how}
    return kernel, data, Index.build(folder / f"{n_outputs}-{seed}", kernel, data, seed=seed, **how)


def partly_new(data: Samples) -> Samples:
    """The first half of the data, and as many samples that are not in it."""
    x = data.take(range(N // 2)).inputs
    new = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).double()
    return Samples(torch.cat([x, new]), ids=[*range(N // 2), *range(1000, 1000 + N // 2)])


@pytest.mark.parametrize(
    ("n_outputs", "include_self", "is_of_queries", "weighting"),
    [(1, True, False, "flat"), (1, False, True, "kernel"), (3, True, True, "flat"), (3, False, False, "kernel")],
)
def test_averages_are_within_their_errors(
    n_outputs: int, include_self: bool, is_of_queries: bool, weighting: Any, tmp_path: Path
) -> None:
    off: dict[str, list[torch.Tensor]] = {"weights": [], "labels": []}
    for seed in range(SEEDS):
        kernel, data, index = built(tmp_path, n_outputs, seed)
        queries = partly_new(data) if is_of_queries else None
        how = {"weighting": weighting, "include_self": include_self}
        truth = kinsight.averages(kernel, data, queries, **how)
        found = index.averages(queries, **({"kernel": kernel, "data": data} if is_of_queries else {}), **how)
        assert (found.ids, found.classes, found.weighting, found.n_data) == (truth.ids, truth.classes, weighting, N)
        assert found.labels_error is not None
        off["weights"].append((found.weights - truth.weights) / found.weights_error)
        is_sure = (found.weights_error < 0.1 * found.weights.abs()) & ~found.labels.isnan().any(dim=1)
        off["labels"].append(((found.labels - truth.labels) / found.labels_error)[is_sure].flatten())
        assert error(found.own, truth.own) < 1e-6
    for name, each in off.items():
        values = torch.cat(each)
        assert len(values) > N, name
        assert TOO_WIDE < float(values.square().mean().sqrt()) < 1.3, name
        assert float((values.abs() < 1.96).double().mean()) > 0.9, name


def test_with_exact_sketches_everything_is_exact(tmp_path: Path) -> None:
    """Few parameters in many buckets: none is shared, and what is left is rounding to half precision."""
    kernel, data, index = built(tmp_path, 1, dim=60_000)
    half = 5e-3
    truth, found = kinsight.averages(kernel, data, weighting="flat"), index.averages()
    for name in ("weights", "labels", "variances", "predictions", "shifts", "residuals", "shares"):
        assert error(getattr(found, name).nan_to_num(), getattr(truth, name).nan_to_num()) < half, name
    for power in (1, 8):
        plain, mapped = kinsight.fit_map(kernel, data, power=power), index.fit_map(power=power)
        for name in ("counts", "variances", "disagreements", "residuals"):
            assert error(getattr(mapped, name), getattr(plain, name)) < 10 * half, name
        assert sum(a == b for a, b in zip(plain.regimes, mapped.regimes, strict=True)) > 0.9 * N
    sure, signed = kinsight.uncertainty(kernel, data), kinsight.signed_support(kernel, data)
    assert error(index.uncertainty().sums, sure.sums) < half
    assert error(index.signed_support().sums, signed.sums) < half
    queries = partly_new(data)
    asked = {"queries": queries, "kernel": kernel, "data": data}
    assert error(index.uncertainty(**asked).sums, kinsight.uncertainty(kernel, data, queries).sums) < half
    assert error(index.signed_support(**asked).sums, kinsight.signed_support(kernel, data, queries).sums) < half
    truth = kinsight.averages(kernel, data, weighting="kernel")  # what self-denoising is about
    plain = kinsight.denoise(kernel, data)
    found = index.averages(weighting="kernel")
    assert found.shifts is not None
    assert found.residuals is not None
    is_known = truth.shares.abs() > 0.05
    assert error(found.labels[is_known], plain.means[is_known]) < 10 * half
    assert error(found.shifts[is_known], plain.shifts[is_known]) < 10 * half
    assert error(found.residuals[is_known], plain.residuals[is_known]) < 10 * half


def test_support_is_within_its_error(tmp_path: Path) -> None:
    off = []
    for seed in range(SEEDS):
        kernel, data, index = built(tmp_path, 1, seed)
        found, truth = index.signed_support(), kinsight.signed_support(kernel, data)
        assert found.error is not None
        off.append(float(((found.sums - truth.sums) / found.error).square().mean().sqrt()))
        assert off[-1] < 1.5
        found, truth = index.uncertainty(), kinsight.uncertainty(kernel, data)
        assert found.error is not None
        assert bool(((found.sums - truth.sums).abs() <= found.error).all())
        assert "least sure" in found.summary()
    assert max(off) > TOO_WIDE, off


@pytest.mark.parametrize("normalization", ["flat", "whitened"])
def test_counts_of_queries(normalization: str, tmp_path: Path) -> None:
    kernel, data, index = built(tmp_path, 3, normalization=normalization, dim=2048)
    others = Samples(torch.randn(9, 4).double(), ids=list("abcdefghi"))
    for queries in (others, Samples(data.take([5, 0, 77]))):
        for include_self in (True, False):
            how = {"include_self": include_self}
            exact = {"normalization": normalization, **how}
            asked = {"queries": queries, "kernel": kernel, "data": data, **how}
            pairs = [
                (index.soft_count(**asked), kinsight.soft_count(kernel, data, queries, **exact)),
                (index.power_count(power=4, **asked), kinsight.power_count(kernel, data, queries, power=4, **exact)),
                (
                    index.hard_count(thresholds=0.5, **asked),
                    kinsight.hard_count(kernel, data, queries, thresholds=0.5, **exact),
                ),
            ]
            for found, truth in pairs:
                assert found.ids == truth.ids
                assert bool(((found.values - truth.values).abs() <= 4 * found.error + 1).all())
    assert not index.soft_count().is_bound
    assert "(standard error)" in index.soft_count().summary()
    assert index.power_count().is_bound
    assert "at most, if all similarities are off one way" in index.power_count().summary()
    own = index.soft_count(data.take(range(N)), kernel=kernel, data=data)
    assert error(own.values, index.soft_count().values) < 1e-3  # the index keeps sketches in half precision
    with pytest.raises(InputError, match="need kernel="):
        index.soft_count(others)
    with pytest.raises(WrongModelError):
        index.hard_count(thresholds=0.5, queries=others, kernel=GradientKernel(nn.Linear(4, 3).double()))


def test_questions_that_the_sketches_do_not_answer(tmp_path: Path) -> None:
    kernel, data, index = built(tmp_path, 3)
    for question in (index.uncertainty, index.signed_support):
        with pytest.raises(InputError, match="The index is of 3 outputs"):
            question()
    with pytest.raises(InputError, match="power is 0"):
        index.fit_map(power=0)
    with pytest.raises(InputError, match="weighting is 'whitened', and the index is of 'flat' similarity"):
        index.averages(weighting="whitened")
    with pytest.raises(InputError, match="Queries that are inputs need kernel="):
        index.averages(data.take([1]))
    turned = Samples(data.take([*range(1, N), 0]))
    for question in (index.averages, index.soft_count):
        with pytest.raises(ChangedDataError, match="has another input or target"):
            question(turned, kernel=kernel, data=turned)
        with pytest.raises(ChangedDataError, match="The index is of 120 samples and this data has 50"):
            question(torch.randn(3, 4).double(), kernel=kernel, data=data.first(50))
    _, _, whitened = built(tmp_path, 3, seed=1, normalization="whitened")
    with pytest.raises(InputError, match="Averages weighted by the kernel need the kernel itself"):
        whitened.averages(weighting="kernel")
    with pytest.raises(InputError, match="There are 2 groups and 120 samples"):
        index.fit_map(groups=["a", "b"])
    assert set(index.fit_map().groups or ()) == {"a", "b", "c"}
    plain = Index.build(tmp_path / "plain", kernel, data.take(range(N)).inputs, dim=64)
    with pytest.raises(TargetError, match="no targets"):
        plain.averages()


def test_samples_without_gradients(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False)).double()
    x = samples(1).take(range(N)).inputs.clone()
    x[3] = 0
    kernel, data = GradientKernel(model), Samples(x, x[:, :1])
    index = Index.build(tmp_path / "index", kernel, data, dim=DIM)
    with pytest.warns(ZeroGradientWarning, match=r"\[3\]") as seen:
        found = index.averages()
    assert len(seen) == 1
    assert bool(found.labels[3].isnan().all())
    assert not bool(found.labels[:3].isnan().any())
    assert found.weights.isnan().nonzero().flatten().tolist() == [3]
    for question in (index.signed_support, index.uncertainty):
        with pytest.warns(ZeroGradientWarning, match=r"\[3\]"):
            support = question()
        assert support.sums.isnan().nonzero().flatten().tolist() == [3]
    with pytest.warns(ZeroGradientWarning, match=r"\[3\]"):
        assert index.fit_map().regimes[3] == "undefined"
