"""SimilarityLoss: its gradient is that of brute-force double backward, on every model; one step raises similarity."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kinsight
from kinsight.errors import (
    InputError,
    SecondDerivativeError,
    SlowAttentionWarning,
)
from kinsight.live import peak_bytes
from kinsight.loss import ramp
from kinsight.outputs import pooled
from tests.losses import EXACT, LABELS, brute_force, far, gradients_of, inputs, mean_alike, network
from tests.zoo import ZOO, Case

CASES = [(case, output) for case in ZOO for output in case.outputs]


@pytest.mark.parametrize(("case", "output"), CASES, ids=lambda each: getattr(each, "name", each))
@pytest.mark.filterwarnings("ignore::kinsight.errors.SlowAttentionWarning")
def test_the_gradient_on_every_model(case: Case, output: Any) -> None:
    model, batch = case.model(), case.batch(4)
    output = pooled("mean") if output == "pooled" else output
    groups = torch.tensor([0, 1, 0, 1])
    truth = brute_force(model, batch, output, "flat", mean_alike(groups))
    loss = kinsight.SimilarityLoss(model, output, weight=1.0, route="pairs", pairs=_halves)
    for _ in range(2):  # proved, and remembered
        assert far(gradients_of(model, loss(batch)), truth) < EXACT
    by_parts = kinsight.SimilarityLoss(model, output, weight=1.0, route="groups", batch_size=3, pairs=_halves)
    assert far(gradients_of(model, by_parts(batch)), truth) < EXACT


def _halves(batch: kinsight.Batch) -> Tensor:
    return torch.arange(len(batch)) % 2


@pytest.mark.parametrize("output", ["logits", "one_vs_rest", "log_probs"])
@pytest.mark.parametrize("normalization", ["flat", "whitened"])
@pytest.mark.parametrize("route", ["pairs", "groups"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_both_routes_against_brute_force(output: str, normalization: str, route: str, batch_size: int | None) -> None:
    if (output, normalization) == ("log_probs", "whitened"):
        output = "centered_logits"  # singular, too: compared with differences below
    model, x = network(), inputs()
    loss = kinsight.SimilarityLoss(
        model, output, weight=1.0, normalization=normalization, route=route, batch_size=batch_size
    )
    value = loss(x, LABELS)
    similarities = kinsight.GradientKernel(model, output)
    block = similarities.flat_similarity(x) if normalization == "flat" else similarities.similarity(x)
    assert float(value.detach()) == pytest.approx(float(mean_alike(LABELS)(block)), rel=1e-9)
    ours = gradients_of(model, value)
    if output != "centered_logits":
        assert far(ours, brute_force(model, x, output, normalization, mean_alike(LABELS))) < EXACT
    assert far([directional(model, lambda: loss(x, LABELS))], [along(model, ours)]) < 1e-6


def directional(model: nn.Module, value: Callable[[], Tensor], step: float = 1e-5) -> Tensor:
    """Derivative along a fixed direction, from central differences."""
    generator = torch.Generator().manual_seed(5)
    moves = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in model.parameters()]
    found = []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter += sign * step * move
            found.append(value())
    with torch.no_grad():
        for parameter, move in zip(model.parameters(), moves, strict=True):
            parameter += step * move
    return (found[0] - found[1]) / (2 * step)


def along(model: nn.Module, gradients: list[Tensor | None]) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    moves = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in model.parameters()]
    return sum(
        ((g * m).sum() for g, m in zip(gradients, moves, strict=True) if g is not None), torch.zeros(()).double()
    )


@pytest.mark.parametrize("batch_size", [None, 2])
def test_pairs_that_are_apart(batch_size: int | None) -> None:
    model, x = network(1), inputs()
    margin = 0.2
    apart = (LABELS[:, None] != LABELS).double().triu(1)

    def cost(similarities: Tensor) -> Tensor:
        return mean_alike(LABELS)(similarities) + 0.7 * (apart * (similarities - margin).relu()).sum() / apart.sum()

    loss = kinsight.SimilarityLoss(model, weight=1.0, dissimilar_weight=0.7, margin=margin, batch_size=batch_size)
    value = loss(x, LABELS)
    assert far(gradients_of(model, value), brute_force(model, x, "logits", "flat", cost)) < EXACT
    assert loss.last is not None
    assert (loss.last.n_alike, loss.last.n_apart) == (4, 11)
    listed = kinsight.SimilarityLoss(model, weight=1.0, dissimilar_weight=1.0, margin=-1.0)
    assert far(
        gradients_of(model, listed(x, pairs=[[0, 1], [0, 1], [2, 3]], dissimilar=[[4, 5]])),
        brute_force(
            model, x, "logits", "flat", lambda k: 1 - (2 * k[0, 1] + k[2, 3]) / 3 + (k[4, 5] + 1)
        ),
    ) < EXACT  # fmt: skip


# ------------------------------------------------------------------------------------------------- the sign


@pytest.mark.parametrize("route", ["pairs", "groups"])
@pytest.mark.parametrize("output", ["logits", "one_vs_rest"])
def test_one_step_makes_what_is_alike_more_similar(route: str, output: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        loss = kinsight.SimilarityLoss(model, output, weight=1.0, route=route)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        seen = []
        for _ in range(2):
            optimizer.zero_grad()
            loss(inputs(), LABELS).backward()
            optimizer.step()
            assert loss.last is not None
            seen.append(loss.last.similarity)
        assert seen[1] > seen[0]


def test_one_step_moves_apart_what_is_apart() -> None:
    model = network(1)
    loss = kinsight.SimilarityLoss(model, weight=1.0, dissimilar_weight=100.0, margin=-1.0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        loss(inputs(), LABELS).backward()
        optimizer.step()
        assert loss.last is not None
        seen.append(loss.last.excess)
    assert seen[1] < seen[0]


# -------------------------------------------------------------------------------------------- training as it is


class Trained(nn.Module):
    """Batch normalization and dropout, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_model_in_training_mode_is_compared_as_it_will_be_used() -> None:
    torch.manual_seed(0)
    model = Trained().double().train()
    model.body[1].running_mean.normal_()
    model.body[3].eval()  # one module of another mode
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    value = kinsight.SimilarityLoss(model, weight=1.0)(inputs(), LABELS)
    ours = gradients_of(model, value)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.body] == [True, True, True, False, True]
    truth = brute_force(model.eval(), inputs(), "logits", "flat", mean_alike(LABELS))
    assert far(ours, truth) < EXACT


def test_gradients_accumulate_and_scale_beside_another_loss() -> None:
    model, x = network(), inputs()
    loss = kinsight.SimilarityLoss(model, weight=0.3)

    def task() -> Tensor:
        return F.cross_entropy(model(x), LABELS)

    parts = [gradients_of(model, loss(x, LABELS)), gradients_of(model, task())]
    parts = [[None if each is None else each.clone() for each in part] for part in parts]
    total = gradients_of(model, loss(x, LABELS) + task())
    assert far(total, [a + b for a, b in zip(*parts, strict=True) if a is not None and b is not None]) < EXACT
    model.zero_grad()
    for _ in range(2):
        (16 * loss(x, LABELS)).backward()
    doubled = [None if each is None else 32 * each for each in parts[0]]
    assert far([p.grad for p in model.parameters()], doubled) < EXACT


def test_autocast_changes_nothing() -> None:
    model, x = network().float(), inputs().float()
    loss = kinsight.SimilarityLoss(model, weight=1.0)
    plain = [None if each is None else each.clone() for each in gradients_of(model, loss(x, LABELS))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, LABELS)
        assert torch.is_autocast_enabled("cpu")
    assert value.dtype == torch.float32
    assert far(gradients_of(model, value), plain) == 0


def test_a_compiled_model() -> None:
    model, x = network(), inputs()
    compiled = torch.compile(model, backend="eager")
    value = F.cross_entropy(compiled(x), LABELS) + kinsight.SimilarityLoss(compiled)(x, LABELS)
    ours = [None if each is None else each.clone() for each in gradients_of(model, value)]
    assert (
        far(ours, gradients_of(model, F.cross_entropy(model(x), LABELS) + kinsight.SimilarityLoss(model)(x, LABELS)))
        < EXACT
    )


def test_it_may_be_an_attribute_of_its_model() -> None:
    model = network()
    model.loss = kinsight.SimilarityLoss(model)
    assert model.loss(inputs(), LABELS).requires_grad
    assert len(list(model.parameters())) == 4


def test_frozen_parameters_are_not_trained_and_others_are() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    loss = kinsight.SimilarityLoss(model, parameters=["2.weight"], weight=1.0)  # compared over the last layer alone
    loss(inputs(), LABELS).backward()
    assert model[0].weight.grad is None
    assert model[0].bias.grad is not None
    assert float(model[0].bias.grad.abs().max()) > 0  # features move its gradients
    frozen = kinsight.SimilarityLoss(network().requires_grad_(False), parameters=lambda name: True)
    assert not frozen(inputs(), LABELS).requires_grad


def test_without_gradients_it_is_a_number() -> None:
    loss = kinsight.SimilarityLoss(network(), weight=2.0)
    with torch.no_grad():
        value = loss(inputs(), LABELS)
    assert not value.requires_grad
    assert loss.step == 0
    assert float(value) == pytest.approx(float(loss(inputs(), LABELS).detach()), rel=1e-9)
    with torch.inference_mode():
        assert float(loss(inputs(), LABELS)) == pytest.approx(float(value))


def test_weights_of_steps() -> None:
    model, weights = network(), ramp(1.0, 4, start=0.0)
    loss = kinsight.SimilarityLoss(model, weight=weights)
    values = [loss(inputs(), LABELS) for _ in range(6)]
    assert loss.last is not None
    full = 1 - loss.last.similarity
    assert [float(each.detach()) for each in values] == pytest.approx([full * w for w in (0, 0.25, 0.5, 0.75, 1, 1)])
    values[0].backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)
    with pytest.raises(InputError, match="n_steps is 0"):
        ramp(1.0, 0)
    with pytest.raises(InputError, match="weight is nan"):
        kinsight.SimilarityLoss(model, weight=lambda step: math.nan)(inputs(), LABELS)


# --------------------------------------------------------------------------------------------------- attention


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v).mean(dim=1))


def test_attention_takes_the_path_that_has_second_derivatives_and_says_so() -> None:
    torch.manual_seed(0)
    model, x = Attentive().double(), torch.randn(6, 5, 4, dtype=torch.float64)
    loss = kinsight.SimilarityLoss(model, weight=1.0)
    with pytest.warns(SlowAttentionWarning, match="by matrix products"):
        value = loss(x, LABELS)
    ours = gradients_of(model, value)
    assert far(ours, brute_force(model, x, "logits", "flat", mean_alike(LABELS))) < EXACT
    loss(x, LABELS)  # said once


class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent * ctx.saved_tensors[0].cos()


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(OnlyOnce.apply(self.first(x)))


def test_what_cannot_be_differentiated_twice_is_named() -> None:
    loss = kinsight.SimilarityLoss(Once().double())
    with pytest.raises(SecondDerivativeError, match="once, but not twice: a function marked @once_differentiable"):
        loss(inputs(), LABELS)


# ------------------------------------------------------------------------------------------------------ memory


def test_memory_of_groups_does_not_grow_with_the_number_of_pairs() -> None:
    """4 times as many samples, 16 times as many pairs: at most 4 times the memory. Parts bound it altogether."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1)).double()

    def peak(n: int, batch_size: int | None = None) -> int:
        loss = kinsight.SimilarityLoss(model, route="groups", batch_size=batch_size)
        x, groups = inputs(n), torch.zeros(n, dtype=torch.long)
        loss(x[:16], groups=groups[:16])
        with peak_bytes(torch.device("cpu"), [*model.parameters(), x, groups]) as found:
            loss(x, groups=groups).backward()
        return found[0]

    small, large = peak(256), peak(1024)
    assert large < 4.3 * small
    assert peak(1024, batch_size=64) < 0.5 * large
