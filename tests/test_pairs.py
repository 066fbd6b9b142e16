"""Pairs: what is alike, said in every way there is; and what is no pair."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kinsight
from kinsight.errors import (
    InputError,
    NonFiniteError,
    SampleTypeError,
    ShapeError,
    TargetError,
    UnknownNameError,
    ZeroGradientWarning,
)
from kinsight.training.pairs import Augmented
from tests.losses import EXACT, LABELS, brute_force, far, gradients_of, inputs, mean_alike, network

# --------------------------------------------------------------------------------------------------- bad input


def test_a_batch_without_pairs_costs_nothing() -> None:
    model = network()
    loss = kinsight.SimilarityLoss(model)
    for x, labels in (
        (inputs(3), torch.arange(3)),
        (inputs(1), torch.zeros(1, dtype=torch.long)),
        (inputs(0), LABELS[:0]),
    ):
        model.zero_grad()
        value = loss(x, labels)
        assert float(value.detach()) == 0
        value.backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
        assert loss.last is not None
        assert loss.last.n_alike == 0
        assert math.isnan(loss.last.similarity)
    value = loss(inputs(), groups=[-1, 0, -1, 0, -1, -2])
    assert loss.last.n_alike == 1


@pytest.mark.parametrize("route", ["pairs", "groups"])
@pytest.mark.parametrize("normalization", ["flat", "whitened"])
def test_samples_without_a_gradient_are_left_out(route: str, normalization: str) -> None:
    model, x = network(bias=False), inputs()
    x[2] = 0
    loss = kinsight.SimilarityLoss(model, weight=1.0, route=route, normalization=normalization)
    with pytest.warns(ZeroGradientWarning, match="1 samples is zero: \\[2\\]"):
        value = loss(x, LABELS)
    assert loss.last is not None
    assert (loss.last.n_undefined, loss.last.n_alike) == (1, 2)
    ours = [None if each is None else each.clone() for each in gradients_of(model, value)]
    keep = torch.arange(6) != 2
    assert far(ours, gradients_of(model, loss(x[keep], LABELS[keep]))) < EXACT


@pytest.mark.parametrize("route", ["pairs", "groups"])
def test_a_batch_without_any_gradient_or_pair(route: str) -> None:
    model = network(bias=False)
    loss = kinsight.SimilarityLoss(model, route=route)
    with pytest.warns(ZeroGradientWarning, match="6 samples"):
        value = loss(torch.zeros_like(inputs()), LABELS)
    assert float(value.detach()) == 0
    value.backward()
    assert float(loss(inputs(), torch.arange(6)).detach()) == 0
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        loss(inputs(), LABELS)


def test_nan_is_named_by_sample() -> None:
    x = inputs()
    x[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match="3"):
        kinsight.SimilarityLoss(network())(x, LABELS)


@pytest.mark.parametrize(
    ("options", "call", "error", "message"),
    [
        ({}, {}, TargetError, "targets are missing"),
        ({}, {"targets": torch.rand(6)}, TargetError, "float32 \\[6\\]"),
        ({}, {"targets": LABELS, "groups": [0] * 5}, ShapeError, "groups are \\[5\\] for 6 samples"),
        ({}, {"groups": torch.eye(3, dtype=torch.long)[LABELS]}, ShapeError, "groups are \\[6, 3\\]"),
        ({}, {"groups": list("aabbcc")}, InputError, "groups are no numbers of one shape"),
        ({}, {"pairs": [[0, 1], [2]]}, InputError, "pairs are no numbers of one shape"),
        ({}, {"pairs": [0, 1]}, ShapeError, "pairs are \\[2\\].*groups="),
        ({"pairs": lambda batch: None}, {}, InputError, "what pairs= has returned"),
        ({}, {"targets": LABELS, "dissimilar": [[0, 1]]}, InputError, "dissimilar_weight above 0"),
        ({"pairs": Augmented(lambda sample: sample)}, {"groups": [0] * 6}, InputError, "views of each input"),
        ({"weight": "much"}, {}, InputError, "weight is 'much': it is a number"),
        ({"weight": math.inf}, {}, InputError, "weight is inf"),
        ({"margin": 1.0}, {}, InputError, "no similarity is above 1"),
        ({"margin": None}, {}, InputError, "margin is None"),
        ({"max_bytes": 0}, {}, InputError, "max_bytes is 0"),
        ({}, {"groups": [0.5] * 6}, InputError, "whole numbers"),
        ({}, {"groups": torch.tensor([2**63 + 5] * 6, dtype=torch.uint64)}, InputError, "hold numbers of 2\\^63"),
        ({"weight": torch.rand(3)}, {}, InputError, "weight is tensor"),
        ({"pairs": Augmented(lambda x: None)}, {}, ShapeError, "transform has made NoneType of samples \\[4\\]"),
        ({}, {"pairs": [[0, 6]]}, InputError, "two different positions each, from 0 to 5"),
        ({}, {"pairs": [[1, 1]]}, InputError, "two different positions"),
        ({}, {"pairs": [[0, 1]], "groups": [0] * 6}, InputError, "not both"),
        ({"route": "groups"}, {"pairs": [[0, 1]]}, InputError, "pairs are listed"),
        ({"route": "fast"}, {}, UnknownNameError, "route 'fast'"),
        ({"pairs": "friends"}, {}, UnknownNameError, "pairs 'friends'"),
        ({"pairs": 3}, {}, SampleTypeError, "pairs is a int"),
        ({"normalization": "none"}, {}, UnknownNameError, "normalization 'none'"),
        ({"route": "groups", "dissimilar_weight": 1.0}, {}, InputError, "never looks at single pairs"),
        ({"dissimilar_weight": -1.0}, {}, InputError, "dissimilar_weight is -1.0"),
        ({"weight": -0.5}, {"targets": LABELS}, InputError, "weight is -0.5"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_makes_no_sense(options: Any, call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        kinsight.SimilarityLoss(network(), **options)(inputs(), **call)


@pytest.mark.usefixtures("without_type_checks")
def test_models_that_cannot_be_trained_so() -> None:
    with pytest.raises(InputError, match="half precision"):
        kinsight.SimilarityLoss(network().bfloat16())
    with pytest.raises(SampleTypeError, match=r"must be a torch\.nn\.Module"):
        kinsight.SimilarityLoss(len)


# ----------------------------------------------------------------------------------------------- augmentations


class Jitter(nn.Module):
    """As transforms of torchvision are: a module that is called with one image, [c h w], and draws from torch."""

    def forward(self, image: Tensor) -> Tensor:
        assert image.ndim == 3
        return (image * (0.5 + torch.rand(()))).clamp(0, 1)


def test_a_module_is_an_augmentation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()
    images = torch.rand(5, 1, 6, 6).double()
    loss = kinsight.SimilarityLoss(model, "one_vs_rest", pairs=Augmented(nn.Sequential(Jitter(), Jitter())), weight=1.0)
    value = loss(images, LABELS[:5])
    value.backward()
    assert loss.last is not None
    assert loss.last.n_alike == 5
    assert 0 < float(value.detach()) < 1
    assert float(model[0].weight.grad.norm()) > 0


def test_augmentations_of_one_input_are_pairs() -> None:
    model, x = network(), inputs()
    drawn: list[float] = []

    def shifted(sample: Tensor) -> Tensor:
        assert sample.shape == (4,)
        drawn.append(float(torch.rand(())))
        return sample + drawn[-1]

    loss = kinsight.SimilarityLoss(model, weight=1.0, pairs=Augmented(shifted, n_views=3, keeps_original=True))
    torch.manual_seed(3)
    value = loss(x)
    assert len(drawn) == 12  # each sample has draws of its own
    moves = torch.tensor([0.0] * 6 + drawn, dtype=torch.float64)
    views = torch.cat([x, x, x]) + moves[:, None]
    groups = torch.arange(6).repeat(3)
    assert far(gradients_of(model, value), brute_force(model, views, "logits", "flat", mean_alike(groups))) < EXACT
    assert loss.last is not None
    assert loss.last.n_alike == 18
    whole = kinsight.SimilarityLoss(model, "one_vs_rest", pairs=Augmented(lambda batch: -batch, is_batched=True))
    assert float(whole(x, LABELS).detach()) == pytest.approx(0, abs=1e-6)  # the same views twice
    with pytest.raises(InputError, match="n_views is 1: it has to be a whole number, 2 or more"):
        Augmented(shifted, n_views=1)
    with pytest.raises(SampleTypeError, match="is_batched=True"):
        kinsight.SimilarityLoss(model, pairs=Augmented(shifted))((x,))
    widths = iter([4, 3])
    with pytest.raises(ShapeError, match="one batch takes one"):
        kinsight.SimilarityLoss(model, pairs=Augmented(lambda b: b[:, : next(widths)], is_batched=True))(x)


def test_views_that_need_a_gradient_are_refused() -> None:
    learned = nn.Linear(4, 4).double()
    loss = kinsight.SimilarityLoss(network(), pairs=Augmented(lambda sample: learned(sample)))
    with pytest.raises(InputError, match="inputs requires a gradient"):
        loss(inputs())


def test_views_go_by_the_name_of_their_sample() -> None:
    x = inputs()
    x[5, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"2 of 12 samples are nan or inf: \[5, 5\]"):
        kinsight.SimilarityLoss(network(), pairs=Augmented(lambda sample: sample + 1))(x)
    sizes = iter(range(2, 14))
    with pytest.raises(ShapeError, match=r"transform has made \[2\] and \[3\] and \[4\] of samples \[4\]"):
        kinsight.SimilarityLoss(network(), pairs=Augmented(lambda sample: torch.ones(next(sizes))))(x)


@pytest.mark.parametrize("is_batched", [True, False])
def test_no_views_of_no_samples(is_batched: bool) -> None:
    loss = kinsight.SimilarityLoss(network(), pairs=Augmented(lambda sample: sample + 0.1, is_batched=is_batched))
    assert float(loss(inputs(0)).detach()) == 0


class Squeezed(nn.Module):
    """One output, without an axis of its own: of a single sample nothing is left of either."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze()


def test_outputs_that_are_squeezed() -> None:
    for batch_size in (None, 5):  # the last part is of one sample
        model = Squeezed()
        loss = kinsight.SimilarityLoss(model, weight=1.0, batch_size=batch_size)
        truth = brute_force(model.net, inputs(), "logits", "flat", mean_alike(LABELS))
        assert far(gradients_of(model, loss(inputs(), LABELS)), truth) < EXACT
    assert float(loss(inputs(1), LABELS[:1]).detach()) == 0


@pytest.mark.parametrize("is_batched", [True, False])
def test_a_transform_that_writes_into_its_input(is_batched: bool) -> None:
    x = inputs()
    before = x.clone()
    loss = kinsight.SimilarityLoss(network(), pairs=Augmented(lambda sample: sample.add_(1), is_batched=is_batched))
    loss(x)
    assert torch.equal(x, before)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (lambda x: torch.cat([x, x]), "made 48 of 24 samples"),
        (lambda x: x[:5], "made 5 of 24 samples"),
        (lambda x: None, "made a NoneType of 24 samples"),
    ],
)
def test_a_transform_of_a_batch_gives_each_sample_one_view(transform: Any, told: str) -> None:
    loss = kinsight.SimilarityLoss(network(), pairs=Augmented(transform, n_views=4, is_batched=True))
    with pytest.raises(ShapeError, match=told):
        loss(inputs(24))


def test_a_transform_may_give_a_list() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.net(x + y)

    pairs = Augmented(lambda both: [both[0] + 0.1, both[1]], is_batched=True)
    assert kinsight.SimilarityLoss(Two(), pairs=pairs)((inputs(), inputs())).requires_grad


class Scaled(nn.Module):
    """Inputs in a dict, with a list of them and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, more: list[Tensor], scale: Tensor) -> Tensor:
        return self.net(scale * (x + more[0]))


def test_views_of_structured_inputs() -> None:
    given = {"x": inputs(), "more": [inputs(seed=2)], "scale": torch.tensor(0.5, dtype=torch.float64)}
    moved = Augmented(lambda batch: {**batch, "x": batch["x"] + 1}, is_batched=True, keeps_original=True)
    model = Scaled()
    loss = kinsight.SimilarityLoss(model, weight=1.0, pairs=moved)
    value = loss(given)
    plain = torch.cat([0.5 * (inputs() + shift + inputs(seed=2)) for shift in (0, 1)])
    truth = brute_force(model.net, plain, "logits", "flat", mean_alike(torch.arange(6).repeat(2)))
    assert far(gradients_of(model.net, value), truth) < EXACT


def test_whatever_numbers_groups_go_by() -> None:
    model, labels = network(), LABELS
    loss = kinsight.SimilarityLoss(model)
    value = float(loss(inputs(), labels).detach())
    for groups in (labels + 10**12, labels.tolist(), labels.numpy(), labels.int()):
        assert float(loss(inputs(), groups=groups).detach()) == value
    assert float(loss(inputs(), pairs=[]).detach()) == 0
    lonely = torch.tensor([-1, -1, 1, 1, -100, -100])
    loss(inputs(), lonely)
    assert loss.last is not None
    assert loss.last.n_alike == 1  # negative: of no class
    by_groups, by_pairs = (
        kinsight.SimilarityLoss(model, pairs=lambda batch, given=given: given)
        for given in (labels, torch.tensor([[0, 2], [2, 5], [0, 5], [1, 4]]))
    )
    assert float(by_groups(inputs()).detach()) == pytest.approx(float(by_pairs(inputs()).detach()), rel=1e-12)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_listed_pairs_that_are_apart_beside_classes(batch_size: int | None) -> None:
    model = network()
    apart = torch.tensor([[0, 1], [3, 5], [5, 3]])
    loss = kinsight.SimilarityLoss(model, weight=1.0, dissimilar_weight=0.5, margin=-1.0, batch_size=batch_size)

    def cost(k: Tensor) -> Tensor:
        return mean_alike(LABELS)(k) + 0.5 * (k[apart[:, 0], apart[:, 1]] + 1).mean()

    value = loss(inputs(), LABELS, dissimilar=apart)
    assert loss.last is not None
    assert loss.last.n_apart == 3
    assert far(gradients_of(model, value), brute_force(model, inputs(), "logits", "flat", cost)) < EXACT
