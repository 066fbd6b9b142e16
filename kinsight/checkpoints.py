"""Checkpoints: weights read from a file without running its code, put into a model in full or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinsight.errors import CheckpointError, SourceError
from kinsight.files.paths import existing

CONTAINERS = ("state_dict", "model_state_dict", "model")
"""Where training scripts put the weights among other things, in the order looked for."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before every name."""


def load_weights(model: nn.Module, path: str | Path, *, allow_pickle: bool = False) -> None:
    """Put the weights of a checkpoint into the model.

    The file is a `.safetensors`, or what `torch.save` wrote: a state dict, alone or under one of
    `CONTAINERS`. Prefixes that all names have and the model does not (`PREFIXES`) are taken off. Every name
    and shape has to fit.

    Args:
        model: changed in place.
        path: the file.
        allow_pickle: also read what needs unpickling. THIS RUNS CODE FROM THE FILE: only for files you trust.

    Raises:
        CheckpointError: the file is missing, damaged, needs unpickling, holds no weights, or they do not fit
            the model.
    """
    try:
        file = existing(str(path), "a file of weights")
    except SourceError as error:
        raise CheckpointError(f"There is no checkpoint: {error}") from error
    weights = _fitting_names(_state_dict(_read(file, allow_pickle), file), model)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(_differences(weights, model, file) or f"{str(file)!r}: {error}") from error


def _read(file: Path, allow_pickle: bool) -> Any:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file, device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{str(file)!r} cannot be read as safetensors: {error}.") from error
    try:
        return torch.load(file, map_location="cpu", weights_only=not allow_pickle)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise CheckpointError(_why_unread(file, error, allow_pickle)) from error


def _why_unread(file: Path, error: Exception, allow_pickle: bool) -> str:
    lines = str(error).splitlines() or [repr(error)]
    signs = ("Unsupported", "pickle protocol", "TorchScript")
    why = next((line[line.index(sign) :] for line in lines for sign in signs if sign in line), None)
    if why is None or allow_pickle:
        return f"{str(file)!r} cannot be read as a checkpoint; it may be damaged: {lines[0]}"
    why = why.split(" was not")[0].removesuffix(", which")
    return (
        f"{str(file)!r} holds more than tensors ({why}), so reading it means to "
        "unpickle it, which runs code from the file. Save model.state_dict() or a .safetensors; if you "
        "trust where the file comes from, pass allow_pickle=True (--allow-pickle)."
    )


def _state_dict(found: Any, file: Path) -> dict[str, Any]:
    """The state dict among what a training script saved."""
    if isinstance(found, nn.Module):
        return dict(found.state_dict())
    if isinstance(found, Mapping):
        for name in CONTAINERS:
            if isinstance(found.get(name), (Mapping, nn.Module)):
                return _state_dict(found[name], file)
        if (
            found
            and all(isinstance(name, str) for name in found)
            and any(isinstance(x, Tensor) for x in found.values())
        ):
            return dict(found)
        held = f"a dict of {', '.join(map(repr, list(found)[:5])) or 'nothing'}"
    else:
        held = f"a {type(found).__name__}"
    raise CheckpointError(
        f"{str(file)!r} holds {held}: no weights by name, alone or under {', '.join(map(repr, CONTAINERS))}. "
        "Save model.state_dict()."
    )


def _fitting_names(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    own = list(model.state_dict())
    while True:
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in weights) and not all(n.startswith(prefix) for n in own):
                weights = {name[len(prefix) :]: value for name, value in weights.items()}
                break
        else:
            return weights


def _differences(weights: Mapping[str, Any], model: nn.Module, file: Path) -> str:
    own = model.state_dict()
    shapes = [
        f"{name!r} {list(value.shape)} for {list(own[name].shape)}"
        for name, value in weights.items()
        if name in own
        and isinstance(value, Tensor)
        and isinstance(own[name], Tensor)
        and value.shape != own[name].shape
    ]
    kinds = {
        "missing": [repr(name) for name in own if name not in weights],
        "unexpected": [repr(name) for name in weights if name not in own],
        "of another shape": shapes,
    }
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    if not parts:
        return ""
    return (
        f"Checkpoint {str(file)!r} does not fit the {type(model).__name__} with its {len(own)} tensors: "
        f"{'; '.join(parts)}. A model that is partly random would give numbers that mean nothing. Build the "
        "model the checkpoint was saved from."
    )
