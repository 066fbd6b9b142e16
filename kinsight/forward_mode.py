"""Forward-mode derivatives: how the outputs of a whole batch move along one direction of the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from kinsight.axes import Outputs
from kinsight.capture import untouched
from kinsight.outputs import OutputFunction, evaluate
from kinsight.samples import Batch


def output_moves(
    model: nn.Module,
    batch: Batch,
    output: OutputFunction,
    parameters: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
) -> Outputs:
    """grad f_c(x_n) . direction for every output of every sample, from one forward pass. [n c].

    Args:
        model: the module.
        batch: samples on its device.
        output: what is differentiated.
        parameters: name -> parameter.
        direction: name -> tensor of the parameter's shape; zero for names left out.

    Raises whatever `torch.func.jvp` raises where an operation has no forward-mode derivative, as fused attention on
    the CPU: then take `BatchGradients.dot`.
    """

    def outputs_at(values: dict[str, Tensor]) -> Tensor:
        inputs = batch.inputs
        if isinstance(inputs, dict):
            returned = functional_call(model, values, (), inputs)
        else:
            returned = functional_call(model, values, inputs if isinstance(inputs, tuple) else (inputs,))
        return evaluate(output, returned, batch.targets, len(batch))

    moved = {name: parameter for name, parameter in parameters.items() if name in direction}
    primals = {name: parameter.detach() for name, parameter in moved.items()}
    tangents = {name: direction[name].to(parameter) for name, parameter in moved.items()}
    with untouched(model, {}), torch.no_grad():
        _, moves = jvp(outputs_at, (primals,), (tangents,))
    return moves.detach()
