"""Where samples lie is followed through the graph only where the data cannot move them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinsight import reference
from kinsight.captures.graph import find_uses
from kinsight.captures.layouts import Layouts, find_layouts
from kinsight.captures.steady import follow_samples
from kinsight.kernel import GradientKernel
from kinsight.samples import as_batch
from tests.zoo import ZOO
from tests.zoo_models import Lambda

STEADY = {
    "mlp", "no bias", "convolutions 1d 3d", "transposed convolutions", "residual", "transformer",
    "transformer, time first", "tied language model", "encoder and decoder", "called twice", "parametrized",
    "position tables", "low rank", "mixer", "u-net, pooled", "inverted bottleneck", "windows", "shared table",
    "frozen half", "keywords and padding",
}  # fmt: skip
"""Models of the zoo that are followed all through; in the others something is not known, and layouts are measured."""


def is_followed(function: Any, x: Tensor) -> bool:
    """Whether samples are followed through a function, put between two layers."""
    model = nn.Sequential(nn.Linear(5, 5), Lambda(function), nn.Linear(5, 2)).eval()
    outputs = model(x)
    graph = find_uses(outputs, {id(p): name for name, p in model.named_parameters()}, list(model.parameters()))
    return follow_samples(len(x), graph.weights, graph.order) is not None


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_models_that_are_followed(case: Any) -> None:
    kernel = GradientKernel(case.model(), case.outputs[0])
    kernel.gradients(case.batch(6))
    assert bool(kernel._differentiate.trace.steady) == (case.name in STEADY)


def test_gradients_that_fit_several_layouts_are_settled_by_following() -> None:
    """Read out at position 0 of 5, four samples are at rows 0, 5, 10, 15: (s, 0) in [4 5], and (s, s) in [5 4]."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), Lambda(lambda h: h[:, 0]), nn.Linear(6, 1))
    kernel = GradientKernel(model, batch_size=4)
    kernel.gradients(torch.randn(4, 5, 3))
    assert kernel._differentiate.trace.steady


ORDER = torch.tensor([3, 1, 0, 2])
MOVES = {
    "rows gathered": lambda x: x[ORDER],
    "rows selected": lambda x: x.index_select(0, ORDER),
    "rows looked up": lambda x: nn.functional.embedding(ORDER, x),
    "a permutation matrix": lambda x: torch.eye(4)[ORDER] @ x,
    "a mask, a product and a sum": lambda x: (torch.eye(4)[ORDER][:, :, None] * x[None]).sum(1),
    "a shift": lambda x: x.roll(1, 0),
    "a flip": lambda x: x.flip(0),
    "attention over samples": lambda x: (x @ x.T).softmax(-1) @ x,
    "centered": lambda x: x - x.mean(0),
    "a softmax over samples": lambda x: x.softmax(0),
    "a triangle": lambda x: x.cumsum(0),
    "halves swapped": lambda x: torch.cat([x[2:], x[:2]]),
    "samples and features mixed": lambda x: x.t().reshape(4, 5),
}
STAYS = {
    "activations": lambda x: torch.tanh(x).relu() + x.sigmoid() * 2,
    "a transpose and back": lambda x: x.t().exp().t(),
    "reshaped": lambda x: x.reshape(20, 1).sin().reshape(4, 5),
    "reduced": lambda x: x[:, None].expand(-1, 3, -1).mean(1),
    "concatenated and cut": lambda x: torch.cat([x, x.neg()], dim=1)[:, 2:7],
    "attention within samples": lambda x: (x[:, :, None] @ x[:, None]).softmax(-1) @ x[:, :, None] @ torch.ones(1, 5),
    "folded": lambda x: x.repeat_interleave(2, dim=1).reshape(8, 5).cos().reshape(4, 2, 5).sum(1),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_or_mixes_samples_is_not_followed(name: str) -> None:
    assert not is_followed(MOVES[name], torch.randn(4, 5))


@pytest.mark.parametrize("name", STAYS)
def test_what_leaves_samples_where_they_are_is_followed(name: str) -> None:
    assert is_followed(STAYS[name], torch.randn(4, 5))


def test_another_batch_size_needs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts proved at one size hold at another where the graph says so, also where other sizes coincide with it."""
    measured: list[int] = []

    def counted(outputs: Tensor, *rest: Any) -> Layouts:
        measured.append(len(outputs))
        return find_layouts(outputs, *rest)

    monkeypatch.setattr("kinsight.differentiation.trace.find_layouts", counted)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 2)).double()
    kernel, x = GradientKernel(model), torch.randn(20, 1, 7, 7, dtype=torch.float64)
    for n in (10, 20, 7, 3, 5):  # 3 channels, images of 5 x 5
        truth = reference.per_sample_gradients(model, as_batch(x[:n]), kernel.output, dict(model.named_parameters()))
        assert torch.allclose(kernel(x[:n]), reference.kernel(truth, truth), rtol=1e-9)
    assert measured == [4]  # to choose the size of batches
