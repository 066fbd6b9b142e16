"""Numbers at the edge: not finite, tiny, huge, nearly dependent, or of several precisions at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import kinsight
from kinsight import reference
from kinsight.errors import NonFiniteError
from kinsight.kernel import GradientKernel
from kinsight.samples import Batch, as_batch
from tests.plain import X, linear
from tests.test_engine import error
from tests.zoo_models import Lambda


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_outputs_that_are_not_finite_are_named_by_id(value: float) -> None:
    x = X.clone()
    x[2, 1] = value
    with pytest.raises(NonFiniteError, match=r"outputs of 1 of 4 samples are nan or inf: \['c'\]"):
        GradientKernel(linear())(Batch(x, tuple("abcd")))


def test_gradients_that_are_not_finite_are_named_by_id() -> None:
    model = nn.Sequential(nn.Linear(3, 1, bias=False), Lambda(lambda x: x.sqrt()))
    model[0].weight.data.fill_(1.0)
    x = X.clone()
    x[1] = 0  # sqrt has an infinite slope here, times inputs 0: nan
    for question in (lambda k, b: k(b), lambda k, b: k.similarity(b), lambda k, b: k.blocks(b)):
        with pytest.raises(NonFiniteError, match=r"gradients of 1 of 4 samples are nan or inf: \['b'\]"):
            question(GradientKernel(model, check="never"), Batch(x, tuple("abcd")))


class Root(nn.Module):
    """Its outputs are finite, its gradient is not where the input is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6, bias=False), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).abs().sqrt())


def test_a_gradient_that_is_nan_is_named_and_spoils_nothing() -> None:
    torch.manual_seed(0)
    kernel, x = GradientKernel(Root()), torch.randn(6, 4)
    spoiled = x.clone()
    spoiled[2] = 0
    with pytest.raises(NonFiniteError, match=r"gradients of 1 of \d samples are nan or inf: \[2\]"):
        kernel(spoiled)
    kernel(x)
    assert all(route.startswith("rule") for route in kernel.routes.values()), kernel.routes


@pytest.mark.parametrize(
    ("of_input", "of_gradient"),
    [(1e12, 1e-20), (1e15, 1e-24), (1e18, 1e-25), (1e-22, 1e12), (1e-25, 1e18), (1e-16, 1e-16)],
)
def test_factors_of_extreme_sizes(of_input: float, of_gradient: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False)
    x = torch.randn(5, 4)
    plain = GradientKernel(model).similarity(x)
    found = GradientKernel(model, lambda returned: returned * of_gradient).similarity(x * of_input)
    assert error(found, plain) < 1e-5


class Confident(nn.Module):
    """Saturates for a sample whose last input is far from 0: its gradient is tiny beside the others."""

    def __init__(self, body: nn.Module, is_sigmoid: bool) -> None:
        super().__init__()
        self.body, self.is_sigmoid = body, is_sigmoid

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x[:, :-1])
        return torch.sigmoid(h + x[:, -1:]) if self.is_sigmoid else h * x[:, -1:]


@pytest.mark.parametrize("last", [-48.0, -52.0, -60.0])
@pytest.mark.parametrize("batch_size", [None, 3, 1])
def test_a_tiny_gradient_beside_normal_ones(last: float, batch_size: int | None) -> None:
    model = Confident(nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 1)), is_sigmoid=True)
    x = torch.randn(6, 21)
    x[:, -1] = 0
    x[0, -1] = last
    kernel = GradientKernel(model, batch_size=batch_size)
    found, crossed = kernel.similarity(x), kernel.similarity(x[:3], x[3:])
    counts = kinsight.soft_count(kernel, x).values
    truth = GradientKernel(model.double()).similarity(x.double())
    assert error(found, truth) < 1e-5
    assert error(crossed, truth[:3, 3:]) < 1e-5
    assert error(counts, truth.sum(dim=1)) < 1e-5


def test_a_gradient_whose_inverse_norm_is_no_float32() -> None:
    model = Confident(nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 1)), is_sigmoid=False)
    x = torch.randn(8, 9)
    x[:, -1] = 1
    x[0, -1] = 1e-39
    found = kinsight.soft_count(GradientKernel(model), x).values
    truth = kinsight.soft_count(GradientKernel(model.double()), x.double()).values
    assert error(found, truth) < 1e-5


class RolledKeys(nn.Module):
    """The key bias of attention, on a generic path: its true gradient is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.b = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        keys = torch.addcmul(self.k(x), self.b, torch.ones(4).to(x))
        return ((self.q(x) @ keys.transpose(1, 2)).softmax(-1) @ self.v(x)).mean(1)


def test_a_gradient_that_is_zero_by_symmetry_is_no_fault() -> None:
    kernel = GradientKernel(RolledKeys().double())
    kernel(torch.randn(5, 3, 4, dtype=torch.float64))
    assert kernel.routes["b"].startswith("vmap")


def test_outputs_that_are_nearly_dependent_in_float32() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def nearly_dependent(z: Tensor) -> Tensor:
        return torch.stack([z[:, 0], z[:, 0] + 1e-4 * z[:, 1], z[:, 2]], dim=1)

    x = torch.randn(6, 4)
    single = GradientKernel(model, nearly_dependent)
    found = single.similarity(x)
    loop = reference.per_sample_gradients(model, as_batch(x), single.output, single.parameters)
    model.double()
    double = GradientKernel(model, nearly_dependent)
    truth = reference.per_sample_gradients(model, as_batch(x.double()), double.output, double.parameters)
    exact = reference.similarity(truth, truth)
    error = float((found - exact).norm() / exact.norm())
    assert error < max(2e-4, 2 * float((reference.similarity(loop, loop) - exact).norm() / exact.norm()))


@pytest.mark.parametrize("closeness", [1e-2, 1e-4])
def test_soft_counts_of_nearly_dependent_outputs_are_as_good_as_similarities(closeness: float) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))

    def nearly(z: Tensor) -> Tensor:
        return torch.stack([z[:, 0], z[:, 0] + closeness * z[:, 1], z[:, 2]], dim=1)

    x = torch.randn(30, 6)
    kernel = GradientKernel(body, nearly)
    counts, sums = kinsight.soft_count(kernel, x).values, kernel.similarity(x).sum(dim=1)
    truth = GradientKernel(body.double(), nearly).similarity(x.double()).sum(dim=1)
    assert error(counts, truth) < 3 * error(sums, truth) + 1e-6


class DoublePrecisionHead(nn.Module):
    """Float32 inside, float64 outside, as root mean squares computed in float32 do it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.head(hidden * hidden.float().square().mean(-1, keepdim=True).rsqrt().double())


def test_mixed_precision_is_judged_by_its_coarsest_part() -> None:
    x = torch.randn(5, 3)
    model = linear()
    assert torch.allclose(GradientKernel(model, lambda z: z.double())(x), GradientKernel(model)(x), rtol=1e-5)
    model, x = DoublePrecisionHead().double(), x.double()
    kernel = GradientKernel(model)
    truth = reference.per_sample_gradients(model, as_batch(x), kernel.output, kernel.parameters)
    assert torch.allclose(kernel(x), reference.kernel(truth, truth), rtol=1e-5)
    assert all(route.startswith("rule") for route in kernel.routes.values())


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x)


def test_ranks_follow_the_precision_that_is_computed_in() -> None:
    torch.manual_seed(0)
    model, x = Autocast(), torch.randn(6, 5)
    kernel = GradientKernel(model, "centered_logits")
    assert kernel.ranks(x).tolist() == [2] * 6
    assert float(kernel.influence(x).abs().max()) < 10
