"""What a planted situation is called."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kinsight import GradientKernel, Samples
from kinsight.errors import InputError, TargetError, UnknownNameError
from kinsight.fit import MEANINGS, FitMap, Splits, fit_map


def trained(x: Tensor, y: Tensor, n_steps: int, c: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 64), nn.Tanh(), nn.Linear(64, c)).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(n_steps):
        optimizer.zero_grad()
        is_class = not y.is_floating_point()
        loss = nn.functional.cross_entropy(model(x), y) if is_class else (model(x)[:, 0] - y).square().mean()
        loss.backward()
        optimizer.step()
    return model.eval()


def blobs() -> tuple[Tensor, Tensor]:
    """Two crowds, and three samples far from them."""
    torch.manual_seed(1)
    x = torch.randn(203, 4).double()
    x[:100, 0] += 4
    x[100:200, 0] -= 4
    x[200:] = torch.tensor([[0.0, 40.0, 0, 0], [0, 0, -40, 0], [0, 0, 0, 40]])
    return x, (torch.arange(203) >= 100).long()


@pytest.fixture(scope="module")
def memorized() -> FitMap:
    x, y = blobs()
    y[7] = 1  # wrong, and learned
    model = trained(x, y, 1500, 2)
    return fit_map(GradientKernel(model), Samples(x, y), least_count=0.0)


def test_what_was_learned_and_what_was_memorized(memorized: FitMap) -> None:
    assert memorized.regimes[7] == "memorized"
    assert memorized.of("memorized")[0] == 7
    assert memorized.regimes.count("learned") > 190
    assert memorized.groups is not None
    of_zero, of_one = memorized.by_group()
    assert (of_zero["group"], of_zero["n"], of_one["n"]) == (0, 99, 104)
    assert sum(of_zero[regime] for regime in MEANINGS) == pytest.approx(1)
    record = list(memorized.rows())[7]
    assert record["regime"] == "memorized"
    assert record["disagreement"] > 0.9
    assert record["residual"] < 0.1


def test_what_was_not_fitted() -> None:
    x, y = blobs()
    y[7] = 1
    early = fit_map(GradientKernel(trained(x, y, 25, 2)), Samples(x, y), least_count=0.0)
    assert early.regimes[7] == "contradicted"
    never = fit_map(GradientKernel(trained(x, y, 0, 2)), Samples(x, y), least_count=0.0, most_residual=0.3)
    assert never.regimes.count("learned") < 100


def test_numbers_by_hand() -> None:
    x, y = blobs()
    kernel = GradientKernel(trained(x, y, 50, 2))
    labels = torch.eye(2).double()[y]
    for power, normalization in ((8.0, "flat"), (1.0, "whitened")):
        found = fit_map(kernel, Samples(x, y), power=power, normalization=normalization)  # type: ignore[arg-type]
        similarity = kernel.flat_similarity(x) if normalization == "flat" else kernel.similarity(x)
        weights = (similarity.clamp(min=0) ** power if power > 1 else similarity).fill_diagonal_(0)
        shares = weights @ labels / weights.sum(dim=1, keepdim=True)
        torch.testing.assert_close(found.counts, weights.sum(dim=1))
        total = 1 - labels.mean(dim=0).square().sum()
        torch.testing.assert_close(found.variances, (1 - shares.square().sum(dim=1)) / total)
        torch.testing.assert_close(found.disagreements, (labels - shares).norm(dim=1) / 2**0.5)
        probabilities = kernel.model(x).softmax(dim=1).detach()
        torch.testing.assert_close(found.residuals, (labels - probabilities).norm(dim=1) / 2**0.5)
        assert found.splits.count == pytest.approx(float(found.counts.quantile(0.1)))


@pytest.mark.parametrize("power", [1.0, 8.0])
def test_whole_numbers_can_be_values(power: float) -> None:
    """What the targets' type is does not matter once a task is named: labels are read once."""
    x, y = blobs()
    several = torch.stack([y, 3 * y, 1 - y], dim=1)
    for targets, c in ((y, 1), (several, 3)):
        kernel = GradientKernel(trained(x, y, 1, 2)[:2].append(nn.Linear(64, c).double()))  # type: ignore[index]
        found = fit_map(kernel, Samples(x, targets), task="regression", power=power)
        truth = fit_map(kernel, Samples(x, targets.double()), power=power)
        for name in ("counts", "variances", "disagreements", "residuals"):
            assert torch.equal(getattr(found, name), getattr(truth, name)), name
        assert found.disagreements.shape == (203,)
        assert (found.regimes, found.groups) == (truth.regimes, None)


@pytest.mark.parametrize("power", [1.0, 8.0])
def test_classes_by_name_of_the_task(power: float) -> None:
    x, y = blobs()
    kernel = GradientKernel(trained(x, y, 1, 2))
    named, unnamed = (fit_map(kernel, Samples(x, y), task=task, power=power) for task in ("classification", None))
    assert torch.equal(named.residuals, unnamed.residuals)
    assert named.regimes == unnamed.regimes


def test_what_a_callable_gives_is_not_known_to_be_logits() -> None:
    x, y = blobs()
    model = trained(x, y, 1, 2)
    with pytest.raises(TargetError, match=r"Classes need logits, one for each: output='logits'; what a callable"):
        fit_map(GradientKernel(model, lambda returned: returned), Samples(x, y))
    assert len(fit_map(GradientKernel(model, "log_probs"), Samples(x, y), power=1)) == 203


def test_values() -> None:
    x, _ = blobs()
    y = x[:, 0].sin()
    found = fit_map(GradientKernel(trained(x, y, 300, 1)), Samples(x, y), groups=["left", "right"] * 101 + ["left"])
    assert found.groups is not None
    assert [record["group"] for record in found.by_group()] == ["left", "right"]
    spread = y.var(correction=0).sqrt()
    residuals = (kernel_says(x, y) - y).abs() / spread
    torch.testing.assert_close(found.residuals, residuals)
    with pytest.raises(InputError, match="There are no groups"):
        fit_map(GradientKernel(trained(x, y, 1, 1)), Samples(x, y)).by_group()


def kernel_says(x: Tensor, y: Tensor) -> Tensor:
    return trained(x, y, 300, 1)(x)[:, 0].detach()


@pytest.mark.parametrize("value", [0.5, 0.1, 1e6 + 0.1, 1e-200, 0.0])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_labels_that_are_all_the_same(value: float, power: float) -> None:
    """Residuals are shares of the label, whatever rounding makes of the deviations of a constant."""
    x, _ = blobs()
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    says = model(x)[:, 0].detach()
    found = fit_map(GradientKernel(model), Samples(x, torch.full((203,), value, dtype=torch.float64)), power=power)
    torch.testing.assert_close(found.residuals, (says - value).abs() / (value or 1.0))
    assert float(found.disagreements.nan_to_num().max()) < 1e-8
    assert float(found.variances.nan_to_num().abs().max()) < 1e-8


@pytest.mark.parametrize("made", [torch.tensor, np.array, list])
def test_groups_are_in_order_whatever_holds_them(made: Any) -> None:
    x, y = blobs()
    kernel = GradientKernel(trained(x, y, 1, 2))
    numbers = [10, 2, 0, 1, 10, 2, 0] * 29
    found = fit_map(kernel, Samples(x, y), groups=made(numbers))
    assert found.groups == tuple(numbers)
    assert [(record["group"], record["n"]) for record in found.by_group()] == [(0, 58), (1, 29), (2, 58), (10, 58)]
    mixed = fit_map(kernel, Samples(x, y), groups=[*["b", 10, "a", 2.5] * 50, "a", "a", "a"])
    assert [record["group"] for record in mixed.by_group()] == [2.5, 10, "a", "b"]
    gaps = fit_map(kernel, Samples(x, y), groups=[math.nan, "a", math.nan, *["b"] * 200])
    assert [(record["group"], record["n"]) for record in gaps.by_group()] == [(None, 2), ("a", 1), ("b", 200)]


def test_classes_beyond_those_that_have_a_name() -> None:
    x, y = blobs()
    y[200:] = 2
    found = fit_map(GradientKernel(trained(x, y, 1, 3)), Samples(x, y, class_names=["cat", "owl"]))
    assert [record["group"] for record in found.by_group()] == ["2", "cat", "owl"]


@pytest.mark.usefixtures("without_type_checks")
def test_regimes_by_another_name(memorized: FitMap) -> None:
    with pytest.raises(UnknownNameError, match="regime 'learnt' is unknown: there are learned, memorized"):
        memorized.of("learnt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("numbers", "regime"),
    [
        ((5, 0.1, 0.1, 0.1), "learned"),
        ((5, 0.9, 0.1, 0.1), "learned"),
        ((5, 0.1, 0.9, 0.1), "memorized"),
        ((5, 0.1, 0.1, 0.9), "underfit"),
        ((5, 0.1, 0.9, 0.9), "contradicted"),
        ((5, 0.9, 0.4, 0.9), "ambiguous"),
        ((1, 0.1, 0.1, 0.1), "alone"),
        ((1, 0.9, 0.9, 0.9), "not learned"),
        ((float("nan"), 0, 0, 0), "undefined"),
    ],
)
def test_every_regime(numbers: tuple[float, float, float, float], regime: str) -> None:
    assert Splits(2, 0.5, 0.5, 0.5).regime(*numbers) == regime
    assert regime in MEANINGS


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"power": 0}, InputError, "must be positive"),
        ({"task": "regresion"}, UnknownNameError, "task 'regresion' is unknown"),
        ({"task": "regresion", "power": 1}, UnknownNameError, "task 'regresion' is unknown"),
        ({"normalization": "kernel", "power": 1}, UnknownNameError, "normalization 'kernel' is unknown"),
        ({"least_count": math.nan}, InputError, "The count that splits regimes is nan"),
        ({"most_residual": math.nan}, InputError, "The residual that splits regimes is nan"),
        ({"groups": [1, 2]}, InputError, "2 groups and 203 samples"),
        ({"groups": [[1, 2]] * 203}, InputError, "A group is no name or number"),
        ({"groups": [([1], 2)] * 203}, InputError, "A group is no name or number"),
        ({"power": math.inf}, InputError, "must be positive, and finite"),
    ],
)
def test_questions_that_make_no_sense(options: Any, error: Any, message: str) -> None:
    x, y = blobs()
    with pytest.raises(error, match=message):
        fit_map(GradientKernel(trained(x, y, 1, 2)), Samples(x, y), **options)
    with pytest.raises(TargetError, match="cannot be compared with the targets"):
        fit_map(GradientKernel(trained(x, y, 1, 2)), Samples(x, torch.randn(203)))
