"""Which of a model's parameters count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kinsight.errors import ModelError, NoParametersError, UncapturedParameterError, UnknownNameError


def choose_parameters(
    model: nn.Module, parameters: Callable[[str], bool] | Iterable[str] | None
) -> dict[str, nn.Parameter]:
    """The chosen parameters by name, each tensor once, under its first name; those without a single number left out.

    Raises:
        NoParametersError: none is left.
        UnknownNameError: a name the model does not have.
        UncapturedParameterError: complex parameters.
        ModelError: parameters that were made in inference mode.
    """
    named = dict(model.named_parameters())
    lazy = [name for name, parameter in named.items() if is_lazy(parameter)]
    if lazy:
        raise NoParametersError(
            f"{len(lazy)} parameters of {type(model).__name__} have no size yet: {', '.join(map(repr, lazy[:3]))}. "
            "Call the model once on a batch, so that its lazy layers take their size."
        )
    if any(parameter.is_inference() for parameter in named.values()):
        raise ModelError(
            f"{type(model).__name__} was made under torch.inference_mode(): its parameters can never be differentiated "
            "over. Make and load it outside, and ask kinsight from wherever you like."
        )
    every = dict(model.named_parameters(remove_duplicate=False))
    if parameters is None:
        tensors = {id(parameter) for parameter in named.values() if parameter.requires_grad}
    elif callable(parameters):
        tensors = {id(parameter) for name, parameter in every.items() if parameters(name)}
    else:
        wanted = [parameters] if isinstance(parameters, str) else list(parameters)
        wanted = [name.removeprefix("_orig_mod.") for name in wanted]  # as a compiled model calls them
        missing = [name for name in wanted if name not in every]
        if missing:
            raise UnknownNameError(
                f"The model has no parameter {missing[0]!r} ({len(missing)} of {len(wanted)} names are unknown). It "
                f"has {len(named)}: {', '.join(map(repr, list(named)[:5]))}{', ...' if len(named) > 5 else ''}."
            )
        tensors = {id(every[name]) for name in wanted}
    chosen = {name: parameter for name, parameter in named.items() if id(parameter) in tensors}
    _refuse_complex(chosen)
    chosen = {name: p for name, p in chosen.items() if p.is_floating_point() and p.numel()}
    if not chosen:
        frozen = sum(not parameter.requires_grad for parameter in named.values())
        raise NoParametersError(
            f"No parameter of {type(model).__name__} is left to differentiate over: it has {len(named)}, of which "
            f"{frozen} are frozen. Similarity is about moving parameters; choose some: parameters=lambda name: True "
            "takes frozen ones too."
        )
    return chosen


def refuse_replaced(model: nn.Module, chosen: Mapping[str, Tensor], known: Sequence[Tensor] | None) -> None:
    """Raise where layers were replaced or added since parameters were chosen: theirs would be left out.

    Args:
        model: whose parameters they are.
        chosen: those that count.
        known: all that there were, where all that require a gradient count; else None.

    Raises:
        ModelError: there are others now.
    """
    now = {id(parameter) for parameter in model.parameters()}
    names = [name for name, parameter in chosen.items() if id(parameter) not in now]
    if known is not None:
        before = {id(parameter) for parameter in known}
        names += [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in before]
    names = list(dict.fromkeys(names))
    if names:
        raise ModelError(
            f"The model has other parameters than when its kernel was made: {', '.join(map(repr, names[:3]))} replaced "
            "or added. They would be left out: make a new GradientKernel."
        )


def _refuse_complex(chosen: dict[str, nn.Parameter]) -> None:
    names = [name for name, parameter in chosen.items() if parameter.is_complex()]
    if names:
        raise UncapturedParameterError(
            f"{len(names)} of {len(chosen)} chosen parameters are complex: {', '.join(map(repr, names[:3]))}. The "
            "kernel would leave them out. Store them as pairs of real numbers (torch.view_as_complex in the forward "
            "pass), or leave them out by name: parameters=lambda name: ..."
        )
