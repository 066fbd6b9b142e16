"""The truth, slow and plain: one sample, one output at a time, ordinary autograd, float64 sums.

Every fast path is compared with these functions. Nothing here is clever, and nothing here should become so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kinsight.axes import GramBlock, OutputBlocks
from kinsight.captures.nodes import node_names, widen
from kinsight.captures.running import call_model, needs_company, untouched
from kinsight.outputs import OutputFunction, evaluate
from kinsight.samples import Batch


def per_sample_gradients(
    model: nn.Module,
    batch: Batch,
    output: OutputFunction,
    parameters: Mapping[str, Tensor],
    *,
    is_differentiable: bool = False,
) -> dict[str, Tensor]:
    """Gradients of every output of every sample over every parameter, by name, each [n c *shape].

    The model is run on one sample at a time (see `running.needs_company` for when it gets two copies of it).
    `is_differentiable` keeps their graphs.
    """
    rows: list[list[tuple[Tensor | None, ...]]] = []
    with untouched(model, parameters):
        for place in range(len(batch)):
            alone = batch[place : place + 1]
            outputs = evaluate(output, call_model(model, alone.inputs), alone.targets, 1)
            if needs_company(node_names(outputs)):
                alone = batch[[place, place]]
                outputs = evaluate(output, call_model(model, alone.inputs), alone.targets, 2)
            rows.append([])
            for value in outputs[0]:
                found = (
                    torch.autograd.grad(
                        value,
                        list(parameters.values()),
                        retain_graph=True,
                        allow_unused=True,
                        create_graph=is_differentiable,
                    )
                    if value.requires_grad
                    else (None,) * len(parameters)
                )
                rows[-1].append(found)
    gradients = {}
    for column, (name, parameter) in enumerate(parameters.items()):
        zero = widen(torch.zeros_like(parameter))
        stacked = [
            torch.stack([zero if (part := row[column]) is None else widen(part) for row in sample]) for sample in rows
        ]
        found_of_all = widen(torch.stack(stacked))
        gradients[name] = found_of_all if is_differentiable else found_of_all.detach()
    return gradients


def blocks(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> OutputBlocks:
    """K(x, y)[a, b] = grad f_a(x) . grad f_b(y), from built gradients, in float64. [n m c c]."""
    total = torch.zeros(())
    for name in x:
        total = total + torch.einsum("nap,mbp->nmab", _flat(x[name]), _flat(y[name]))
    return total


def _flat(gradients: Tensor) -> Tensor:
    return gradients.reshape(*gradients.shape[:2], -1).double()


def kernel(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> GramBlock:
    """Tr K(x, y) / c. [n m]."""
    return blocks(x, y).diagonal(dim1=2, dim2=3).mean(dim=2)


def influence(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Tensor:
    """K(y, x) K(x, x)^-1: how f(y_m) moves when f(x_n) is moved by one. [n m c c], or [n m] for one output."""
    crossed, own = blocks(x, y), blocks(x, x)
    moved = torch.empty_like(crossed)
    for n in range(crossed.shape[0]):
        inverse = torch.linalg.pinv(own[n, n], rtol=1e-10, hermitian=True)
        for m in range(crossed.shape[1]):
            moved[n, m] = crossed[n, m].T @ inverse
    return moved[:, :, 0, 0] if moved.shape[2] == 1 else moved


def whitened_blocks(
    x: Mapping[str, Tensor], y: Mapping[str, Tensor], floor: float = 1e-10
) -> tuple[OutputBlocks, Tensor, Tensor]:
    """K_C(x, y) = K(x, x)^-1/2 K(x, y) K(y, y)^-1/2 [n m c c], and the ranks of K(x, x) [n] and K(y, y) [m]."""
    left, ranks_x = _inverse_roots(x, floor)
    right, ranks_y = _inverse_roots(y, floor)
    crossed = blocks(x, y)
    for n in range(crossed.shape[0]):
        for m in range(crossed.shape[1]):
            crossed[n, m] = left[n] @ crossed[n, m] @ right[m]
    return crossed, ranks_x, ranks_y


def _inverse_roots(x: Mapping[str, Tensor], floor: float) -> tuple[list[Tensor], Tensor]:
    own = blocks(x, x)
    roots, ranks = [], []
    for n in range(own.shape[0]):
        values, vectors = torch.linalg.eigh(own[n, n])
        kept = values > floor * values[-1]
        powers = torch.where(kept, values, 1.0) ** -0.5 * kept
        roots.append(vectors @ torch.diag(powers) @ vectors.T)
        ranks.append(int(kept.sum()))
    return roots, torch.tensor(ranks)


def similarity(x: Mapping[str, Tensor], y: Mapping[str, Tensor], floor: float = 1e-10) -> GramBlock:
    """Tr K_C(x, y) / sqrt(rank(x) rank(y)); for one output the cosine. [n m]."""
    whitened, ranks_x, ranks_y = whitened_blocks(x, y, floor)
    scale = (ranks_x[:, None] * ranks_y[None, :]).double().sqrt()
    return whitened.diagonal(dim1=2, dim2=3).sum(dim=2) / scale


def flat_similarity(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> GramBlock:
    """Tr K(x, y) / sqrt(Tr K(x, x) Tr K(y, y)). [n m]."""
    return kernel(x, y) / (kernel(x, x).diagonal()[:, None] * kernel(y, y).diagonal()[None, :]).sqrt()


def rotation_similarity(
    x: Mapping[str, Tensor], y: Mapping[str, Tensor], *, is_special: bool = False, floor: float = 1e-10
) -> GramBlock:
    """max_R Tr(R K_C(x, y)) / sqrt(rank(x) rank(y)) over orthogonal R, or over rotations. [n m]."""
    whitened, ranks_x, ranks_y = whitened_blocks(x, y, floor)
    best = torch.empty(whitened.shape[:2], dtype=torch.float64)
    for n in range(whitened.shape[0]):
        for m in range(whitened.shape[1]):
            values = torch.linalg.svdvals(whitened[n, m])
            if is_special and torch.linalg.det(whitened[n, m]) < 0:
                values[-1] = -values[-1]
            best[n, m] = values.sum() / float(ranks_x[n] * ranks_y[m]) ** 0.5
    return best
