"""Models that use their parameters in ways no layer does: exact all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kinsight
from kinsight import reference
from kinsight.errors import UncapturedParameterError
from kinsight.kernel import GradientKernel
from kinsight.samples import as_batch
from tests.plain import X, truth
from tests.test_engine import EXACT, error


class NamedAsTorch:
    """A function of the user's own whose node is called LinearBackward."""

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight.T

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            return gradient @ weight, gradient.T @ x


class UsesIt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return NamedAsTorch.Linear.apply(x, self.weight)


class Regrouped(nn.Module):
    """One kernel in a full and in a depthwise convolution, one table looked up and multiplied in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.table = nn.Parameter(torch.randn(4, 1, 3)), nn.Parameter(torch.randn(6, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.conv1d(x, self.kernel, padding=1)
        h = torch.tanh(nn.functional.conv1d(h, self.kernel, padding=1, groups=4)).mean(2)
        looked_up = nn.functional.embedding((x[:, 0, :2] > 0).long(), self.table).mean(1)
        grouped = torch.bmm(self.table.view(2, 3, 4), torch.stack([h, h]).transpose(1, 2)).mean(1).T
        return self.head(torch.tanh(h + looked_up)) + grouped


class Unrolled(nn.Module):
    """One kernel in a convolution, and as the matrix it is."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(nn.functional.conv1d(x, self.kernel, padding=1)).transpose(1, 2)
        return torch.tanh(self.kernel.flatten(1) @ h.flatten(0, 1).T).T.reshape(h.shape).mean(1)


@pytest.mark.parametrize("is_in_pieces", [False, True])
@pytest.mark.parametrize(("make", "shape"), [(UsesIt, (5,)), (Regrouped, (1, 7)), (Unrolled, (2, 7))])
def test_unusual_uses_are_exact(
    make: type[nn.Module], shape: tuple[int, ...], is_in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_in_pieces:
        monkeypatch.setattr("kinsight.gradients.products.is_gram_built", lambda **sizes: True)
        monkeypatch.setattr("kinsight.gradients.products.PASSING_BYTES", 1)
    torch.manual_seed(0)
    x = torch.randn(5, *shape, dtype=torch.float64)
    kernel = GradientKernel(make().double())
    exact = truth(kernel, x)
    assert error(kernel(x), exact["kernel"]) < EXACT
    assert error(kernel.similarity(x), exact["similarity"]) < EXACT


def test_a_batch_of_one_takes_the_rules_of_several() -> None:
    torch.manual_seed(0)
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)).double().eval()
    x = torch.randn(5, 5, dtype=torch.float64)
    kernel = GradientKernel(model, batch_size=2)
    assert error(kernel(x), truth(kernel, x)["kernel"]) < EXACT
    assert all(route.startswith("rule") for route in kernel.routes.values()), kernel.routes


class LoopsByData(nn.Module):
    """A number of steps that depends on the data stands before a weight that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.body, self.head = nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("order", torch.tensor([[2, 0, 1]]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        for _ in range(int((x[:, 0, 0] > 0).all()) * 3):
            h = torch.sin(h) + 0.1
        return self.head(torch.tanh(h + self.places(self.order)).mean(1))


def test_shared_weights_are_found_wherever_they_are_in_the_graph() -> None:
    torch.manual_seed(0)
    kernel = GradientKernel(LoopsByData().double())
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    for sign in (-1, 1, -1):
        x[:, 0, 0] = sign
        assert error(kernel(x), truth(kernel, x)["kernel"]) < EXACT
    assert all(route.startswith("rule") for route in kernel.routes.values()), kernel.routes


class Merged(nn.Module):
    """A low-rank adapter merged into its weight: large weights made of small parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.randn(width, width) / width**0.5, requires_grad=False)
        self.a, self.b = nn.Parameter(torch.randn(1, width)), nn.Parameter(torch.randn(width, 1))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ (self.frozen + self.b @ self.a).T))


def test_weights_made_of_parameters_are_pulled_back_a_few_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinsight.gradients.contractions.SCRATCH_BYTES", 2 * 4 * 3 * (64 * 64 + 128))
    torch.manual_seed(0)
    kernel = GradientKernel(Merged(64))
    x = torch.randn(9, 64)
    largest = 0
    from kinsight.differentiation import weights

    plain = weights._pull_back

    def watched(edge: Any, leaves: Any, rows: Tensor, **options: Any) -> Any:
        nonlocal largest
        largest = max(largest, rows.numel())
        return plain(edge, leaves, rows, **options)

    monkeypatch.setattr(weights, "_pull_back", watched)
    found = kernel(x)
    assert 0 < largest <= 2 * 3 * 64 * 64
    kernel.model.double()
    assert error(found, truth(GradientKernel(kernel.model), x.double())["kernel"]) < 1e-5


class Prototypes(nn.Module):
    """torch's vmap of cdist is wrong: the proof sends it on to one sample at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.prototypes)


def test_what_vmap_gets_wrong_goes_one_sample_at_a_time() -> None:
    model, x = Prototypes().double(), torch.randn(5, 3, dtype=torch.float64)
    kernel = GradientKernel(model)
    truth = reference.per_sample_gradients(model, as_batch(x), kernel.output, kernel.parameters)
    assert torch.allclose(kernel(x), reference.kernel(truth, truth), rtol=1e-10)


class OnSpectra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.fft.rfft(x) * self.weight + self.shift).abs()[:, :3]


def test_real_weights_on_complex_data() -> None:
    model, x = OnSpectra().double(), torch.randn(5, 8, dtype=torch.float64)
    kernel = GradientKernel(model)
    truth = reference.per_sample_gradients(model, as_batch(x), kernel.output, kernel.parameters)
    assert torch.allclose(kernel(x), reference.kernel(truth, truth), rtol=1e-10)
    complex_weight = nn.Module()
    complex_weight.register_parameter("w", nn.Parameter(torch.randn(3, dtype=torch.complex64)))
    with pytest.raises(UncapturedParameterError, match=r"1 of 1 chosen parameters are complex: 'w'"):
        GradientKernel(complex_weight)


class OnlyWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a * self.b] * len(x))


def test_outputs_made_of_weights_alone() -> None:
    model = OnlyWeights().double()
    norm = float(model.a.detach().square().sum() + model.b.detach().square().sum())
    assert torch.allclose(GradientKernel(model)(X), torch.full((4, 4), norm / 2, dtype=torch.float64))


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x)).squeeze()


@pytest.mark.parametrize("n", [1, 5])
def test_outputs_squeezed_to_nothing(n: int) -> None:
    x = torch.randn(n, 5, dtype=torch.float64)
    whole = GradientKernel(Squeezed().double())
    features = torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], dim=1)
    slopes = 1 - torch.tanh(whole.model.body(x)).detach().square()
    expected = (features @ features.T) * (slopes @ slopes.T)
    assert error(GradientKernel(whole.model, batch_size=2)(x), expected) < EXACT
    assert error(whole(x), expected) < EXACT


class Empty(nn.Module):
    """Parameters without a single number, one of them in use."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0))
        self.wide, self.head = nn.Parameter(torch.empty(5, 0)), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x, x @ self.wide], dim=1)) + self.nothing.sum()


@pytest.mark.parametrize("batch_size", [None, 2])
def test_parameters_without_numbers(batch_size: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 5, dtype=torch.float64)
    model = Empty().double()
    kernel = GradientKernel(model, batch_size=batch_size)
    alone = GradientKernel(model.head, batch_size=batch_size)
    assert error(kernel(x), alone(x)) < EXACT
    assert error(kernel.similarity(x), alone.similarity(x)) < EXACT
    assert error(kinsight.soft_count(kernel, x).values, kinsight.soft_count(alone, x).values) < EXACT


def test_one_side_of_a_gram_block_can_be_differentiated() -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3)).double()
    kernel = GradientKernel(model, lambda z: z.flatten(1).sum(1))
    x, y = torch.randn(7, 2, 8, 8, dtype=torch.float64), torch.randn(5, 2, 8, 8, dtype=torch.float64)
    fixed = kernel._differentiate(as_batch(y))
    moved = kernel._differentiate(as_batch(x), is_differentiable=True)
    moved.gram(fixed).sum().backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    built = kernel._differentiate(as_batch(x), is_differentiable=True).build()
    other = fixed.build()
    sum((built[name].sum((0, 1)) * other[name].sum((0, 1))).sum() for name in built).backward()
    truth = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(found) == len(truth) == 5  # the last bias does not move any gradient
    assert all(error(ours, theirs) < 1e-9 for ours, theirs in zip(found, truth, strict=True))
