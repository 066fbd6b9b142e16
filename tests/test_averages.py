"""Averages around every sample are those of the Gram matrix, formed and multiplied."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinsight import GradientKernel, Samples
from kinsight.averages import Averages, averages
from kinsight.errors import TargetError, UnknownNameError, ZeroGradientWarning
from kinsight.kernel_products import kernel_products
from kinsight.outputs import OutputFunction, custom, kind_of_output, log_probs, logits, probes

N = 40


def network(n_outputs: int, *, is_trained: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, n_outputs)).double().eval()


def inputs(n: int = N, seed: int = 1) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix(kernel: GradientKernel, weighting: str, x: Tensor, y: Tensor) -> Tensor:
    if weighting == "kernel":
        assert kernel.n_outputs is not None
        return kernel(x, y) * kernel.n_outputs
    return kernel.similarity(x, y) if weighting == "whitened" else kernel.flat_similarity(x, y)


def close(a: Tensor | None, b: Tensor) -> None:
    assert a is not None
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("weighting", ["whitened", "flat", "kernel"])
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("max_bytes", [2**30, 2**15])
def test_products_are_those_of_the_gram_matrix(weighting: Any, n_outputs: int, max_bytes: int) -> None:
    kernel = GradientKernel(network(n_outputs), max_bytes=max_bytes)  # little memory: group by group
    x, queries = inputs(), inputs(7, seed=2)
    vectors = torch.randn(N, 6, dtype=torch.float64)
    for asked in (None, queries):
        found = kernel_products(
            kernel, Samples(x), lambda rows, _: vectors[rows], 6, None if asked is None else Samples(asked),
            weighting=weighting,
        )  # fmt: skip
        targets = x if asked is None else asked
        close(found.values, matrix(kernel, weighting, targets, x) @ vectors)
        close(found.outputs, kernel.outputs(targets).detach())
        is_kernel = weighting == "kernel"
        of_targets, of_data = ((kernel.diag(each) * n_outputs).sqrt() for each in (targets, x))
        close(found.lengths, of_targets if is_kernel else torch.ones_like(of_targets))
        assert found.total_length == pytest.approx(float(of_data.sum()) if is_kernel else N)


def test_products_of_blocks() -> None:
    kernel, x = GradientKernel(network(3)), inputs()
    vectors = torch.randn(N, 3, 2, dtype=torch.float64)
    found = kernel_products(kernel, Samples(x), lambda rows, _: vectors[rows], 2, weighting="blocks")
    close(found.values, torch.einsum("nmab,mbk->nak", kernel.blocks(x), vectors))


def by_hand(weights: Tensor, labels: Tensor, said: Tensor, own: Tensor) -> dict[str, Tensor]:
    s = weights.sum(dim=1, keepdim=True)
    mean, predicted = weights @ labels / s, weights @ said / s
    return {
        "labels": mean,
        "variances": weights @ labels.square().sum(dim=1) / s[:, 0] - mean.square().sum(dim=1),
        "predictions": predicted,
        "shifts": own - predicted,
        "residuals": weights @ (said - labels) / s,
    }


def compare(found: Averages, wanted: dict[str, Tensor]) -> None:
    for name, value in wanted.items():
        close(getattr(found, name), value)


@pytest.mark.parametrize("weighting", ["whitened", "flat", "kernel"])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("d", [1, 3])
def test_values(weighting: Any, include_self: bool, d: int) -> None:
    kernel, x = GradientKernel(network(d)), inputs()
    y = 1e4 + torch.randn(N, d, dtype=torch.float64)  # far from 0: nothing is to cancel away
    said = kernel.outputs(x).detach()
    found = averages(kernel, Samples(x, y if d > 1 else y[:, 0]), weighting=weighting, include_self=include_self)
    weights = matrix(kernel, weighting, x, x)
    if not include_self:
        weights = weights - weights.diagonal().diag()
    center = y.mean(dim=0)
    wanted = by_hand(weights, y - center, said - center, said - center)
    compare(found, {**wanted, "labels": wanted["labels"] + center, "predictions": wanted["predictions"] + center})
    close(found.weights, weights.sum(dim=1))
    norms = weights.diagonal().sqrt() if include_self else matrix(kernel, weighting, x, x).diagonal().sqrt()
    close(found.shares, weights.sum(dim=1) / (norms * norms.sum()))
    of_queries = averages(kernel, Samples(x, y), inputs(6, seed=3), weighting=weighting, include_self=include_self)
    other = matrix(kernel, weighting, inputs(6, seed=3), x)
    close(of_queries.labels, other @ y / other.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_classes(n_outputs: int) -> None:
    kernel, x = GradientKernel(network(n_outputs)), inputs()
    n_classes = max(2, n_outputs)
    y = torch.arange(N) % n_classes
    outputs = kernel.outputs(x).detach()
    said = outputs.softmax(dim=1) if n_outputs > 1 else torch.cat([1 - outputs.sigmoid(), outputs.sigmoid()], dim=1)
    found = averages(kernel, Samples(x, y))
    assert found.classes == tuple(range(n_classes))
    compare(found, by_hand(kernel.similarity(x), torch.eye(n_classes, dtype=torch.float64)[y], said, said))
    close(found.labels.sum(dim=1), torch.ones(N, dtype=torch.float64))


def test_what_the_network_says_is_left_out_where_it_is_of_another_kind() -> None:
    x = inputs()
    found = averages(GradientKernel(network(3), "one_vs_rest"), Samples(x, torch.arange(N) % 3 * 5))
    assert found.classes == (0, 5, 10)
    assert found.predictions is found.shifts is found.residuals is found.own is None
    assert {*next(found.rows())} == {"id", "weight", "share", "label", "variance"}


@pytest.mark.parametrize(
    ("output", "n_outputs", "is_said"),
    [
        ("logits", 3, True), (lambda returned: 2 * returned, 3, True), (probes(3), 3, False),
        ("centered_logits", 3, False), ("log_probs", 3, False), ("one_vs_rest", 1, False),
    ],
)  # fmt: skip
def test_what_the_network_says_of_values_is_not_told_by_a_count(output: Any, n_outputs: int, is_said: bool) -> None:
    y = torch.randn(N, n_outputs, dtype=torch.float64)
    found = averages(GradientKernel(network(3), output), Samples(inputs(), y if n_outputs > 1 else y[:, 0]))
    assert (found.own is not None) == is_said


@pytest.mark.parametrize("output", ["centered_logits", "log_probs"])
def test_outputs_whose_softmax_is_that_of_logits(output: str) -> None:
    data = Samples(inputs(), torch.arange(N) % 3)
    found, truth = (averages(GradientKernel(network(3), each), data) for each in (output, "logits"))
    assert truth.own is not None
    close(found.own, truth.own)


def test_kinds_of_outputs_by_the_name_that_an_index_keeps() -> None:
    for name, kind in (("logits", logits), ("log_probs", log_probs), ("custom", custom), ("shop.mine", OutputFunction)):
        assert kind_of_output(name) is kind


def test_nothing_is_divided_by_a_sum_that_cancels() -> None:
    kernel = GradientKernel(nn.Linear(2, 1, bias=False).double())
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    with pytest.warns(ZeroGradientWarning, match=r"\[3\]"):
        found = averages(kernel, Samples(x, torch.arange(4.0)), weighting="kernel")
    assert found.labels[:2].isnan().all()
    close(found.labels[2], torch.tensor([2.0], dtype=torch.float64))
    assert bool(found.labels[3].isnan().all())
    assert found.weights[:2].tolist() == [0, 0]


@pytest.mark.parametrize("weighting", ["whitened", "flat", "kernel"])
def test_zero_gradients_are_warned_of_once(weighting: Any) -> None:
    x = torch.eye(3, dtype=torch.float64)
    x[1] = 0
    with pytest.warns(ZeroGradientWarning, match=r"\[1\]") as seen:
        averages(
            GradientKernel(nn.Linear(3, 1, bias=False).double()), Samples(x, torch.arange(3.0)), weighting=weighting
        )
    assert len(seen) == 1


def test_negative_variances_are_told() -> None:
    """Two samples alike, a third one opposite to both, less so: weights 1, 1, -1/2 of labels 0, 0, 1."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-0.5, 3**0.5 / 2]], dtype=torch.float64)
    kernel = GradientKernel(nn.Linear(2, 1, bias=False).double())
    found = averages(kernel, Samples(x, torch.tensor([0.0, 0.0, 1.0])), weighting="flat")
    close(found.variances[:2], torch.tensor([-1 / 3 - 1 / 9] * 2, dtype=torch.float64))
    assert "for 2 of 3 samples variances are negative, and say nothing." in found.summary()
    plain = averages(kernel, Samples(x[:2], torch.tensor([0.0, 1.0])), weighting="flat")
    assert "variances are negative" not in plain.summary()


def test_stationary_networks_have_no_residual() -> None:
    """At the least squares solution, sum_j k_ij (f_j - y_j) = 0 for every sample, one of test too."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 1).double(), inputs(), torch.randn(N, dtype=torch.float64)
    wide = torch.cat([x, torch.ones(N, 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(wide, y).solution
    with torch.no_grad():
        model.weight.copy_(solution[None, :5])
        model.bias.copy_(solution[5:])
    kernel, data = GradientKernel(model), Samples(x, y)
    found = averages(kernel, data, weighting="kernel")
    assert found.residuals is not None
    sums = (found.residuals[:, 0] * found.weights).nan_to_num()
    assert float(sums.abs().max()) < 1e-10
    assert found.shifts is not None
    assert found.own is not None
    both = ~found.labels[:, 0].isnan()
    off = (found.own - found.labels - found.shifts - found.residuals)[both]
    assert float(off.abs().max()) < 1e-9  # what the decomposition says, noise being in the labels


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("targets", "options", "error", "message"),
    [
        (None, {}, TargetError, "no targets"),
        (torch.rand(N), {"task": "classification"}, TargetError, "whole numbers"),
        (torch.rand(N), {"task": "regresion"}, UnknownNameError, "task 'regresion' is unknown"),
        (torch.rand(N), {"weighting": "blocks"}, UnknownNameError, "use 'whitened', 'flat' or 'kernel'"),
    ],
)
def test_questions_that_make_no_sense(targets: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        averages(GradientKernel(network(1)), Samples(inputs(), targets), **options)
