"""Uncertainties by hand, at most 1 on the data, and the signed sum in linear time."""

import pytest
import torch
from torch import Tensor, nn

from kinsight import GradientKernel
from kinsight.errors import ZeroGradientWarning
from kinsight.uncertainty import signed_support, uncertainty

N = 30


def network(c: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, c)).double()


def inputs(n: int = N, seed: int = 1) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("n_queries", [None, 7])
def test_by_hand(c: int, n_queries: int | None) -> None:
    kernel, x = GradientKernel(network(c), max_bytes=2**18), inputs()
    queries = x if n_queries is None else inputs(n_queries, seed=2)
    moves = kernel.influence(queries, x).reshape(len(queries), N, c, c)  # K(y, x) K(x, x)^-1
    asked = None if n_queries is None else queries
    found = uncertainty(kernel, x, asked)
    close(found.sums, moves.square().sum(dim=(2, 3)).sqrt().sum(dim=1) / c**0.5)
    close(found.uncertainties, 1 / found.sums)
    signed = signed_support(kernel, x, asked)
    close(signed.sums, moves.diagonal(dim1=2, dim2=3).sum(dim=(1, 2)) / c)
    assert (found.is_signed, signed.is_signed) == (False, True)
    assert next(signed.rows()) == {"id": 0, "uncertainty": float(1 / signed.sums[0]), "support": float(signed.sums[0])}


@pytest.mark.parametrize("c", [1, 3])
def test_at_most_one_on_the_data_and_larger_far_from_it(c: int) -> None:
    kernel, x = GradientKernel(network(c)), inputs()
    on = uncertainty(kernel, x).uncertainties
    assert float(on.max()) <= 1 + 1e-12
    assert float(uncertainty(kernel, x[:1]).uncertainties[0]) == pytest.approx(1)
    line = GradientKernel(nn.Linear(5, 1).double())
    far = uncertainty(line, x, 100 * x)
    assert float(far.uncertainties.median()) > 10 * float(uncertainty(line, x).uncertainties.median())


@pytest.mark.parametrize("output", ["log_probs", "centered_logits", "logits"])
def test_outputs_that_are_tied_together(output: str) -> None:
    """Orthogonal inputs of a linear map move themselves alone, and by 1, whatever the rank of K(x, x)."""
    torch.manual_seed(0)
    line = GradientKernel(nn.Linear(6, 2, bias=False).double(), output)
    for support in (uncertainty(line, torch.eye(6).double()), signed_support(line, torch.eye(6).double())):
        close(support.uncertainties, torch.ones(6, dtype=torch.float64))
    assert float(uncertainty(GradientKernel(network(3), output), inputs()).uncertainties.max()) <= 1 + 1e-12


@pytest.mark.parametrize("ask", [uncertainty, signed_support])
def test_zero_gradients_are_undefined(ask: object) -> None:
    kernel = GradientKernel(nn.Linear(5, 1, bias=False).double())
    x = inputs()
    x[4] = 0
    assert callable(ask)
    with pytest.warns(ZeroGradientWarning, match=r"\[4\]"):
        found = ask(kernel, x)
    assert found.sums.isnan().nonzero().flatten().tolist() == [4]
