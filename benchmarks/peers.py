"""The same work done without kinsight: torch.func, and ordinary autograd one sample at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap


def gram_by_torch_func(model: nn.Module, x: Tensor, n_outputs: int = 1, *, chunk: int | None = None) -> Tensor:
    """Gram block of one output, or the trace over the first n outputs, from vmap(grad) or vmap(jacrev). [n n]."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def one(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        found = functional_call(model, values, (sample.unsqueeze(0),))[0]
        return found[0] if n_outputs == 1 else found[:n_outputs]

    derivative = grad(one) if n_outputs == 1 else jacrev(one)
    with torch.no_grad():
        gradients = vmap(derivative, (None, 0), chunk_size=chunk)(parameters, x)
        total = torch.zeros(len(x), len(x), dtype=torch.float64)
        for name in list(gradients):
            flat = gradients.pop(name).flatten(1)
            total += flat @ flat.T
    return total


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
