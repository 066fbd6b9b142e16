"""What is held, shared, and given back."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinsight import reference
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.differentiation.layer_by_layer import hand_over
from kinsight.errors import UncapturedParameterError
from kinsight.gradients import Gradients
from kinsight.kernel import GradientKernel
from kinsight.live import peak_bytes
from kinsight.outputs import resolve_output
from kinsight.rules import RULES
from kinsight.samples import as_batch
from tests.test_engine import EXACT, error
from tests.test_steady import STEADY
from tests.zoo import ZOO, Case

MODELS = [pytest.param(case, id=case.name) for case in ZOO]


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever gradients are handed over while the backward pass runs."""
    seen: list[int] = []
    real = hand_over

    def counted(outputs: Tensor, *rest: Any) -> None:
        seen.append(len(outputs))
        real(outputs, *rest)

    monkeypatch.setattr("kinsight.differentiation.differentiate.hand_over", counted)
    return seen


@pytest.mark.parametrize("case", MODELS)
def test_layer_by_layer_is_exact(case: Case, handed_over: list[int]) -> None:
    every = resolve_output(case.outputs[0])

    def one(returned: Any) -> Tensor:
        values = every(returned, None)
        return torch.cos(values.reshape(len(values), -1)).sum(1)

    kernel = GradientKernel(case.model(), one)
    for n in (4, 6, 6):  # the third time, at the latest, what holds for this model is known
        x = case.batch(n)
        gradients = reference.per_sample_gradients(kernel.model, as_batch(x), kernel.output, kernel.parameters)
        assert error(kernel(x), reference.kernel(gradients, gradients)) < EXACT
    assert bool(handed_over) == (case.name in STEADY)


def deep() -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(200, 200), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(200, 1))


def test_captures_are_freed_layer_by_layer() -> None:
    kernel = GradientKernel(deep())
    x = torch.randn(40, 200)
    kernel(x)
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def take(name: str, gradients: Gradients) -> None:
        nonlocal most
        alive.extend(weakref.ref(tensor) for tensor in gradients.tensors)
        most = max(most, sum(each() is not None for each in alive))

    gc.disable()  # nothing may wait for the collector
    try:
        kernel._differentiate.hand_over(as_batch(x), take)
        assert not any(each() is not None for each in alive)
    finally:
        gc.enable()
    assert len(alive) == 9 * 3
    assert most <= 2 * 3


def test_a_gram_block_takes_no_more_memory_than_training() -> None:
    model, x = deep(), torch.randn(60, 200)
    kernel = GradientKernel(model)
    kernel(x)
    known = [*model.parameters(), x]
    with peak_bytes(torch.device("cpu"), known) as training:
        model(x).sum().backward()
    model.zero_grad()
    with peak_bytes(torch.device("cpu"), known) as captured:
        kernel.gradients(x)
    with peak_bytes(torch.device("cpu"), known) as block:
        kernel(x)
    products = 4 * 60 * 60 * 8  # the result in float64, and what it is made of
    assert block[0] < 0.7 * captured[0]
    assert block[0] < training[0] + products


class Tiled(nn.Module):
    """Adds a weight once to each of as many rows as there are samples, or several times."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.other = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(torch.tanh(self.body(x)))


def test_a_rule_that_stops_to_apply(monkeypatch: pytest.MonkeyPatch, handed_over: list[int]) -> None:
    model, x = Tiled().double(), torch.randn(6, 3, dtype=torch.float64)
    kernel, strict = GradientKernel(model), GradientKernel(model, fallback=False)
    truth = kernel(x)
    strict(x)
    handed_over.clear()
    rule = RULES["Addmm"]
    monkeypatch.setitem(
        RULES, "Addmm", lambda capture: rule(capture) if capture.use.parameters[0] > "body.weight" else None
    )
    assert error(kernel(x), truth) < EXACT
    assert handed_over == [6]
    assert kernel.routes["body.weight"].startswith("vmap: no layer rule for this use of 'Addmm'")
    with pytest.raises(UncapturedParameterError, match="2 of 4 parameters have no layer rule"):
        strict(x)


def test_hooks_are_gone_after_an_error() -> None:
    kernel = GradientKernel(deep())
    x = torch.randn(4, 200)
    kernel(x)

    def refuse(name: str, gradients: Gradients) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError, match=r"16\.bias"):
        kernel._differentiate.hand_over(as_batch(x), refuse)
    assert torch.equal(kernel(x), kernel(x))


class FirstPosition(nn.Module):
    """Reads one of many positions: what reaches the head is a small part of a large tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x))[:, 0])


def test_what_is_kept_holds_no_more_than_it_counts() -> None:
    kernel = GradientKernel(FirstPosition(), parameters=lambda name: name.startswith("head"))
    captured = kernel.gradients(torch.randn(6, 50, 4))
    kept = captured.compact(is_eager=True)
    sizes = []
    for gradients in (captured, kept):
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors_of(gradients)}
        sizes.append(sum(storage.nbytes() for storage in storages.values()))
    assert sizes[0] > 10 * captured.n_bytes
    assert sizes[1] <= 2 * kept.n_bytes
    assert torch.equal(kept.gram(kept), captured.gram(captured))


def tensors_of(gradients: BatchGradients) -> list[Tensor]:
    return [tensor for each in gradients.by_parameter.values() for tensor in each.tensors]


def test_shares_are_no_views_of_each_other() -> None:
    gradients = GradientKernel(nn.Linear(3, 1)).gradients(torch.randn(4, 3))
    shares = gradients.shares(gradients)
    before = shares["weight"].clone()
    shares["bias"].zero_()
    assert torch.equal(shares["weight"], before)


@pytest.mark.parametrize("n", [127, 128, 129, 300])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_halves_of_large_blocks_are_mirrored(n: int, n_outputs: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(30, n_outputs)).double()
    kernel, x = GradientKernel(convolution), torch.randn(n, 2, 7, dtype=torch.float64)
    gradients = kernel.gradients(x)
    exact = sum((each.flatten(1) @ each.flatten(1).T for each in gradients.build().values()), torch.zeros(n, n))
    assert error(kernel(x), exact / n_outputs) < EXACT
    assert error(kernel.flat_similarity(x), exact / exact.diagonal().sqrt().outer(exact.diagonal().sqrt())) < EXACT
