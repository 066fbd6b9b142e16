"""Models that build another graph for another batch, and graphs that one routing must not be carried over to."""

from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from kinsight.errors import MixedSamplesError, ModelError
from kinsight.kernel import GradientKernel
from tests.plain import truth
from tests.test_engine import EXACT, error


class OneAToken(nn.Module):
    """As many outputs as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[..., 0]


def test_another_number_of_outputs_than_before() -> None:
    model = OneAToken().double()
    kernel = GradientKernel(model)
    for n_tokens in (1, 3, 1, 2):
        x = torch.randn(5, n_tokens, 3, dtype=torch.float64)
        assert error(kernel.similarity(x), GradientKernel(model).similarity(x)) < EXACT


class Swapped(nn.Module):
    """Two graphs that are alike but for the parameter at one place."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q, self.r = (nn.Parameter(torch.randn(4)) for _ in range(3))
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.is_swapped = False

    def forward(self, x: Tensor) -> Tensor:
        u, v = (self.p, self.r) if self.is_swapped else (self.r, self.q)
        h = torch.tanh(self.body(x)) * u
        return self.head((torch.tanh(h) * v).T.flip(0).T)


def test_graphs_that_differ_in_parameters_alone() -> None:
    model = Swapped().double()
    x = torch.randn(4, 3, dtype=torch.float64)
    kernel = GradientKernel(model, parameters=["p", "q"])
    for is_swapped in (True, True, True, False, True, False):
        model.is_swapped = is_swapped
        assert error(kernel(x), truth(kernel, x)["kernel"]) < EXACT


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 7), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x.transpose(0, 1).contiguous())).sum(0))


@pytest.mark.parametrize("check", ["first", "never"])
def test_other_lengths_where_time_comes_first(check: Any) -> None:
    model = TimeFirst().double()
    kernel = GradientKernel(model, check=check)
    for n_steps in (2, 4, 2, 3):
        x = torch.randn(5, n_steps, 3, dtype=torch.float64)
        assert error(kernel(x), truth(kernel, x)["kernel"]) < EXACT


class TurnsToBatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.is_mixing = nn.Linear(3, 4), nn.Linear(4, 1), False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        mean, variance = torch.zeros(4).to(x), torch.ones(4).to(x)
        h = nn.functional.batch_norm(h, mean, variance, training=self.is_mixing)
        return self.head(h)


@pytest.mark.parametrize("n_before", [1, 2, 5])
def test_batch_statistics_that_appear_later(n_before: int) -> None:
    model = TurnsToBatchStatistics().double()
    kernel, x = GradientKernel(model), torch.randn(6, 3, dtype=torch.float64)
    for _ in range(n_before):
        kernel(x)
    model.is_mixing = True
    with pytest.raises(MixedSamplesError):
        kernel(x)


class Signed(nn.Module):
    """What is done depends on the mean of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2 if x.mean() > 0 else 1)


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_branches_that_depend_on_the_batch(is_sorted: bool, sign: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = torch.arange(40) // 20 if is_sorted else torch.arange(40) % 2
    x = torch.randn(40, 3, generator=generator) + (3 * sides[:, None] - 1.5)
    with pytest.raises(MixedSamplesError):
        GradientKernel(Signed())(x + 0.1 * sign - x.mean())


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(torch.utils.checkpoint.checkpoint(self.block, self.first(x), use_reentrant=False)))


class Prompted(nn.Module):
    """A prompt of no length in front."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.body, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(torch.cat([self.prompt(x[:, :0]), self.body(x)], dim=1)).mean(1))


@pytest.mark.parametrize(("make", "shape"), [(Checkpointed, (3,)), (Prompted, (2, 3)), (OneAToken, (1, 3))])
@pytest.mark.parametrize("is_inference", [False, True])
def test_block_after_block(make: type[nn.Module], shape: tuple[int, ...], is_inference: bool) -> None:
    model = make().double()
    kernel, x = GradientKernel(model), torch.randn(5, *shape, dtype=torch.float64)
    exact = truth(kernel, x)
    for _ in range(3):
        with torch.inference_mode(is_inference):
            found = kernel(x), kernel.similarity(x)
        assert error(found[0], exact["kernel"]) < EXACT
        assert error(found[1], exact["similarity"]) < EXACT


def test_nothing_but_a_parameter_that_is_not_used() -> None:
    model = Prompted().double()
    kernel = GradientKernel(model, parameters=lambda name: name.startswith("prompt"), check="never")
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for _ in range(3):
        assert not kernel(x).any()


def test_layers_that_are_replaced_or_added_are_not_left_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64)

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    model = network()
    kernel = GradientKernel(model)
    before = kernel(x)
    model[1] = nn.Sigmoid()  # has none
    assert not torch.equal(kernel(x), before)
    model[2] = nn.Linear(6, 3).double()
    for ask in (kernel, kernel.flat_similarity, kernel.diag, kernel.gradients):
        with pytest.raises(ModelError, match=r"'2\.weight', '2\.bias' replaced or added\. .* a new Gradient"):
            ask(x)
    model = network()
    fresh = GradientKernel(model)
    model.load_state_dict({name: each.clone() for name, each in model.state_dict().items()}, assign=True)
    with pytest.raises(ModelError, match=r"'0\.weight', '0\.bias', '2\.weight' replaced or added"):
        fresh(x)  # nothing of which was measured before
    model = network()
    first, every = GradientKernel(model, parameters=["0.weight"]), GradientKernel(model)
    model.append(nn.Linear(3, 2).double().requires_grad_(False))
    assert first(x).shape == every(x).shape  # frozen, and not asked for
    model.requires_grad_(True)
    first(x)
    with pytest.raises(ModelError, match=r"'3\.weight', '3\.bias' replaced or added"):
        every(x)


def test_a_forward_that_is_put_on_an_object_and_runs_another() -> None:
    """A copy of the model would run the weights of the original: the proof does without one."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(5, 4)
    expected = GradientKernel(model)(x)
    own = model.forward

    def in_half(given: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return own(given).float()

    model.forward = in_half  # type: ignore[method-assign]
    torch.testing.assert_close(GradientKernel(model)(x), expected, rtol=0.05, atol=0.1)


def test_parameters_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = nn.Linear(3, 2)
    with pytest.raises(ModelError, match=r"Linear was made under torch\.inference_mode"):
        GradientKernel(model)
