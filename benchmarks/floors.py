"""What no exact method can do without: the passes through the network, and the inner products at the GEMM's rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import CPU, timed


def passes(model: nn.Module, batches: Sequence[Tensor], n_outputs: int = 1) -> Callable[[], object]:
    """One forward pass and one backward pass an output, without gradients over weights, batch after batch.

    The backward pass ends at the output of the first layer that has weights, as it has to for that layer's gradients.
    """
    owners = [module for module in model.modules() if list(module.parameters(recurse=False))]
    start: list[Tensor] = []

    def begin(module: nn.Module, inputs: Any, returned: Tensor) -> Tensor | None:
        if start:
            return None  # only the first module to be done
        start.append(returned.detach().requires_grad_())
        return start[0]

    def run() -> None:
        handles = [module.register_forward_hook(begin) for module in owners]
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        try:
            for x in batches:
                start.clear()
                outputs = model(x)
                for output in range(n_outputs):
                    torch.autograd.grad(outputs[:, output].sum(), start, retain_graph=output + 1 < n_outputs)
        finally:
            start.clear()
            for handle in handles:
                handle.remove()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    return run


def plain(model: nn.Module, batches: Sequence[Tensor], n_outputs: int = 1) -> Callable[[], object]:
    """One forward pass and one backward pass an output, gradients over weights included: an epoch of training."""
    parameters = list(model.parameters())

    def run() -> None:
        for x in batches:
            outputs = model(x)
            for output in range(n_outputs):
                torch.autograd.grad(
                    outputs[:, output].sum(), parameters, retain_graph=output + 1 < n_outputs, allow_unused=True
                )

    return run


def gemm_rate(seconds: float = 0.5, device: torch.device = CPU) -> float:
    """Multiply-adds a second of a large float32 matrix product, the best of several."""
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = max(best, n**3 / timed(lambda: a @ a, device)[0])
    return best


def contraction(
    model: nn.Module,
    x: Tensor,
    n: int,
    m: int,
    n_outputs: int = 1,
    *,
    is_same: bool = False,
    is_blocks: bool = False,
) -> float:
    """Multiply-adds of the inner products of all weights: the cheaper of factors and built gradients, layer by layer.

    Args:
        model: made of linear layers, convolutions and attention; weights of other layers cost next to nothing.
        x: a few inputs, to see the layers' sizes.
        n: rows.
        m: columns.
        n_outputs: whose kernels are added up.
        is_same: whether rows and columns are the same samples, whose gradients are built once.
        is_blocks: whether each output meets each other one, instead of itself only.
    """
    sizes: list[tuple[int, int, int]] = []

    def note(module: nn.Module, inputs: Any, returned: Any) -> None:
        own = module.named_parameters(recurse=False)
        weights: list[Tensor] = [p for name, p in own if name.endswith("weight") and p.dim() > 1]
        if isinstance(module, nn.MultiheadAttention):  # it reads its last layer's weight without calling it
            weights.append(module.out_proj.weight)
        output = returned[0] if isinstance(returned, tuple) else returned
        for weight in weights:
            o = weight.shape[0]
            t = output[0].numel() // output.shape[-1 if isinstance(module, nn.Linear | nn.MultiheadAttention) else 1]
            sizes.append((t, weight[0].numel(), o))

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    handles = [module.register_forward_hook(note) for module in model.modules() if not isinstance(module, nn.Embedding)]
    try:
        with torch.no_grad():
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    total, n_products = 0.0, n_outputs**2 if is_blocks else n_outputs
    for t, i, o in sizes:
        built = (n if is_same else n + m) * t * n_outputs * i * o * (t > 1) + n * m * n_products * i * o
        total += min(built, n * m * t * t * (i + n_products * o))
    return total
