"""Forward-mode derivatives: how the outputs of a whole batch move along one direction of the parameters."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinsight.axes import Outputs
from kinsight.captures.running import fresh, untouched
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

    The padding row of an embedding is a constant for autograd's backward pass and none for its forward mode: refused.

    Raises NotImplementedError there, and whatever `torch.func.jvp` raises where an operation has no forward-mode
    derivative, as the fused weight normalization: then take `BatchGradients.dot`.
    """

    def outputs_at(values: dict[str, Tensor]) -> Tensor:
        inputs = fresh(batch.inputs)
        if isinstance(inputs, dict):
            returned = functional_call(model, values, (), inputs)
        else:
            returned = functional_call(model, values, inputs if isinstance(inputs, tuple) else (inputs,))
        return evaluate(output, returned, batch.targets, len(batch))

    padded = [name for name, module in model.named_modules() if getattr(module, "padding_idx", None) is not None]
    if padded:
        raise NotImplementedError(
            f"forward mode moves the padding row of the embedding {padded[0]!r}, backward does not"
        )
    moved = {name: parameter for name, parameter in parameters.items() if name in direction}
    primals = {name: parameter.detach() for name, parameter in moved.items()}
    tangents = {name: direction[name].to(parameter) for name, parameter in moved.items()}
    with untouched(model, {}), torch.no_grad(), _differentiable_attention(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)  # torch's own
        moves = cast("Tensor", jvp(outputs_at, (primals,), (tangents,))[1])
    return moves.detach()


@contextlib.contextmanager
def _differentiable_attention() -> Iterator[None]:
    """Attention by its formula: its fused kernels, the same function, have no forward-mode derivative."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
