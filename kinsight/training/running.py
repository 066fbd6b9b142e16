"""The network in training, run for a moment as it will be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from kinsight.captures.running import without_hooks


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model: of what torch.compile and data parallel training wrap."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextlib.contextmanager
def as_used(model: nn.Module) -> Iterator[None]:
    """The model as it will be used, whatever mode it is trained in, and back afterwards.

    Every module is in eval mode, parameters have no hooks, and nothing is computed in less than their precision: not in
    the caller's autocast, nor in that which Accelerate puts around a model's forward.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        # no cache: what a pass without gradients had cast would be taken for a constant by those that follow
        with torch.autocast(device.type, enabled=False, cache_enabled=False), _own_forward(model), without_hooks(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """The forward that the model had before Accelerate put mixed precision around it."""
    attributes = vars(model)
    own, wrapped = attributes.get("_original_forward"), attributes.get("forward")
    if own is None or wrapped is None or "pippy_stage" in attributes:
        yield
        return
    attributes["forward"] = own
    try:
        yield
    finally:
        attributes["forward"] = wrapped


def made_for(model: nn.Module) -> tuple[tuple[object, ...], ...]:
    """What a kernel is made for: which parameters there are, of what kind, and which of them are trained."""
    return tuple((name, id(each), each.requires_grad, each.dtype) for name, each in model.named_parameters())
