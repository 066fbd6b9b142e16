"""The user's model and data come back as they went in; a model that writes into its weights is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from kinsight.errors import ModelError
from kinsight.kernel import GradientKernel
from tests.plain import X


class Remembers(nn.Module):
    """Rebinds buffers, counts, keeps tensors: none of it may survive."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.table = nn.Linear(3, 2), nn.Parameter(torch.randn(5, 2))
        self.register_buffer("mean", torch.zeros(3))
        self.n_calls, self.last = 0, None
        self.log: list[int] = []
        self.nested = {"seen": [{1}]}

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean + 1
        self.n_calls += 1
        self.last = self.body(x)
        self.log.append(self.n_calls)
        self.nested["seen"][0].add(self.n_calls)
        return self.last + self.table[torch.tensor([1, 1])].sum(dim=0)


class Prototypes2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[torch.tensor([1, 1])].sum(dim=0)


def test_what_a_model_keeps_comes_back() -> None:
    model = Remembers()
    mean = model.mean
    kernel = GradientKernel(model)
    kernel(X)
    assert model.mean is mean
    assert bool((mean == 0).all())
    assert (model.n_calls, model.last) == (0, None)
    assert model.log == []
    assert model.nested == {"seen": [{1}]}
    model(X)
    assert model.n_calls == 1
    pruned = prune.l1_unstructured(nn.Linear(3, 2), "weight", amount=2)
    GradientKernel(nn.Sequential(pruned, Prototypes2()))(X)
    assert pruned.weight is not None
    pruned(X)


class Counter:
    calls = 0


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


def test_plain_tensors_and_objects_come_back_as_they_were() -> None:
    model = Writes("cache")
    GradientKernel(model)(torch.randn(4, 5))
    assert not model.cache.any()
    assert not model.cache.requires_grad
    model = Writes("objects")
    GradientKernel(model)(torch.randn(4, 5))
    assert model.counter.calls == 0
    assert model.history == ([],)


def test_a_frozen_parameter_that_is_written_is_noticed() -> None:
    with pytest.raises(ModelError, match=r"wrote into 1 of the model's parameters: \['prototype'\]"):
        GradientKernel(Writes("frozen"))(torch.randn(4, 5))


class WritesIntoItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.body.weight.mul_(0.9)
        return self.body(x)


class WritesUnseen(WritesIntoItself):
    def forward(self, x: Tensor) -> Tensor:
        self.body.weight.data.clamp_(min=0)  # as networks that are to be monotonic do; no version counter moves
        return self.body(x)


def test_models_that_write_into_their_weights_are_refused() -> None:
    ids = torch.tensor([[1, 2], [2, 2]])
    table = nn.Embedding(4, 3, max_norm=0.1)
    before = table.weight.detach().clone()
    with pytest.raises(ModelError, match=r"'0' is an Embedding with max_norm=0.1: every forward pass rewrites"):
        GradientKernel(nn.Sequential(table, nn.Flatten()))(ids)
    assert torch.equal(table.weight, before)
    with pytest.raises(ModelError, match=r"scale_grad_by_freq.*Set it to False"):
        GradientKernel(nn.Sequential(nn.Embedding(4, 3, scale_grad_by_freq=True), nn.Flatten()))(ids)
    with pytest.raises(ModelError, match=r"wrote into 1 of the model's parameters: \['body.weight'\]"):
        GradientKernel(WritesIntoItself())(X)
    with pytest.raises(ModelError, match=r"wrote into 1 of the model's parameters: \['body.weight'\]"):
        GradientKernel(WritesUnseen())(X)


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


class WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.table = nn.Linear(3, 3), nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.body(x)[:, :2] + self.table[torch.tensor([1, 1])].sum(dim=0)


def test_the_users_data_stay_as_they_are() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    model = WritesIntoItsInput().double()
    kernel = GradientKernel(model)
    with torch.inference_mode():
        kernel(x), kernel.similarity(x), kernel.outputs(x)
    assert torch.equal(x, before)
    assert x.grad is None
    shares = kernel.per_layer(x)
    assert torch.allclose(shares["body.weight"], 4 * before @ before.T)
    assert torch.allclose(shares["table"], torch.full((4, 4), 4.0, dtype=torch.float64))
