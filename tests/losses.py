"""What tests of losses on similarity share: small networks, and the truth by brute force."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinsight import reference
from kinsight.batches import as_batch
from kinsight.outputs import resolve_output

EXACT = 1e-9
"""Rounding of float64 through two backward passes; measured: 1e-13."""

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def network(c: int = 3, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, bias=bias), nn.Tanh(), nn.Linear(8, c, bias=bias)).double()


def inputs(n: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def brute_force(
    model: nn.Module, batch: Any, output: Any, normalization: str, cost: Callable[[Tensor], Tensor]
) -> list[Tensor | None]:
    """The gradient of a cost of all similarities: one sample at a time, double backward."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with sdpa_kernel(SDPBackend.MATH):
        built = reference.per_sample_gradients(
            model, as_batch(batch), resolve_output(output), parameters, is_differentiable=True
        )
    rows = torch.cat([values.reshape(*values.shape[:2], -1) for values in built.values()], dim=2)  # [n c p]
    if normalization == "flat":
        units = rows.flatten(1)
        units = units / units.norm(dim=1, keepdim=True)
    else:
        own = rows @ rows.transpose(1, 2)
        units = torch.stack([_inverse_root(each) @ row for each, row in zip(own, rows, strict=True)]).flatten(1)
        units = units / rows.shape[1] ** 0.5
    found: list[Tensor | None] = list(
        torch.autograd.grad(cost(units @ units.T), list(parameters.values()), allow_unused=True)
    )
    return found


def _inverse_root(matrix: Tensor) -> Tensor:
    """By Newton's iteration (Denman and Beavers 1976), which is differentiable without eigenvalues."""
    scale = matrix.diagonal().sum()
    root, inverse = matrix / scale, torch.eye(len(matrix), dtype=matrix.dtype)
    for _ in range(40):
        root, inverse = 0.5 * (root + torch.linalg.inv(inverse)), 0.5 * (inverse + torch.linalg.inv(root))
    return inverse / scale.sqrt()


def gradients_of(model: nn.Module, value: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    value.backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


def far(ours: list[Tensor | None], theirs: list[Tensor | None]) -> float:
    """Largest difference relative to the largest gradient; what does not matter may be 0 or None."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None or b is not None]
    gaps = [((0 if a is None else a) - (0 if b is None else b)) for a, b in pairs]
    most = max((float(b.abs().max()) for _, b in pairs if b is not None), default=0.0)
    worst = torch.stack([torch.as_tensor(gap).double().abs().max() for gap in gaps]).max()  # nan, where any is
    return float(worst) / most


def mean_alike(labels: Tensor) -> Callable[[Tensor], Tensor]:
    same = (labels[:, None] == labels).double().triu(1)
    return lambda similarities: 1 - (same * similarities).sum() / same.sum()
