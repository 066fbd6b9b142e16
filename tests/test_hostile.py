"""Models that do what no model should, and how none of them gets a wrong number in silence."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kinsight
from kinsight import reference
from kinsight.errors import MixedSamplesError, ModelCallError, ModelError, NonFiniteError, SampleTypeError
from kinsight.kernel import GradientKernel
from kinsight.samples import as_batch
from tests.test_engine import EXACT, error


def truth(kernel: GradientKernel, x: Tensor) -> dict[str, Tensor]:
    gradients = reference.per_sample_gradients(kernel.model, as_batch(x), kernel.output, kernel.parameters)
    return {
        "kernel": reference.kernel(gradients, gradients),
        "similarity": reference.similarity(gradients, gradients),
    }


class Sorted(nn.Module):
    """Sorts its batch by length, and sorts back; the first input is the length, the second a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort(stable=True)
        h = torch.tanh(self.body(x[order]))
        return self.head(h)[order.argsort()] * x[:, 1:2]


@pytest.mark.parametrize(("dtype", "gate"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_two_samples_of_small_gradient_that_change_places_are_seen(dtype: torch.dtype, gate: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 5, dtype=dtype)
    x[:, 0], x[:, 1] = torch.arange(8), 1.0
    x[6:, 1] = gate
    kernel = GradientKernel(Sorted().to(dtype))
    kernel(x)
    assert kernel.routes["body.weight"].startswith("rule")
    moved = x.clone()
    moved[6, 0], moved[7, 0] = 7, 6
    assert error(kernel.similarity(moved), truth(kernel, moved)["similarity"]) < 1e-4


def test_two_of_many_samples_that_change_places_are_seen() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 5)
    x[:, 0], x[:, 1] = torch.arange(256), 1.0
    kernel = GradientKernel(Sorted())
    kernel(x)
    for a, b in ((173, 36), (60, 121), (32, 102)):
        moved = x.clone()
        moved[a, 0], moved[b, 0] = x[b, 0], x[a, 0]
        assert error(kernel.similarity(moved), truth(kernel, moved)["similarity"]) < 1e-4


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.attention, self.head = nn.Linear(3, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inputs(x).transpose(0, 1)
        return self.head(self.attention(h, h, h, need_weights=False)[0][0]) * x[:, 0, :1].exp()


@pytest.mark.parametrize("n", [5, 6])
def test_half_precision_takes_over_the_layouts_of_a_float32_copy(n: int) -> None:
    torch.manual_seed(2)
    x = torch.randn(n, 5, 3)
    x[1, 0, 0] = 5.5  # one sample's gradient is some 250 times the others'
    model = TimeFirst().eval()
    exact = truth(GradientKernel(model), x)["similarity"]
    found = GradientKernel(model.bfloat16()).similarity(x.bfloat16())
    assert error(found, exact) < 0.05


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


class Shifted(nn.Module):
    """Attention over features far from zero: in float32 gradients of the keys are rounding, not mixing."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1e3
        weights = torch.softmax(1e-4 * (self.q(x) @ self.k(x).transpose(1, 2)), dim=-1)
        return self.head((weights @ x).mean(1))


def test_rounding_is_not_taken_for_mixing() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4)
    kernel = GradientKernel(Shifted())
    found = kernel(x)
    kernel.model.double()
    assert error(found, truth(GradientKernel(kernel.model), x.double())["kernel"]) < 2e-4


class Writes(nn.Module):
    """Changes what it holds: a frozen parameter, a plain tensor, an object, a list in a tuple."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.body = nn.Linear(5, 2)
        self.prototype = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.cache = torch.zeros(4, 2)
        self.counter = Counter()
        self.history: tuple[list[int]] = ([],)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.what == "frozen":
            self.prototype.mul_(0.9).add_(0.1 * y.detach().mean(0))
        elif self.what == "cache":
            self.cache[: len(x)] = y[:4]
        else:
            self.counter.calls += 1
            self.history[0].append(len(x))
        return y


class Counter:
    calls = 0


def test_a_frozen_parameter_that_is_written_is_noticed() -> None:
    with pytest.raises(ModelError, match=r"wrote into 1 of the model's parameters: \['prototype'\]"):
        GradientKernel(Writes("frozen"))(torch.randn(4, 5))


def test_plain_tensors_and_objects_come_back_as_they_were() -> None:
    model = Writes("cache")
    GradientKernel(model)(torch.randn(4, 5))
    assert not model.cache.any()
    assert not model.cache.requires_grad
    model = Writes("objects")
    GradientKernel(model)(torch.randn(4, 5))
    assert model.counter.calls == 0
    assert model.history == ([],)


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 6, "bad size"
        return self.body(x)


def test_assertions_in_models_and_output_functions() -> None:
    with pytest.raises(ModelCallError, match=r"Fails raised AssertionError on a batch of float32 \[3 5\]: bad size"):
        GradientKernel(Fails())(torch.randn(3, 5))
    with pytest.raises(SampleTypeError, match=r"raised RuntimeError on what the model returned, a Tensor: shape"):
        GradientKernel(nn.Linear(5, 2), lambda returned: returned.view(3, 7))(torch.randn(3, 5))


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


class MiddleGate(nn.Module):
    """Time first, frames of several tokens: samples lie in the middle of the axis that a linear layer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(1, 0, 2, 3)
        return self.head((torch.tanh(self.body(x)) * torch.relu(x[..., :1])).mean((0, 2)))


@pytest.mark.parametrize("n", [2, 4])
def test_a_first_batch_whose_gradients_fit_a_wrong_layout(n: int) -> None:
    """Only the first of five tokens counts in it: row 5 s belongs to sample s of [4], as it would in [5 4]."""
    torch.manual_seed(0)
    kernel = GradientKernel(MiddleGate().double(), batch_size=n)
    x = torch.randn(n, 2, 5, 3, dtype=torch.float64).abs()
    first = x.clone()
    first[:, :, 1:, 0] = -1
    for batch in (first, x, first, x):
        assert error(kernel(batch), truth(kernel, batch)["kernel"]) < EXACT
    assert all(route.startswith("rule") for route in kernel.routes.values())


class PadShift(nn.Module):
    """Adds each sample's neighbor in the batch, where a feature lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        return self.head(h + nn.functional.pad(h, (0, 0, 1, -1)) * torch.relu(x[:, :1]))


def test_mixing_that_the_first_batch_does_not_show() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    x[:, 0] = -1
    kernel = GradientKernel(PadShift(), batch_size=40)
    kernel(x)
    x[17, 0] = 2
    with pytest.raises(MixedSamplesError, match="differs by"):
        kernel(x)


class Centered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(torch.tanh(h / (1e-3 + h.detach().square().mean(0).sqrt())))


@pytest.mark.parametrize("batch_size", [None, 6])
def test_what_was_refused_is_refused_again(batch_size: int | None) -> None:
    torch.manual_seed(0)
    kernel, x = GradientKernel(Centered(), batch_size=batch_size), torch.randn(24, 4)
    for _ in range(6):
        with pytest.raises(MixedSamplesError):
            kernel(x)


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


class HoldsMuch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 2)
        nested: list[Any] = []
        for _ in range(3000):
            nested = [nested]
        self.nested, self.expanded = nested, torch.zeros(1).expand(2**31)
        self.many = list(range(100_000))
        with torch.inference_mode():
            self.cached = torch.randn(3)
        self.register_buffer("meta", torch.empty(3, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_models_that_hold_much_and_strange_things() -> None:
    block = GradientKernel(HoldsMuch())(torch.randn(4, 5))
    assert block.shape == (4, 4)
    assert bool(torch.isfinite(block).all())


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
