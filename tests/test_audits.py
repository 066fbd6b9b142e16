"""Counts and label suspects from an index are those of the kernel, within the error they state."""

import functools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kinsight import GradientKernel, Index, Samples, hard_count, label_suspects, power_count, soft_count
from kinsight.errors import InputError, TargetError, ZeroGradientWarning
from kinsight.labels.suspects import LabelSuspects

N, DIM = 300, 1024


def blobs(*, n_wrong: int = 0, seed: int = 0) -> tuple[nn.Module, Samples]:
    """A network trained on three classes, some labels of which are wrong, and what it was trained on."""
    torch.manual_seed(seed)
    classes = torch.arange(N) % 3
    x = torch.randn(N, 4) + 2.5 * torch.eye(4)[classes]
    labels = classes.clone()
    labels[:n_wrong] = (labels[:n_wrong] + 1) % 3
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval(), Samples(x, targets=labels)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[GradientKernel, Samples, Index]:
    model, samples = blobs(n_wrong=6)
    kernel = GradientKernel(model)
    folder = tmp_path_factory.mktemp("audits") / "index"
    return kernel, samples, Index.build(folder, kernel, samples, dim=DIM, normalization="flat")


@pytest.mark.parametrize("include_self", [True, False])
def test_soft_counts(built: Any, include_self: bool) -> None:
    kernel, samples, index = built
    truth = soft_count(kernel, samples, normalization="flat", include_self=include_self)
    found = index.soft_count(include_self=include_self)
    assert found.ids == truth.ids
    assert found.error.shape == found.values.shape
    off = (found.values - truth.values).abs() / found.error
    assert float(off.max()) < 4
    assert float(off.square().mean().sqrt()) < 2  # one draw of the projection: counts of neighbors move together


def test_soft_counts_are_unbiased_with_the_error_they_state(tmp_path: Path) -> None:
    model, samples = blobs()
    kernel = GradientKernel(model)
    truth = soft_count(kernel, samples, normalization="flat").values
    off = []
    for seed in range(12):
        index = Index.build(tmp_path / str(seed), kernel, samples, dim=64, seed=seed, normalization="flat")
        found = index.soft_count()
        off.append((found.values - truth) / found.error)
    assert 0.6 < float(torch.stack(off).square().mean().sqrt()) < 1.4
    assert float(torch.stack(off).mean(dim=0).abs().mean()) < 3 / 12**0.5


@pytest.mark.parametrize("include_self", [True, False])
def test_hard_counts(built: Any, include_self: bool) -> None:
    kernel, samples, index = built
    thresholds = [-0.2, 0.3, 0.7, 0.9]
    truth = hard_count(kernel, samples, thresholds=thresholds, normalization="flat", include_self=include_self)
    found = index.hard_count(thresholds=thresholds, include_self=include_self)
    assert found.values.shape == found.error.shape == (N, 4)
    assert bool(((found.values - truth.values).abs() <= 3 * found.error + 2).all())
    assert float((found.values - truth.values).abs().mean()) < 3
    assert torch.equal(index.hard_count(thresholds=0.3, include_self=include_self).values, found.values[:, 1])


@pytest.mark.parametrize("thresholds", [[0.1, 0.5], (0.1, 0.5), np.array([0.1, 0.5]), torch.tensor([0.1, 0.5])])
def test_thresholds_are_a_list_of_any_kind(built: Any, thresholds: Any) -> None:
    kernel, samples, index = built
    found = [
        index.hard_count(thresholds=thresholds),
        hard_count(kernel, samples, thresholds=thresholds, normalization="flat"),
    ]
    single = [
        index.hard_count(thresholds=0.5),
        hard_count(kernel, samples, thresholds=np.float64(0.5), normalization="flat"),
    ]
    for several, one in zip(found, single, strict=True):
        assert several.values.shape == (N, 2)
        assert torch.equal(several.values[:, 1], one.values)
    assert index.hard_count(thresholds=torch.tensor(0.5)).values.shape == (N,)


class LargestTensor(TorchDispatchMode):
    """How many numbers the largest tensor has that any operation gives."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(each.numel() for each in tree_leaves(found) if isinstance(each, Tensor))])
        return found


def test_memory_does_not_grow_with_the_number_of_thresholds(built: Any) -> None:
    """No tensor is larger than three blocks of all pairs, whatever the number of thresholds."""
    kernel, samples, index = built
    taus = torch.linspace(-1, 1, 40)
    for count in (index.hard_count, functools.partial(hard_count, kernel, samples)):
        with LargestTensor() as seen:
            count(thresholds=taus)
        assert seen.largest <= max(3 * N**2, N * DIM)


def test_power_counts(built: Any) -> None:
    kernel, samples, index = built
    truth = power_count(kernel, samples, power=4, normalization="flat")
    found = index.power_count(power=4)
    assert bool(((found.values - truth.values).abs() <= 2 * found.error).all())
    assert float(((found.values - truth.values) / truth.values).abs().mean()) < 0.1


def test_label_suspects(built: Any) -> None:
    kernel, samples, index = built
    truth, found = label_suspects(kernel, samples, n_suspects=6), index.label_suspects(n_suspects=6)
    assert isinstance(found, LabelSuspects)
    assert set(found.ids) == set(truth.ids)
    assert (found.error, truth.error) == (index.error, None)
    off = (found.all_scores - truth.all_scores).abs()
    assert float(off.mean()) < 0.02
    assert float(off.max()) < 0.2
    assert torch.equal(found.suggested[found.positions.argsort()], truth.suggested[truth.positions.argsort()])
    assert found.supporter_positions.shape == (6, 5)


def test_indexes_of_other_data_are_not_asked_together(built: Any, tmp_path: Path) -> None:
    kernel, samples, index = built
    whole = samples.take(range(N))
    how: dict[str, Any] = {"dim": 64, "normalization": "flat"}
    rough = Index.build(
        tmp_path / "rough", GradientKernel(blobs(seed=1)[0]), Samples(whole.inputs, whole.targets), **how
    )
    assert rough.error > index.error
    assert index.label_suspects(others=[rough]).error == rough.error
    moved, other = whole.inputs.clone(), whole.targets.clone()
    moved[5], other[5] = moved[5] + 1, 2 - other[5] % 2
    named = list(map(str, range(N)))
    for number, (reason, x, y, options) in enumerate([
        ("other inputs", moved, whole.targets, {}), ("other targets", whole.inputs, other, {}),
        ("other samples, by id,", whole.inputs, whole.targets, {"ids": named}),
        ("another similarity", whole.inputs, whole.targets, {}),
    ]):  # fmt: skip
        built_how = {**how, "normalization": "whitened" if reason == "another similarity" else "flat"}
        another = Index.build(tmp_path / str(number), kernel, Samples(x, y, **options), **built_how)
        with pytest.raises(InputError, match=f"has {reason} than"):
            index.label_suspects(others=[another])


def test_zero_gradients_have_no_counts(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Tanh()).eval()
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    x[11] = 0
    index = Index.build(tmp_path, GradientKernel(model), x, dim=64)
    for count in (index.soft_count, index.hard_count, index.power_count):
        with pytest.warns(ZeroGradientWarning, match=r"1 samples is zero: \[11\]"):
            counts = count()
        assert counts.values.isnan().nonzero().flatten().tolist() == [11]
        assert 11 not in counts.order()
    with pytest.warns(ZeroGradientWarning):
        exact, found = hard_count(GradientKernel(model), x, thresholds=0.5), index.hard_count(thresholds=0.5)
    assert float((found.values - exact.values).nan_to_num().abs().max()) <= 4


def test_questions_that_make_no_sense(built: Any, tmp_path: Path) -> None:
    kernel, samples, index = built
    for count in (index.hard_count, functools.partial(hard_count, kernel, samples)):
        with pytest.raises(InputError, match="is nan"):
            count(thresholds=float("nan"))
        for table, shape in (([], "0"), (torch.zeros(2, 2), "2, 2")):
            with pytest.raises(InputError, match=rf"thresholds are \[{shape}\]: pass one similarity, or a list"):
                count(thresholds=table)
    with pytest.raises(InputError, match="must be positive"):
        index.power_count(power=0)
    with pytest.raises(InputError, match="must be positive"):
        index.label_suspects(power=-1)
    with pytest.raises(InputError, match="threshold is nan"):
        index.label_suspects(threshold=float("nan"))
    x = samples.take(range(50)).inputs
    with pytest.raises(TargetError, match="has no targets"):
        Index.build(tmp_path, kernel, x, dim=16).label_suspects()


def test_denoising_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unbiased over seeds, both of them, with the errors they state; D follows."""
    model, samples = blobs()
    kernel = GradientKernel(model)
    exact = kernel(samples.take(range(N))).double() * kernel.n_outputs
    truth = {"sums": exact.sum(dim=1), "squares": exact.square().sum(dim=1)}
    off: dict[str, list[torch.Tensor]] = {name: [] for name in truth}
    factors = truth["squares"].sqrt() / truth["sums"]
    off_factors, in_errors = [], []
    for seed in range(8):
        index = Index.build(tmp_path / str(seed), kernel, samples, dim=DIM, seed=seed, normalization="flat")
        found = index.denoising_sums()
        assert found.ids == samples.ids
        for name, wanted in truth.items():
            off[name].append((getattr(found, name) - wanted) / getattr(found, f"error_of_{name}"))
        is_sure = found.error_of_sums < 0.1 * found.sums.abs()
        off_factors.append((found.factors / factors - 1)[is_sure].abs())
        in_errors.append(((found.factors - factors) / found.error_of_factors)[is_sure])
    for each in off.values():
        of_seeds = torch.stack(each).mean(dim=1)
        assert float(torch.stack(each).square().mean().sqrt()) < 1.2
        assert abs(float(of_seeds.mean())) < 3 * float(of_seeds.std()) / 8**0.5
    assert sum(map(len, off_factors)) > 4 * N
    assert float(torch.cat(off_factors).median()) < 0.1
    assert 0.2 < float(torch.cat(in_errors).square().mean().sqrt()) < 1.2
    monkeypatch.setattr("kinsight.indexing.denoising_sums.MAX_MOMENTS", 10 * DIM)  # a few rows of the moments at a time
    again = index.denoising_sums()
    torch.testing.assert_close(again.squares, found.squares)
    torch.testing.assert_close(again.error_of_squares, found.error_of_squares)


def test_denoising_sums_of_equal_and_of_orthogonal_samples(tmp_path: Path) -> None:
    """D is 1 / sqrt(n) of n equal samples, and 1 of orthogonal ones; nothing is divided by a zero."""
    kernel = GradientKernel(nn.Linear(64, 1, bias=False))
    equal = Index.build(tmp_path / "equal", kernel, torch.ones(9, 64), dim=DIM).denoising_sums()
    torch.testing.assert_close(equal.factors, torch.full((9,), 1 / 3, dtype=torch.float64), rtol=1e-2, atol=0)
    x = torch.eye(64)
    x[5] = 0
    found = Index.build(tmp_path / "orthogonal", kernel, x, dim=2**14).denoising_sums()
    assert found.sums[5] == found.squares[5] == 0
    assert bool(found.factors[5].isnan())
    others = torch.arange(64) != 5
    assert bool(((found.sums - 1).abs() < 4 * found.error_of_sums)[others].all())
    assert float((found.factors[others] - 1).abs().max()) < 0.3


def test_denoising_sums_need_the_kernel_itself(tmp_path: Path) -> None:
    model, samples = blobs()
    index = Index.build(tmp_path, GradientKernel(model), samples.first(50), dim=64)
    with pytest.raises(InputError, match="build one with normalization='flat'"):
        index.denoising_sums()


def picture_network() -> tuple[nn.Module, Samples]:
    """A small convolution with ten outputs, whose gradients have much in common."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 10))
    return model.eval(), Samples(torch.rand(150, 1, 8, 8))


WIDEST = {"soft": 0.3, "hard": 2.2, "power": 0.6}
"""Half of an interval over the count itself, in the median, from sketches of 512 numbers. Measured: soft 0.13 and 0.23;
hard 0 to 0.6 up to a threshold of 0.8, and 0.11 to 2.15 at 0.95, above which few samples are; power 0.05 and 0.52."""


@pytest.mark.slow
@pytest.mark.parametrize("made", [blobs, picture_network])
def test_intervals_hold_the_exact_counts(made: Any, tmp_path: Path) -> None:
    """Over 20 seeds, at least 93 % of the intervals that say 95 %; and they say something."""
    model, samples = made()
    kernel, taus = GradientKernel(model), [0.3, 0.5, 0.8, 0.95]
    options: dict[str, Any] = {"normalization": "flat"}
    x = samples.take(range(40)).inputs
    others = Samples(x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)))
    asked = {"the data": None, "other samples": others}
    exact = {
        (around, name): values
        for around, queries in asked.items()
        for name, values in {
            "soft": soft_count(kernel, samples, queries, **options).values,
            "hard": hard_count(kernel, samples, queries, thresholds=taus, **options).values,
            "power": power_count(kernel, samples, queries, **options).values,
        }.items()
    }
    held: dict[tuple[str, str], list[Tensor]] = {each: [] for each in exact}
    widths: dict[tuple[str, str], list[Tensor]] = {each: [] for each in exact}
    for seed in range(20):
        index = Index.build(tmp_path / str(seed), kernel, samples, dim=512, seed=seed, **options)
        for around, queries in asked.items():
            how = {} if queries is None else {"queries": queries, "kernel": kernel, "data": samples}
            count_of = {
                "soft": index.soft_count,
                "hard": partial(index.hard_count, thresholds=taus),
                "power": index.power_count,
            }
            found = {name: count(**how) for name, count in count_of.items()}
            for name, counts in found.items():
                truth = exact[around, name]
                assert counts.error is not None
                is_held = (counts.values - truth).abs() <= 1.96 * counts.error + 1e-9
                held[around, name].append(is_held.double().reshape(len(truth), -1).mean(dim=0))
                widths[around, name].append((1.96 * counts.error / truth.clamp(min=1)).reshape(len(truth), -1))
    for each in exact:  # at every threshold
        shares, medians = torch.stack(held[each]).mean(dim=0), torch.cat(widths[each]).median(dim=0).values
        assert float(shares.min()) >= 0.93, each
        assert float(medians.max()) < WIDEST[each[1]], each
