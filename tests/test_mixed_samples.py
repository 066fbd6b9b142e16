"""Models whose output for a sample depends on the others, or on chance, are refused; rounding is not taken for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kinsight import outputs
from kinsight.errors import MixedSamplesError, StochasticModelError
from kinsight.kernel import GradientKernel
from tests.plain import X, truth
from tests.test_engine import error


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(torch.tanh(x - x.mean(dim=0)))


class SecretlyMixed(nn.Module):
    """Outputs are each sample's own, gradients are not: only the proof can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x + (x - x.detach()).mean(dim=0)


def test_models_that_mix_samples() -> None:
    x = torch.randn(4, 3)
    batch_norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with pytest.raises(MixedSamplesError, match=r"'1' is a BatchNorm1d in training mode.*Call model.eval\(\) first"):
        GradientKernel(batch_norm)(x)
    GradientKernel(batch_norm.eval())(x)
    no_statistics = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)).eval()
    for model in (no_statistics, BatchStatistics()):
        with pytest.raises(MixedSamplesError, match=r"differs by .* between a batch of 4 and one of 2"):
            GradientKernel(model)(x)
    with pytest.raises(MixedSamplesError, match="do not add up"):
        GradientKernel(SecretlyMixed())(x)


class ByTheMaximum(nn.Module):
    """Scales by the largest input of the batch, as dynamic quantization does: invisible to the sample that holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / x.abs().amax())


class ByPosition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x)) * (torch.arange(len(x))[:, None] + 1)


@pytest.mark.parametrize("model", [ByTheMaximum(), ByPosition()])
def test_models_that_mix_samples_other_than_the_first(model: nn.Module) -> None:
    x = torch.randn(6, 3)
    x[0, 0] = 10
    with pytest.raises(MixedSamplesError, match="one sample's output depends on the others"):
        GradientKernel(model)(x)


def test_a_model_that_mixes_is_refused_after_one_sample_too() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 5, 2, bias=False), nn.BatchNorm1d(5, track_running_stats=False), nn.Flatten(), nn.Linear(40, 4)
    ).eval()
    x = torch.randn(6, 3, 9)
    kernel = GradientKernel(model)
    kernel(x[:1])
    with pytest.raises(MixedSamplesError, match="one sample's output depends on the others"):
        kernel(x)


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


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + torch.randn(2)


def test_models_that_draw_random_numbers() -> None:
    dropout = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.Linear(3, 2))
    with pytest.raises(
        StochasticModelError, match=r"'1' is a Dropout with dropout 0.2 in training mode.*model.eval\(\)"
    ):
        GradientKernel(dropout)(X)
    GradientKernel(dropout.eval())(X)
    attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    with pytest.raises(StochasticModelError, match=r"'self_attn' is a MultiheadAttention with dropout 0.1"):
        GradientKernel(attention, outputs.pooled(channel_axis=2))(torch.randn(2, 3, 4))
    with pytest.raises(StochasticModelError, match="drew random numbers"):
        GradientKernel(Noisy())(X)
