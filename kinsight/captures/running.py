"""Run a model on a batch, with gradients, and leave it exactly as it was."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kinsight.errors import MixedSamplesError, ModelCallError, ModelError, NonFiniteError, StochasticModelError
from kinsight.gradients.contractions import full_precision
from kinsight.samples import Id, Inputs


@contextlib.contextmanager
def untouched(model: nn.Module, parameters: Mapping[str, Tensor], *, is_watched: bool = False) -> Iterator[None]:
    """Run the model with gradients on for the chosen parameters; leave it, and the random state, as they were.

    Args:
        model: any module.
        parameters: those to differentiate with respect to, by name.
        is_watched: also compare the parameters' values before and after: writes through `.data` leave no other trace.

    Raises:
        StochasticModelError: the forward pass drew random numbers.
        MixedSamplesError: a batch normalization is in training mode.
    """
    refuse_training_mode(model)
    refuse_rewritten_tables(model)
    everything = dict(model.named_parameters())
    versions = {name: parameter._version for name, parameter in everything.items()}
    before = {name: _fingerprint(parameter) for name, parameter in everything.items() if is_watched}
    flags = [(parameter, parameter.requires_grad) for parameter in parameters.values()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    attributes = _attributes(model)
    states = _random_states(model)
    mixed: MixedSamplesError | None = None
    try:
        for parameter, _ in flags:
            if not parameter.requires_grad:
                parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad(), _plain_kernels(model), without_hooks(model):
            yield
    except MixedSamplesError as error:  # two runs that differ: batch statistics, or noise
        mixed = error
    finally:
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        _restore_attributes(attributes)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        drew = _restore_random_states(states)
    if drew:
        raise StochasticModelError(
            "The forward pass drew random numbers, so the output for a sample is a different function at every call "
            "and has no gradient of its own. Turn the noise off (model.eval() does for dropout)."
        )
    rewritten = [
        name
        for name, parameter in everything.items()
        if parameter._version != versions[name] or (is_watched and _fingerprint(parameter) != before[name])
    ]
    if rewritten:
        raise ModelError(
            f"The forward pass wrote into {len(rewritten)} of the model's parameters: {rewritten[:3]}. Their "
            "values before are lost, and every gradient belongs to other weights. Load the model again, and take the "
            "writing out."
        )
    if mixed is not None:
        raise mixed


@contextlib.contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Hooks on the model's parameters taken off for a while: they change gradients on their way to an optimizer."""
    hooks = [(parameter, parameter._backward_hooks) for parameter in model.parameters() if parameter._backward_hooks]
    try:
        for parameter, _ in hooks:
            parameter._backward_hooks = None
        yield
    finally:
        for parameter, own in hooks:
            parameter._backward_hooks = own


def _fingerprint(parameter: Tensor) -> tuple[int, ...]:
    """Where a parameter lies, and sums of its bits as integers: all, every second and third, the first half."""
    values = parameter.detach()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(values.element_size())
    if values.layout != torch.strided or integers is None or not values.numel():
        return (0,)
    bits = values.reshape(-1).view(integers)
    parts = (bits, bits[::2], bits[::3], bits[: len(bits) // 2])
    return (values.data_ptr(), *(int(part.sum()) for part in parts))


Container = dict[Any, Any] | list[Any] | set[Any] | deque[Any]


@dataclass(frozen=True, eq=False)
class _Held:
    """A tensor that a module holds, neither parameter nor buffer, as it was: a cache of keys, a table of prototypes."""

    tensor: Tensor
    version: int
    requires_grad: bool
    values: Tensor

    @staticmethod
    def of(tensor: Tensor) -> _Held | None:
        """The tensor as it is; None where that cannot be told or would take too much memory."""
        is_own = tensor.layout == torch.strided and not tensor.is_inference() and not tensor.is_meta
        if not is_own or tensor.nbytes > MOST_BYTES or tensor.nbytes > tensor.untyped_storage().nbytes():
            return None
        return _Held(tensor, tensor._version, tensor.requires_grad, tensor.detach().clone())

    def restore(self) -> None:
        if self.tensor._version == self.version:
            return
        if self.tensor.grad_fn is not None or self.tensor.requires_grad != self.requires_grad:
            self.tensor.detach_().requires_grad_(self.requires_grad)
        with torch.no_grad():
            self.tensor.copy_(self.values)


def _attributes(model: nn.Module) -> tuple[list[tuple[Container, Container]], list[_Held]]:
    """What every module holds, with what its containers and plain objects hold: what a forward pass could change."""
    held: list[tuple[Container, Container]] = []
    tensors: list[_Held] = []
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    seen: set[int] = set()

    def look_at(value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            if id(value) not in known and id(value) not in seen:
                seen.add(id(value))
                kept = _Held.of(value)
                tensors.extend([] if kept is None else [kept])
        elif depth >= MOST_DEPTH:
            return
        elif isinstance(value, dict | list | set | deque):
            hold(value, depth + 1)
        elif isinstance(value, tuple) and len(value) <= MOST_ENTRIES:
            for part in value:
                look_at(part, depth + 1)
        elif _is_plain(value):
            hold(vars(value), depth + 1)

    def hold(container: Container, depth: int) -> None:
        if id(container) in seen or len(container) > MOST_ENTRIES:
            return
        seen.add(id(container))
        values = list(container.values() if isinstance(container, dict) else container)
        held.append((container, dict(container) if isinstance(container, dict) else values))
        for value in values:
            look_at(value, depth)

    for module in model.modules():
        hold(module.__dict__, 0)
    return held, tensors


MOST_DEPTH = 6
"""How deep in containers and objects a module's state is looked for that a forward pass might change."""

MOST_ENTRIES = 10_000
"""Entries of a container beyond which it is taken for data, and not looked at."""

MOST_BYTES = 64 * 2**20
"""Size of a tensor beyond which it is taken for data, and not copied."""


def _is_plain(value: Any) -> bool:
    """Whether it is an object of a class of the user's own, with attributes."""
    kind = type(value)
    if isinstance(value, nn.Module | type | ModuleType) or callable(value):
        return False
    if kind.__module__.partition(".")[0] in {"builtins", "torch", "typing", "enum", "numpy"}:
        return False
    try:
        return isinstance(vars(value), dict)
    except Exception:  # no attributes, or a property in their place that raises: nothing to be held
        return False


def _restore_attributes(attributes: tuple[list[tuple[Container, Container]], list[_Held]]) -> None:
    held, tensors = attributes
    for container, before in held:
        if isinstance(container, dict) and isinstance(before, dict):
            if len(container) != len(before) or any(container.get(k, held) is not v for k, v in before.items()):
                container.clear()
                container.update(before)
        elif len(container) != len(before) or any(a is not b for a, b in zip(container, before, strict=True)):
            container.clear()
            if isinstance(container, set):
                container.update(before)
            elif not isinstance(container, dict):
                container.extend(before)
    for each in tensors:
        each.restore()


def refuse_rewritten_tables(model: nn.Module) -> None:
    """Raise for embeddings whose use changes their weights, or whose gradients depend on the rest of the batch."""
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise ModelError(
                f"'{name}' is an {type(module).__name__} with max_norm={module.max_norm}: every forward pass rewrites "
                "rows of its table, so the model would not come back as it went in. Renormalize the table once, and "
                "set max_norm to None."
            )
        if getattr(module, "scale_grad_by_freq", False):
            raise ModelError(
                f"'{name}' is an {type(module).__name__} with scale_grad_by_freq: its gradient for one sample depends "
                "on how often a token occurs in the whole batch. Set it to False: the model's outputs stay the same."
            )


def refuse_training_mode(model: nn.Module) -> None:
    """Raise where a batch normalization mixes samples, or a dropout is active."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        kind, called = type(module).__name__, name or "the model"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise MixedSamplesError(
                f"'{called}' is a {kind} in training mode: one sample's output depends on the others, so it has no "
                "gradient of its own. Call model.eval() first."
            )
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0 and "ropout" in kind + "dropout":
            known = nn.modules.dropout._DropoutNd | nn.MultiheadAttention | nn.RNNBase
            if isinstance(module, known):
                raise StochasticModelError(
                    f"'{called}' is a {kind} with dropout {rate} in training mode: the output for a sample is a "
                    "different function at every call. Call model.eval() first."
                )


@contextlib.contextmanager
def _plain_kernels(model: nn.Module) -> Iterator[None]:
    """Full float32 precision, and recurrent layers as ordinary linear maps, one a step.

    TF32 convolutions, on by default, are wrong by 1e-3. Fused recurrent kernels would hide their steps; those of cuDNN
    also refuse to run backwards in eval mode.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with full_precision(keeps_autocast=True), contextlib.ExitStack() as stack:
        if recurrent:
            stack.enter_context(
                torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None, fp32_precision=None)
            )
        if recurrent and torch.cuda.is_available():
            stack.enter_context(torch.backends.cudnn.flags(enabled=False, allow_tf32=False))
        yield


def _random_states(model: nn.Module) -> dict[torch.device, Tensor]:
    devices = {parameter.device for parameter in model.parameters()}
    states = {torch.device("cpu"): torch.get_rng_state()}
    for device in devices:
        if device.type == "cuda":
            states[device] = torch.cuda.get_rng_state(device)
        elif device.type == "mps":
            states[device] = torch.mps.get_rng_state()
    return states


def _restore_random_states(states: Mapping[torch.device, Tensor]) -> bool:
    drew = False
    for device, state in states.items():
        if device.type == "cpu":
            if not torch.equal(torch.get_rng_state(), state):
                torch.set_rng_state(state)
                drew = True
        elif device.type == "cuda":
            if not torch.equal(torch.cuda.get_rng_state(device), state):
                torch.cuda.set_rng_state(state, device)
                drew = True
        elif not torch.equal(torch.mps.get_rng_state(), state):
            torch.mps.set_rng_state(state)
            drew = True
    return drew


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """What the model returns for a batch.

    Args:
        inputs: a tensor, a tuple (passed as positional arguments) or a dict (as keywords).

    Raises:
        ModelCallError: the model raised; the message repeats the inputs' shapes.
    """
    inputs = fresh(inputs)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="None of the inputs have requires_grad")  # of a checkpoint
            if isinstance(inputs, tuple):
                return model(*inputs)
            if isinstance(inputs, dict):
                return model(**inputs)
            return model(inputs)
    except UserWarning as warning:
        if "None of the inputs have requires_grad" not in str(warning):
            raise
        raise ModelError(HIDDEN_BY_CHECKPOINT) from warning
    except (
        RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, ArithmeticError
    ) as error:  # fmt: skip
        raise ModelCallError(
            f"The model {type(model).__name__} raised {type(error).__name__} on a batch of {describe_inputs(inputs)}: "
            f"{error}. A tensor is passed as it is, a tuple as positional arguments, a dict as keywords; samples lie "
            "on axis 0 of every tensor."
        ) from error


HIDDEN_BY_CHECKPOINT = (
    "A block of the model is checkpointed with use_reentrant=True, which hides its parameters from the graph. Turn "
    "gradient checkpointing off, or use use_reentrant=False."
)


def fresh(inputs: Any) -> Any:
    """A copy of the inputs: a model may write into what it is given, and the user's data must stay as they are."""
    if isinstance(inputs, Tensor):
        return inputs.detach().clone()
    if isinstance(inputs, dict):
        return {key: fresh(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(fresh(value) for value in inputs)
    return inputs


def needs_company(names: frozenset[str]) -> bool:
    """Whether one sample has to be run as two copies of itself, given the names of the graph's nodes.

    For a batch of one, torch (2.13, CPU) takes a wrong memory layout in the backward pass of batch normalization in
    eval mode when positions follow as a sequence (`flatten(2).transpose(1, 2)`): finite differences contradict it by
    100 %. With two samples the layout is unambiguous.
    """
    return "NativeBatchNorm" in names


def describe_inputs(inputs: Inputs) -> str:
    """'float32 [8 3 32 32]', and so for every part of a tuple or dict."""
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} [{' '.join(map(str, inputs.shape))}]"
    if isinstance(inputs, dict):
        return "{" + ", ".join(f"{key}: {describe_inputs(value)}" for key, value in inputs.items()) + "}"
    if isinstance(inputs, tuple):
        return "(" + ", ".join(describe_inputs(value) for value in inputs) + ")"
    return repr(inputs)


@runtime_checkable
class Named(Protocol):
    """Samples that have ids: a batch, or its gradients."""

    @property
    def ids(self) -> Sequence[Id]:
        """One a sample."""
        ...


def check_finite(values: Tensor, batch: Named, what: str) -> None:
    """Raise NonFiniteError naming the samples whose row in `values` [n ...] holds nan or inf."""
    bad = ~torch.isfinite(values.detach().reshape(values.shape[0], -1)).all(dim=1)
    if bool(bad.any()):
        named = [batch.ids[row] for row in bad.nonzero().flatten().tolist()]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        raise NonFiniteError(
            f"The {what} of {len(named)} of {len(batch.ids)} samples are nan or inf: {named[:5]}{more}. A single one "
            "spoils every sum it enters. Look at these inputs, or leave these samples out."
        )
