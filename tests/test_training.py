"""SimilarityLoss in a training: beside other losses, optimizers, scalers, hooks, and whatever changes meanwhile."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kinsight
from kinsight.errors import InputError, PrecisionWarning, SecondDerivativeError
from kinsight.training.loss import ramp
from tests.losses import EXACT, LABELS, brute_force, far, gradients_of, inputs, mean_alike, network


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
    assert far(total, [b if a is None else a + b for a, b in zip(*parts, strict=True) if b is not None]) < EXACT
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


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, where it goes on after the loss
def test_a_compiled_step() -> None:
    model, x = network(), inputs()
    similarity = kinsight.SimilarityLoss(model)

    def cost() -> Tensor:
        return F.cross_entropy(model(x), LABELS) + similarity(x, LABELS)

    plain = [None if each is None else each.clone() for each in gradients_of(model, cost())]
    compiled = torch.compile(cost, backend="eager")
    for _ in range(2):
        assert far(gradients_of(model, compiled()), plain) < EXACT


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


def test_gradient_scaling() -> None:
    model, x = network().float(), inputs().float()
    loss = kinsight.SimilarityLoss(model, weight=1.0)
    plain = [None if each is None else each.clone() for each in gradients_of(model, loss(x, LABELS))]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.zero_grad()
    scaler.scale(loss(x, LABELS)).backward()
    scaler.unscale_(optimizer)
    assert far([p.grad for p in model.parameters()], plain) < 1e-6
    scaler.step(optimizer)


def test_the_gradient_is_let_go_with_the_graph() -> None:
    model = network()
    value = kinsight.SimilarityLoss(model)(inputs(), LABELS)
    value.backward(retain_graph=True)
    value.backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@pytest.mark.parametrize("is_early", [True, False])
def test_hooks_on_parameters_see_the_gradient_once(is_early: bool) -> None:
    model, seen = network(), []
    plain = [None if each is None else each.clone() for each in gradients_of(model, _value(model))]
    similarities = kinsight.GradientKernel(model).flat_similarity(inputs())

    def doubled(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return 2 * gradient

    loss = kinsight.SimilarityLoss(model, weight=1.0)
    if not is_early:
        loss(inputs(), LABELS)
    handle = model[0].weight.register_hook(doubled)
    value = loss(inputs(), LABELS)
    assert not seen
    ours = gradients_of(model, value)
    assert len(seen) == 1
    assert plain[0] is not None
    plain[0] *= 2
    assert far(ours, plain) < EXACT
    assert torch.equal(kinsight.GradientKernel(model).flat_similarity(inputs()), similarities)
    handle.remove()
    assert not model[0].weight._backward_hooks


def _value(model: nn.Module) -> Tensor:
    return kinsight.SimilarityLoss(model, weight=1.0)(inputs(), LABELS)


def test_parameters_without_part_in_it_are_left_alone() -> None:
    model = network()
    model.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1)
    kinsight.SimilarityLoss(model, weight=1.0)(inputs(), LABELS).backward()
    optimizer.step()
    assert torch.equal(model.spare, torch.ones_like(model.spare))


def test_layers_that_are_replaced_or_thawed_or_rounded_later() -> None:
    model = network()
    model[0].requires_grad_(False)
    loss = kinsight.SimilarityLoss(model, weight=1.0)
    loss(inputs(), LABELS)
    model[0].requires_grad_(True)
    torch.manual_seed(1)
    model[2] = nn.Linear(8, 3).double()
    ours = gradients_of(model, loss(inputs(), LABELS))
    assert far(ours, brute_force(model, inputs(), "logits", "flat", mean_alike(LABELS))) < EXACT
    model.bfloat16()
    with pytest.raises(InputError, match="half precision"):
        loss(inputs().bfloat16(), LABELS)


def test_inputs_that_need_a_gradient_are_refused() -> None:
    features = nn.Linear(4, 4).double()(inputs())
    loss = kinsight.SimilarityLoss(network())
    with pytest.raises(InputError, match="inputs requires a gradient"):
        loss(features, LABELS)
    assert loss(features.detach(), LABELS).requires_grad
    with torch.no_grad():
        loss(features, LABELS)
    with pytest.raises(InputError, match="targets of its own"):
        loss(kinsight.Batch(inputs(), targets=LABELS), LABELS)


class Routed(nn.Module):
    """An expert is left out where no sample of the batch asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        is_first = (x[:, 0] > 0)[:, None]
        found = x.new_zeros(len(x), 3)
        for expert, chosen in ((self.first, is_first), (self.second, ~is_first)):
            if bool(chosen.any()):
                found = found + expert(x).tanh() * chosen
        return found


@pytest.mark.parametrize("route", ["pairs", "groups"])
def test_parts_that_leave_out_a_parameter(route: str) -> None:
    torch.manual_seed(0)
    model, x = Routed(), inputs()
    x[:, 0] = torch.tensor([1.0, 2.0, -1.0, -2.0, 1.0, -1.0])
    loss = kinsight.SimilarityLoss(model, weight=1.0, route=route, batch_size=2)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    ours = gradients_of(model, loss(x, labels))
    assert far(ours, brute_force(model, x, "logits", "flat", mean_alike(labels))) < EXACT


def test_it_can_be_stored() -> None:
    model = network()
    loss = kinsight.SimilarityLoss(model, weight=ramp(0.5, 3))
    loss(inputs(), LABELS)
    again = pickle.loads(pickle.dumps(loss))
    assert again.step == 1
    assert float(again(inputs(), LABELS).detach()) == float(loss(inputs(), LABELS).detach())


def test_its_gradient_is_a_number_and_no_function() -> None:
    """A gradient penalty would take it for a constant."""
    model = network()
    value = F.cross_entropy(model(inputs()), LABELS) + kinsight.SimilarityLoss(model)(inputs(), LABELS)
    with pytest.raises(SecondDerivativeError, match="known as numbers alone"):
        torch.autograd.grad(value, [model[0].weight], create_graph=True)


def test_scalers_take_a_step_that_has_no_pairs() -> None:
    model = network()
    model.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    before = [p.detach().clone() for p in model.parameters()]
    for loss in (kinsight.SimilarityLoss(model), kinsight.SimilarityLoss(model, weight=ramp(0.5, 3))):
        labels = torch.arange(6) if loss.weight == 0.1 else LABELS
        optimizer.zero_grad()
        scaler.scale(loss(inputs(), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["spare"]
    moved = [float((p.detach() - b).abs().max()) for p, b in zip(model.parameters(), before, strict=True)]
    assert max(moved) < 0.01  # what decays


def test_autocast_inside_of_the_model() -> None:
    """Accelerate puts it around forward, and is stepped around; what a model does by itself is told."""
    torch.manual_seed(0)
    model, x = network().float(), inputs().float()
    plain = [None if each is None else each.clone() for each in gradients_of(model, _value_of(model, x))]
    own = model.forward

    def in_half(*given: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return own(*given).float()

    model._original_forward, model.forward = own, in_half  # as `Accelerator.prepare` does
    assert far(gradients_of(model, _value_of(model, x)), plain) == 0
    assert model.forward is in_half
    del model._original_forward
    with pytest.warns(PrecisionWarning, match="computes in bfloat16 by itself"):
        ours = gradients_of(model, _value_of(model, x))
    assert 0 < far(ours, plain) < 0.1


def _value_of(model: nn.Module, x: Tensor) -> Tensor:
    return kinsight.SimilarityLoss(model, weight=1.0)(x, LABELS)
