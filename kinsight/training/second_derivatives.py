"""What has a second derivative, and what to say where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from kinsight.errors import SecondDerivativeError


class Attention(TorchFunctionMode):
    """Notes whether attention was computed while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_used = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.is_used = self.is_used or getattr(func, "__name__", "") in ATTENTION
        return func(*args, **(kwargs or {}))


ATTENTION = (
    "scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
)  # fmt: skip
"""Functions of torch that compute it: what they call in turn is not seen."""


def refuse_constant(outputs: Tensor, parameters: Sequence[Tensor]) -> None:
    """Raise where the user's own backward pass gives what autograd takes for a constant.

    An `autograd.Function` whose backward writes into new memory (by a kernel of its own, through `.data`, under
    `no_grad`) is right once, and silently 0 the second time. Each is run with a cotangent that is followed: whatever is
    made of it has to be followed, too, unless it is 0.

    Args:
        outputs: of the model for some samples, with their graph.
        parameters: what they are differentiated over.

    Raises:
        SecondDerivativeError: there is such a function.
    """
    constant: list[str] = []

    def look(node: Node) -> Callable[[tuple[Tensor | None, ...], tuple[Tensor | None, ...]], None]:
        def hook(found: tuple[Tensor | None, ...], cotangents: tuple[Tensor | None, ...]) -> None:
            if any(each is not None and each.requires_grad for each in cotangents) and any(
                each is not None and not each.requires_grad and bool(each.any()) for each in found
            ):
                constant.append(node.name().removesuffix("Backward"))

        return hook

    own = [node for node in _nodes_below([outputs]) if isinstance(node, BackwardCFunction)]
    if not own:
        return
    handles = [node.register_hook(look(node)) for node in own]
    try:
        cotangent = torch.ones_like(outputs, requires_grad=True)
        torch.autograd.grad(outputs, parameters, cotangent, create_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    if constant:
        raise SecondDerivativeError(
            f"The backward pass of {constant[0]} gives numbers that autograd does not follow, and takes for constants: "
            "a part of the model can be differentiated once, but not twice. The loss is made of gradients, so that its "
            "own gradient is a second derivative, and would be wrong. Write that backward pass in ordinary operations "
            "of torch, or as an autograd.Function of its own; or compare gradients over layers above it alone: "
            "parameters=..."
        )


def second_gradients(
    captured: list[Tensor], cotangents: list[Tensor], parameters: list[nn.Parameter]
) -> list[Tensor | None]:
    """Vector-Jacobian products of what was captured of gradients; None where it does not depend on a parameter.

    Both lists are emptied: what was captured, and what has been passed on, is not kept until all is done.

    Raises:
        SecondDerivativeError: something in the model has no second derivative. Autograd itself raises only where it has
            to pass through: of a function without one, nothing may be left to pass to, and its part be missing.
    """
    if not captured:
        return [None] * len(parameters)
    for name in {node.name() for node in _nodes_below(captured)}:
        if name in _NO_SECOND:
            raise SecondDerivativeError(
                f"A part of the model can be differentiated once, but not twice: {_NO_SECOND[name]}. The loss is made "
                "of gradients, so that its own gradient is a second derivative. Use an implementation made of ordinary "
                "operations (for attention: attn_implementation='eager', or "
                "torch.nn.functional.scaled_dot_product_attention), or compare gradients over layers above it alone: "
                "parameters=..."
            )
    start = _Start.apply(cotangents, *captured)  # type: ignore[no-untyped-call]
    captured.clear()
    try:
        return list(torch.autograd.grad(start, parameters, allow_unused=True))
    except NotImplementedError as error:
        raise SecondDerivativeError(
            f"A part of the model can be differentiated once, but not twice: {error}. The loss is made of gradients, "
            "so that its own gradient is a second derivative. Use another operation in its place, or compare gradients "
            "over layers above it alone: parameters=..."
        ) from error


class _Start(torch.autograd.Function):
    """Where a backward pass starts from that takes cotangents out of a list: none outlives its use."""

    @staticmethod
    def forward(ctx: Any, cotangents: list[Tensor], *captured: Tensor) -> Tensor:
        ctx.cotangents = cotangents
        return captured[0].new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        found = tuple(ctx.cotangents)
        ctx.cotangents.clear()
        return (None, *found)


def _nodes_below(tensors: list[Tensor]) -> set[Node]:
    """All nodes that made the tensors."""
    stack = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(stack)
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return seen


_NO_SECOND = {
    "torch::autograd::Error": "a function marked @once_differentiable",
    "torch::autograd::NotImplemented": "a fused kernel, whose backward pass has no derivative",
}
"""Nodes that stand for a derivative that is missing."""
