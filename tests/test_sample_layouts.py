"""Where a layer's rows keep their samples: layouts that change with the data, or that one batch cannot tell apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kinsight.kernel import GradientKernel
from tests.plain import truth
from tests.test_engine import EXACT, error


class Sorted(nn.Module):
    """Sorts its samples, works, and sorts them back, without any node in the graph that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        hidden = self.head(torch.tanh(self.body(x[order])))
        result: list[Tensor] = [hidden[0]] * len(x)
        for place, sample in enumerate(order.tolist()):
            result[sample] = hidden[place]
        return torch.stack(result)


class Permuted(Sorted):
    """The same with permutation matrices."""

    def forward(self, x: Tensor) -> Tensor:
        permutation = nn.functional.one_hot(x[:, 0].argsort()).to(x)
        return permutation.T @ self.head(torch.tanh(self.body(permutation @ x)))


class Looked(Sorted):
    """The same by looking rows up in the sorted ones."""

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return nn.functional.embedding(order.argsort(), self.head(torch.tanh(self.body(x[order]))))


class Masked(Sorted):
    """The same by a mask, a product and a sum: nothing but arithmetic."""

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        mask = nn.functional.one_hot(order.argsort()).to(x)
        return (mask[:, :, None] * self.head(torch.tanh(self.body(x[order])))[None]).sum(1)


@pytest.mark.parametrize("kind", [Sorted, Permuted, Looked, Masked])
def test_layouts_that_change_with_the_data(kind: type[Sorted]) -> None:
    model = kind().double()
    x = torch.randn(6, 4, dtype=torch.float64)
    kernel = GradientKernel(model, batch_size=6)
    kernel(x[x[:, 0].argsort()])
    plain = nn.Sequential(model.body, nn.Tanh(), model.head)
    assert torch.allclose(kernel(x), GradientKernel(plain)(x), rtol=1e-10)


class SortedByLength(nn.Module):
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
    kernel = GradientKernel(SortedByLength().to(dtype))
    kernel(x)
    assert kernel.routes["body.weight"].startswith("rule")
    moved = x.clone()
    moved[6, 0], moved[7, 0] = 7, 6
    assert error(kernel.similarity(moved), truth(kernel, moved)["similarity"]) < 1e-4


def test_two_of_many_samples_that_change_places_are_seen() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 5)
    x[:, 0], x[:, 1] = torch.arange(256), 1.0
    kernel = GradientKernel(SortedByLength())
    kernel(x)
    for a, b in ((173, 36), (60, 121), (32, 102)):
        moved = x.clone()
        moved[a, 0], moved[b, 0] = x[b, 0], x[a, 0]
        assert error(kernel.similarity(moved), truth(kernel, moved)["similarity"]) < 1e-4


class LastToken(nn.Module):
    """Time first, pooled at the last token by a mask: the first batch's gradients fit several layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out, self.head = nn.Embedding(9, 8), nn.GRU(8, 8), nn.Linear(8, 5), nn.Linear(5, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        hidden = torch.tanh(self.out(self.rnn(self.embed(tokens.T))[0]))
        last = nn.functional.one_hot(lengths - 1, tokens.shape[1]).T.to(hidden)
        return self.head((hidden * last[..., None]).sum(0))


@pytest.mark.parametrize(("first", "second"), [([1, 2, 3, 4], [4, 2, 4, 1]), ([4, 4, 4, 4], [1, 3, 2, 2])])
def test_layouts_that_one_batch_cannot_tell_apart(first: list[int], second: list[int]) -> None:
    model = LastToken().double()
    tokens = torch.randint(0, 9, (4, 4))
    kernel, fresh = GradientKernel(model, batch_size=4), GradientKernel(model, batch_size=1)
    kernel((tokens, torch.tensor(first)))
    assert torch.allclose(kernel((tokens, torch.tensor(second))), fresh((tokens, torch.tensor(second))), rtol=1e-10)


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
