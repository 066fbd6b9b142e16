"""The same work done without kinsight: torch.func, and ordinary autograd one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from kinsight.gradients.contractions import total_of

CHUNK = 32
"""Gradients that are built at a time where they are not kept: measured faster than 8 and than 128 for the lenet."""

CHUNKS = {"mlp": 8}
"""Networks for which another number was measured faster."""


def gram_by_torch_func(model: nn.Module, x: Tensor, n_outputs: int = 1, *, chunk: int | None = None) -> Tensor:
    """Gram block of one output, or the trace over the first n outputs, from vmap(grad) or vmap(jacrev). [n n]."""
    gradients = per_sample_gradients(model, n_outputs, chunk=chunk)(x)
    total = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for name in list(gradients):
        flat = gradients.pop(name).flatten(1)
        total += flat @ flat.T
    return total


def per_sample_gradients(
    model: nn.Module, n_outputs: int = 1, *, chunk: int | None = None
) -> Callable[[Tensor], dict[str, Tensor]]:
    """x -> gradients by parameter, of one output [n ...] or of the first n outputs [n c ...]."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def one(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        found: Tensor = functional_call(model, values, (sample.unsqueeze(0),))[0]
        return found[0] if n_outputs == 1 else found[:n_outputs]

    derivative = vmap(grad(one) if n_outputs == 1 else jacrev(one), (None, 0), chunk_size=chunk)

    def run(x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            found: dict[str, Tensor] = derivative(parameters, x)
        return found

    return run


def blocks_by_torch_func(model: nn.Module, x: Tensor, n_outputs: int, *, chunk: int | None = None) -> Tensor:
    """Every output with every other one, from vmap(jacrev). [n n c c]."""
    gradients = per_sample_gradients(model, n_outputs, chunk=chunk)(x)
    n, c = len(x), n_outputs
    total = torch.zeros(n * c, n * c, dtype=torch.float64, device=x.device)
    for name in list(gradients):
        flat = gradients.pop(name).reshape(n * c, -1)
        total += flat @ flat.T
    return total.view(n, c, n, c).transpose(1, 2)


def rectangle_by_torch_func(model: nn.Module, x: Tensor, y: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Gram block of one output: the gradients of x are kept, those of y pass by in chunks. [n m]."""
    gradients_of = per_sample_gradients(model)
    rows = _kept(gradients_of, x, chunk)
    return torch.cat([_products(rows, gradients_of(part)) for part in y.split(chunk)], dim=1)


def neighbors_by_torch_func(
    model: nn.Module, queries: Tensor, data: Tensor, n_neighbors: int, *, chunk: int = CHUNK
) -> Tensor:
    """Cosines of each query's gradient with the nearest ones of the data, one output. [q k]."""
    gradients_of = per_sample_gradients(model)
    rows = _kept(gradients_of, queries, chunk)
    blocks = []
    for part in data.split(chunk):
        columns = gradients_of(part)
        blocks.append(_products(rows, columns) / _norms(columns))
    return (torch.cat(blocks, dim=1) / _norms(rows)[:, None]).topk(n_neighbors, dim=1).values


def soft_count_by_torch_func(model: nn.Module, x: Tensor, n_outputs: int = 1, *, chunk: int = CHUNK) -> Tensor:
    """Sum of whitened similarities to all samples: unit gradients are added up, then met once more. [n]."""
    gradients_of = per_sample_gradients(model, n_outputs)
    total: dict[str, Tensor] = {}
    mixings, values = [], []
    for part in x.split(chunk):
        gradients = _by_output(gradients_of(part), n_outputs)
        mixing = _whitening(gradients)
        mixings.append(mixing)
        for name, each in gradients.items():
            summed = torch.tensordot(mixing.to(each.dtype), each, ([0, 2], [0, 1])).double()
            total[name] = total[name] + summed if name in total else summed
    for part, mixing in zip(x.split(chunk), mixings, strict=True):
        gradients = _by_output(gradients_of(part), n_outputs)
        dots = total_of([(each @ total[name].to(each.dtype).T).double() for name, each in gradients.items()])
        values.append((mixing * dots.transpose(1, 2)).sum(dim=(1, 2)))
    return torch.cat(values)


def gram_one_at_a_time(model: nn.Module, x: Tensor, n_outputs: int = 1) -> Tensor:
    """The same from one forward pass a sample and one backward pass a sample and output. [n n]."""
    parameters = list(model.parameters())
    rows = []
    for sample in x:
        outputs = model(sample.unsqueeze(0))[0]
        row = []
        for output in range(n_outputs):
            found = torch.autograd.grad(outputs[output], parameters, retain_graph=output + 1 < n_outputs)
            row += [each.flatten() for each in found]
        rows.append(torch.cat(row))
    flat = torch.stack(rows)
    return (flat @ flat.T).double()


def _kept(gradients_of: Callable[[Tensor], dict[str, Tensor]], x: Tensor, chunk: int) -> dict[str, Tensor]:
    """Gradients of all samples, [n p] by parameter."""
    parts = [gradients_of(part) for part in x.split(chunk)]
    return {name: torch.cat([part.pop(name).flatten(1) for part in parts]) for name in list(parts[0])}


def _products(rows: dict[str, Tensor], columns: dict[str, Tensor]) -> Tensor:
    """Inner products over all parameters. [n m]."""
    return torch.stack([(each @ columns[name].flatten(1).T).double() for name, each in rows.items()]).sum(dim=0)


def _norms(gradients: dict[str, Tensor]) -> Tensor:
    """[n]."""
    return torch.stack([each.flatten(1).square().sum(dim=1).double() for each in gradients.values()]).sum(dim=0).sqrt()


def _by_output(gradients: dict[str, Tensor], n_outputs: int) -> dict[str, Tensor]:
    """[n c p] each."""
    return {name: each.reshape(len(each), n_outputs, -1) for name, each in gradients.items()}


def _whitening(gradients: dict[str, Tensor]) -> Tensor:
    """K(x, x)^-1/2 / sqrt(c), for gradients of full rank. [n c c]."""
    own = torch.stack([(each @ each.transpose(1, 2)).double() for each in gradients.values()]).sum(dim=0)
    values, vectors = torch.linalg.eigh(own)
    roots: Tensor = (vectors * values.rsqrt().unsqueeze(1)) @ vectors.transpose(1, 2)
    return roots / math.sqrt(own.shape[1])
