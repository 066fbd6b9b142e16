"""What tells one kernel from another, and one sample's content from another's: digests that are the same everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinsight.batches import has_samples, leaves
from kinsight.errors import WrongModelError
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.outputs import OutputFunction
from kinsight.samples import Batch

CONTENT_BYTES = 16
"""Length of a sample's digest."""


def identity_of(kernel: GradientKernel) -> dict[str, Any]:
    """What similarities depend on: the weights, by their digest; the output; the parameters that count."""
    named = {**dict(kernel.model.named_parameters()), **dict(kernel.model.named_buffers())}
    weights, names = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for name in sorted(named):
        weights.update(f"{name} {named[name].dtype} {tuple(named[name].shape)};".encode())
        weights.update(_bytes_of(named[name]))
    for name in kernel.parameters:
        names.update(f"{name};".encode())
    return {
        "model": type(kernel.model).__name__,
        "weights": weights.hexdigest(),
        "output": described(kernel.output),
        "parameters": names.hexdigest(),
        "n_parameters": sum(parameter.numel() for parameter in kernel.parameters.values()),
    }


def check_identity(kernel: GradientKernel, known: Mapping[str, Any], what: str) -> None:
    """Raise unless a kernel is the one something was built with.

    Raises:
        WrongModelError: it has other weights, another output, or other parameters.
    """
    check_kernel(kernel)
    found = identity_of(kernel)
    reasons = {
        "weights": "was built from weights {}..., this kernel has {}.... Similarities across weights mean nothing",
        "output": "was built for output {}, this kernel has {}. Their gradients are different ones",
        "parameters": "was built over other parameters ({}..., here {}...). Shares of other layers do not compare",
    }
    for key, reason in reasons.items():
        if found[key] != known.get(key):
            length = None if key == "output" else 8
            told = reason.format(str(known.get(key))[:length], str(found[key])[:length])
            raise WrongModelError(
                f"{what} {told}. Rebuild the index, or use the checkpoint, output and parameters that it was built "
                "with."
            )


def described(output: OutputFunction) -> str:
    """An output function with its arguments; callables by module and name.

    Example:
        >>> from kinsight.outputs import probes
        >>> described(probes(k=4))
        'probes(k=4, seed=0)'
    """
    if not dataclasses.is_dataclass(output):
        return _named(type(output))
    values = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    shown = (f"{name}={_named(value) if callable(value) else repr(value)}" for name, value in values.items())
    return f"{type(output).__name__}({', '.join(shown)})"


def _named(value: Any) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def content_digests(batch: Batch) -> list[bytes]:
    """A digest of each sample's inputs and target: 16 bytes, the same wherever and whenever they are read."""
    parts = [(name, leaf) for name, leaf in leaves(batch.inputs) if isinstance(leaf, Tensor | np.ndarray)]
    parts += [] if batch.targets is None else [("targets", batch.targets)]
    digests = [hashlib.blake2b(digest_size=CONTENT_BYTES) for _ in batch.ids]
    for name, leaf in parts:
        values = torch.as_tensor(leaf)
        has_rows = has_samples(leaf)
        head = f"{name} {values.dtype} {tuple(values.shape[1:] if has_rows else values.shape)};".encode()
        rows = [_bytes_of(row) for row in values] if has_rows else [_bytes_of(values)] * len(digests)
        for digest, row in zip(digests, rows, strict=True):
            digest.update(head)
            digest.update(row)
    return [digest.digest() for digest in digests]


def _bytes_of(values: Tensor) -> bytes:
    plain = values.detach().cpu().contiguous()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
