"""The exact paths for parameters no layer rule knows: vmap of the reverse-mode Jacobian, else one sample at a time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from kinsight.captures.nodes import widen
from kinsight.captures.running import fresh, untouched
from kinsight.gradients import Built
from kinsight.outputs import OutputFunction, evaluate
from kinsight.reference import per_sample_gradients
from kinsight.samples import Batch


def one_at_a_time(
    model: nn.Module,
    batch: Batch,
    output: OutputFunction,
    parameters: Mapping[str, Tensor],
    *,
    is_differentiable: bool = False,
) -> dict[str, Built]:
    """Gradients over the given parameters from one forward pass a sample: whatever autograd can do, this can."""
    found = per_sample_gradients(model, batch, output, parameters, is_differentiable=is_differentiable)
    return {name: Built(values) for name, values in found.items()}


def vmapped(
    model: nn.Module, batch: Batch, output: OutputFunction, parameters: Mapping[str, Tensor]
) -> dict[str, Built]:
    """Gradients over the given parameters from one vectorized pass.

    Raises whatever `torch.func.vmap` raises on a model it cannot run: fused recurrent layers, routing that depends
    on the data, in-place writes into captured tensors, custom functions without a vmap rule.
    """
    inputs = _parts(fresh(batch.inputs))
    mapped = {key: part for key, part in inputs.items() if isinstance(part, Tensor) and part.dim() > 0}
    fixed = {key: part for key, part in inputs.items() if key not in mapped}

    def outputs_of_one(values: dict[str, Tensor], sample: dict[Any, Tensor], target: Tensor | None) -> Tensor:
        parts = {**fixed, **{key: part.unsqueeze(0) for key, part in sample.items()}}
        targets = None if target is None else target.unsqueeze(0)
        if isinstance(batch.inputs, dict):
            returned = functional_call(model, values, (), parts)
        elif isinstance(batch.inputs, tuple):
            returned = functional_call(model, values, tuple(parts[key] for key in range(len(parts))))
        else:
            returned = functional_call(model, values, (parts[0],))
        return evaluate(output, returned, targets, 1)[0]

    values = {name: parameter.detach() for name, parameter in parameters.items()}
    axes = (None, 0, None if batch.targets is None else 0)
    with untouched(model, {}), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="There is a performance drop"
        )  # slower than vmap could be, still exact
        found = vmap(jacrev(outputs_of_one), in_dims=axes, randomness="different")(values, mapped, batch.targets)
    return {name: Built(widen(gradients.detach())) for name, gradients in found.items()}


def _parts(inputs: Any) -> dict[Any, Any]:
    if isinstance(inputs, dict):
        return dict(inputs)
    return dict(enumerate(inputs)) if isinstance(inputs, tuple) else {0: inputs}
