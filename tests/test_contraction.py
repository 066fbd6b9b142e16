"""Inner products are as precise as is said: in full precision, and in a reduced one where it was asked for."""

import copy

import pytest
import torch
from torch import Tensor, nn

import kinsight
from kinsight.gradients import contractions
from kinsight.gradients.products import MOST_ROUNDED
from kinsight.kernel import GradientKernel
from tests.test_engine import error
from tests.zoo import ZOO, Case

STATED = {"bfloat16": 2.5e-2, "split": 1e-5}
"""Largest error of an inner product, over the product of the norms, that the documentation states."""

LARGE = [case for case in ZOO if case.name in ("mlp", "residual", "transformer", "convolutions 1d 3d", "lstm")]


def emulated(x: Tensor, y: Tensor) -> Tensor:
    """What CUDA computes: products of bfloat16 numbers are exact in float32, and added up there."""
    return x.float() @ y.float().T


def errors(case: Case, contraction: str, n: int = 130) -> Tensor:
    """Of every inner product, over the product of the norms. [n n]."""
    x = case.batch(n, torch.float32)
    output = case.outputs[0]
    truth = GradientKernel(case.model(torch.float32), output)(x)
    found = GradientKernel(case.model(torch.float32), output, contraction=contraction)(x)  # type: ignore[arg-type]
    norms = truth.diagonal().sqrt()
    return (found - truth).abs() / (norms[:, None] * norms)


@pytest.mark.parametrize("contraction", list(STATED))
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_errors_are_what_is_stated(case: Case, contraction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contractions, "wide_product", emulated)
    monkeypatch.setattr("kinsight.kernel.refuse_contraction", lambda contraction, device: None)
    largest = float(errors(case, contraction).max())
    assert largest < STATED[contraction]
    assert largest > STATED[contraction] / 1e4, "nothing was rounded: this test could not fail"


class FarFromZero(nn.Module):
    """Inputs and output gradients that cancel in the sum over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(32, 32, bias=False)
        self.register_buffer("direction", torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return (torch.tanh(h - h.mean(1, keepdim=True)) * self.direction).sum((1, 2))


def test_what_cancels_over_positions_is_rounded_afterwards() -> None:
    model, x = FarFromZero(), torch.randn(130, 40, 32) + 100
    found, truth = (GradientKernel(model, contraction=c).similarity(x) for c in ("bfloat16", "full"))
    assert float((found - truth).abs().max()) < STATED["bfloat16"]


def test_rounding_that_goes_one_way() -> None:
    model = nn.Sequential(nn.Linear(257, 1, bias=False))
    x = torch.full((4, 257), 1 + 2**-8 - 2**-12)
    found, truth = (GradientKernel(model, contraction=c).similarity(x, x.clone()) for c in ("bfloat16", "full"))
    assert float((found - truth).abs().max()) < STATED["bfloat16"]


@pytest.mark.parametrize("question", ["neighbors", "soft_count"])
def test_questions_take_the_contraction_of_their_kernel(question: str) -> None:
    case = LARGE[1]
    x = case.batch(40, torch.float32)
    full, coarse = (GradientKernel(case.model(torch.float32), contraction=c) for c in ("full", "bfloat16"))
    if question == "soft_count":  # a sum of products with one direction: nothing large to multiply
        assert torch.equal(kinsight.soft_count(full, x).values, kinsight.soft_count(coarse, x).values)
        return
    near, nearly = (kinsight.neighbors(kernel, x, x, 3).similarities for kernel in (full, coarse))
    assert 0 < float((near - nearly).abs().max()) < 2 * STATED["bfloat16"]


def test_float64_stays_float64() -> None:
    case = LARGE[0]
    x = case.batch(20)
    assert torch.equal(GradientKernel(case.model(), contraction="bfloat16")(x), GradientKernel(case.model())(x))


def test_split_is_refused_where_there_is_no_such_product() -> None:
    case = LARGE[0]
    with pytest.raises(kinsight.errors.InputError, match=r"contraction='split' needs .* have on cpu. Use"):
        GradientKernel(case.model(torch.float32), contraction="split")


@pytest.mark.usefixtures("without_type_checks")
def test_unknown_contractions_are_refused() -> None:
    with pytest.raises(kinsight.errors.UnknownNameError, match="contraction 'int8' is unknown: use 'full'"):
        GradientKernel(torch.nn.Linear(2, 1), contraction="int8")  # type: ignore[arg-type]


class Difference(nn.Module):
    """Compares two inputs by one layer: what they have in common cancels in its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(torch.tanh(h[:, 0] - h[:, 1]))


@pytest.mark.parametrize("common", [0.0, 1.0, 30.0, 1000.0])
def test_gradients_of_which_little_is_left(common: float) -> None:
    torch.manual_seed(0)
    model = Difference()
    x = torch.randn(20, 2, 64) * 0.1 + common * torch.randn(64)
    y = torch.randn(7, 2, 64) * 0.1 + common
    single = GradientKernel(model, parameters=["body.weight"])
    double = GradientKernel(copy.deepcopy(model).double(), parameters=["body.weight"])
    for ask in (
        lambda kernel, x, y: kernel(x),
        lambda kernel, x, y: kernel(x, y),
        lambda kernel, x, y: kernel.blocks(x, y),
        lambda kernel, x, y: kernel.similarity(x),
        lambda kernel, x, y: kernel.flat_similarity(y, x),
    ):
        assert error(ask(single, x, y), ask(double, x.double(), y.double())) < 2 * MOST_ROUNDED
    assert error(single(x).diagonal(), single.diag(x)) < MOST_ROUNDED


def test_full_precision_where_the_user_has_autocast_on() -> None:
    gradients = GradientKernel(nn.Linear(64, 2)).gradients(torch.randn(9, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients.gram(gradients), gradients.self_blocks()
    assert torch.equal(inside[0], gradients.gram(gradients))
    assert torch.equal(inside[1], gradients.self_blocks())
