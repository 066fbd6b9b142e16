"""The zoo on a CUDA device: the same numbers as on the CPU."""

from typing import Literal

import pytest
import torch
from torch import nn

import kinsight
from kinsight.kernel import GradientKernel
from tests.test_engine import EXACT, MODELS, SINGLE, error
from tests.zoo import ZOO, Case, to_dtype

pytestmark = pytest.mark.gpu


def to_device(model: nn.Module) -> nn.Module:
    return model.to("cuda")


@pytest.mark.parametrize("case", MODELS)
def test_the_same_numbers_in_float64(case: Case) -> None:
    x, y = case.batch(6), case.batch(5, seed=3)
    cpu, gpu = GradientKernel(case.model(), case.outputs[0]), GradientKernel(to_device(case.model()), case.outputs[0])
    assert error(gpu(x, y).cpu(), cpu(x, y)) < EXACT
    assert error(gpu.similarity(x).cpu(), cpu.similarity(x)) < EXACT
    assert error(kinsight.soft_count(gpu, x).values, kinsight.soft_count(cpu, x).values) < EXACT


@pytest.mark.parametrize("case", MODELS)
def test_float32_does_not_lose_precision_to_tensor_cores(case: Case) -> None:
    x = case.batch(6)
    truth = GradientKernel(case.model(), case.outputs[0])(x)
    gpu = GradientKernel(to_device(case.model(torch.float32)), case.outputs[0])
    assert error(gpu(to_dtype(x, torch.float32)).cpu(), truth) < SINGLE


@pytest.mark.parametrize("route", ["pairs", "groups"])
@pytest.mark.parametrize("case", MODELS)
@pytest.mark.filterwarnings("ignore::kinsight.errors.SlowAttentionWarning")
def test_the_loss_in_float64(case: Case, route: Literal["pairs", "groups"]) -> None:
    found = []
    for model in (case.model(), to_device(case.model())):
        loss = kinsight.SimilarityLoss(model, case.outputs[0], weight=1.0, route=route)
        loss(case.batch(6), groups=[0, 0, 0, 1, 1, 1]).backward()
        found.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    cpu, gpu = found
    assert cpu.keys() == gpu.keys()
    assert max(error(gpu[name], cpu[name]) for name in cpu) < 1e-8


def test_global_settings_come_back() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled
    GradientKernel(to_device(ZOO[0].model()))(ZOO[0].batch(3))
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled) == before


def test_targets_of_a_probe_may_lie_anywhere() -> None:
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    model = nn.Linear(3, 2)
    known = kinsight.SimilarityWatcher(model, kinsight.Samples(x, y)).look()
    for inputs, targets in ((x.cuda(), y.cuda()), (x.cuda(), y), (x, y.cuda())):
        found = kinsight.SimilarityWatcher(to_device(model), kinsight.Batch(inputs, targets=targets)).look()
        assert found == pytest.approx(known, rel=1e-4)
