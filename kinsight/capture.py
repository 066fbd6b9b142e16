"""Run the model once on a batch, and record what every use of every parameter left behind.

Nothing is hooked and nothing in the model is changed: `kinsight.graph` finds the uses in the graph of an ordinary
forward pass, autograd is asked for the gradient at each use's output, and the layer's input is read from what autograd
saved. Where in those tensors a sample lies (first axis, second, folded together with time or windows) is measured, not
assumed: see `find_layouts`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from kinsight.contractions import full_precision
from kinsight.errors import MixedSamplesError, ModelCallError, ModelError, NonFiniteError, StochasticModelError
from kinsight.graph import Use, output_shape
from kinsight.samples import Batch, Inputs


@dataclass(frozen=True)
class Layout:
    """Where the samples lie in a tensor: axis `axis`, of size n k, holds them as [n k] (major) or [k n]."""

    axis: int
    n: int
    is_major: bool = True

    def split(self, tensor: Tensor, *, lead: int = 0) -> Tensor:
        """The tensor with its samples first: [*lead, ..., n k, ...] -> [n, *lead, ..., k, ...].

        Args:
            tensor: any tensor whose axes after the first `lead` are laid out so.
            lead: axes in front that the layout does not count.
        """
        axis = self.axis + lead
        size = tensor.shape[axis] // self.n
        shape = tensor.shape
        if self.is_major:
            return tensor.reshape(*shape[:axis], self.n, size, *shape[axis + 1 :]).movedim(axis, 0)
        return tensor.reshape(*shape[:axis], size, self.n, *shape[axis + 1 :]).movedim(axis + 1, 0)


@dataclass(frozen=True, eq=False)
class LayerCapture:
    """What one batch left at one use of a weight: all a layer rule sees.

    Args:
        use: the graph's node and the operand that the weight is.
        layout: where the samples lie in the node's output.
        output_gradients: gradients of c outputs at the node's output, samples first: [n c ...].
        keeps_bounds: whether rules also work out `Gradients.bound` (only the proof of coverage asks).
    """

    use: Use
    layout: Layout
    output_gradients: Tensor
    is_differentiable: bool = False
    keeps_bounds: bool = False

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.layout.n

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the node's output, as the model had it."""
        return output_shape(self.use.node)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight, as the node took it."""
        return self.use.weight_shape

    def saved(self, name: str) -> Any:
        """What autograd saved under a name; tensors in the precision gradients are computed in."""
        value = getattr(self.use.node, f"_saved_{name}")
        if isinstance(value, Tensor):
            value = value if self.is_differentiable else value.detach()
            return widen(value)
        return value

    def saved_samples(self, name: str) -> Tensor:
        """A saved tensor laid out like the node's output, samples first: [n ...]."""
        return self.layout.split(self.saved(name))


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is in half precision, itself otherwise."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


# ---------------------------------------------------------------------------------------- running the model


@contextlib.contextmanager
def untouched(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Run the model with gradients on for the chosen parameters; leave it, and the random state, as they were.

    Raises:
        StochasticModelError: the forward pass drew random numbers.
        MixedSamplesError: a batch normalization is in training mode.
    """
    refuse_training_mode(model)
    refuse_rewritten_tables(model)
    versions = [(name, parameter, parameter._version) for name, parameter in parameters.items()]
    flags = [(parameter, parameter.requires_grad) for parameter in parameters.values()]
    buffers = [(buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers()]
    states = _random_states(model)
    mixed: MixedSamplesError | None = None
    try:
        for parameter, _ in flags:
            if not parameter.requires_grad:
                parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad(), _plain_kernels(model):
            yield
    except MixedSamplesError as error:  # two runs that differ: batch statistics, or noise
        mixed = error
    finally:
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        with torch.no_grad():
            for buffer, version, value in buffers:
                if buffer._version != version:
                    buffer.copy_(value)
        drew = _restore_random_states(states)
    if drew:
        raise StochasticModelError(
            "The forward pass drew random numbers, so the output for a sample is a different function at every call "
            "and has no gradient of its own. Turn the noise off (model.eval() does for dropout)."
        )
    rewritten = [name for name, parameter, version in versions if parameter._version != version]
    if rewritten:
        raise ModelError(
            f"The forward pass wrote into {len(rewritten)} of the model's parameters: {rewritten[:3]}. Their values "
            "before are lost, and every gradient belongs to other weights. Load the model again, and take the writing out."
        )
    if mixed is not None:
        raise mixed


def refuse_rewritten_tables(model: nn.Module) -> None:
    """Raise for embeddings whose use changes their weights, or whose gradients depend on the rest of the batch."""
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise ModelError(
                f"'{name}' is an {type(module).__name__} with max_norm={module.max_norm}: every forward pass rewrites rows "
                "of its table, so the model would not come back as it went in. Renormalize the table once, and set "
                "max_norm to None."
            )
        if getattr(module, "scale_grad_by_freq", False):
            raise ModelError(
                f"'{name}' is an {type(module).__name__} with scale_grad_by_freq: its gradient for one sample depends on "
                "how often a token occurs in the whole batch. Set it to False: the model's outputs stay the same."
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
    with full_precision(), contextlib.ExitStack() as stack:
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
        raise ModelError(HIDDEN_BY_CHECKPOINT) from warning
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
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


def never_alone(model: nn.Module, batch: Batch) -> Batch:
    """A batch of one sample as two copies of it where the model normalizes by batch statistics; else the batch.

    For a batch of one, torch (2.13, CPU) takes a wrong memory layout in the backward pass of batch normalization in
    eval mode when positions follow as a sequence (`flatten(2).transpose(1, 2)`): finite differences contradict it by
    100 %. With two samples the layout is unambiguous.
    """
    if len(batch) == 1 and any(isinstance(module, nn.modules.batchnorm._NormBase) for module in model.modules()):
        return batch[[0, 0]]
    return batch


def describe_inputs(inputs: Inputs) -> str:
    """'float32 [8 3 32 32]', and so for every part of a tuple or dict."""
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} [{' '.join(map(str, inputs.shape))}]"
    if isinstance(inputs, dict):
        return "{" + ", ".join(f"{key}: {describe_inputs(value)}" for key, value in inputs.items()) + "}"
    if isinstance(inputs, tuple):
        return "(" + ", ".join(describe_inputs(value) for value in inputs) + ")"
    return repr(inputs)


def check_finite(values: Tensor, batch: Batch, what: str) -> None:
    """Raise NonFiniteError naming the samples whose row in `values` [n ...] holds nan or inf."""
    bad = ~torch.isfinite(values.detach().reshape(values.shape[0], -1)).all(dim=1)
    if bool(bad.any()):
        named = [batch.ids[row] for row in bad.nonzero().flatten().tolist()]
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        raise NonFiniteError(
            f"The {what} of {len(named)} of {len(batch)} samples are nan or inf: {named[:5]}{more}. A single one "
            "spoils every sum it enters. Look at these inputs, or leave these samples out."
        )


# ----------------------------------------------------------------------------------------- output gradients


def gradients_at(
    outputs: Tensor, nodes: Sequence[Node], cotangents: Tensor | None = None, *, is_differentiable: bool = False
) -> list[Tensor | None]:
    """Gradients of a sum of outputs at the output of each node; None where the outputs do not depend on it.

    Args:
        outputs: [n c], with their graph.
        nodes: graph nodes.
        cotangents: weights of the sum, [n c]; ones where left out.
        is_differentiable: keep a graph through the result.
    """
    if not nodes:
        return []
    edges = [GradientEdge(node, 0) for node in nodes]
    weights = torch.ones_like(outputs) if cotangents is None else cotangents.to(outputs)
    found = torch.autograd.grad(
        outputs, edges, weights, retain_graph=True, create_graph=is_differentiable, allow_unused=True
    )
    return [None if gradient is None else widen(gradient) for gradient in found]


def output_gradients(outputs: Tensor, nodes: Sequence[Node], *, is_differentiable: bool = False) -> dict[Node, Tensor]:
    """Gradients of each of c outputs at the output of each node, [c ...], one backward pass an output."""
    c = outputs.shape[1]
    unit = torch.eye(c, dtype=outputs.dtype, device=outputs.device)
    found = [
        gradients_at(outputs, nodes, unit[a].expand_as(outputs), is_differentiable=is_differentiable) for a in range(c)
    ]
    stacked: dict[Node, Tensor] = {}
    for place, node in enumerate(nodes):
        row = [gradients[place] for gradients in found]
        known = [gradient for gradient in row if gradient is not None]
        if known:
            stacked[node] = torch.stack([torch.zeros_like(known[0]) if g is None else g for g in row])
    return stacked


# -------------------------------------------------------------------------------------------------- layouts


@dataclass(eq=False)
class Layouts:
    """Where the samples lie at each use, by the use's place; None where no layout fits.

    `is_settled` is False while some gradient was zero everywhere, so that any layout would have fitted.
    """

    found: list[Layout | None] = field(default_factory=list)
    is_settled: bool = True

    def for_batch(self, n: int) -> list[Layout | None]:
        """The same layouts for a batch of n samples."""
        return [None if each is None else Layout(each.axis, n, each.is_major) for each in self.found]


LAYOUT_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""A layout is wrong by about 1 (tags differ by their own size). The honest error is a batch's rounding."""


def find_layouts(outputs: Tensor, uses: Sequence[Use], n: int) -> Layouts:
    """Measure where the samples lie in the output of every use.

    Two backward passes, one with every sample's output weighted by its own tag: at a place that belongs to
    sample s the second gradient is tag_s times the first, wherever in the tensor that place is. A use that mixes
    samples, or works on something all samples share, fits no layout.
    """
    nodes = list(dict.fromkeys(use.node for use in uses))
    generator = torch.Generator().manual_seed(0)
    across = 1 + torch.rand(outputs.shape[1], generator=generator, dtype=torch.float64)
    plain = across.to(outputs).expand(outputs.shape)
    tags = sample_tags(n, generator).to(outputs)
    one = gradients_at(outputs, nodes, plain)
    tagged = gradients_at(outputs, nodes, tags[:, None] * plain)
    layouts = Layouts()
    by_node: dict[Node, tuple[Layout | None, bool]] = {}
    for node, first, second in zip(nodes, one, tagged, strict=True):
        by_node[node] = _fit_layout(first, second, tags, output_shape(node), n, outputs.dtype)
    for use in uses:
        layout, is_settled = by_node[use.node]
        layouts.found.append(layout)
        layouts.is_settled = layouts.is_settled and is_settled
    return layouts


def sample_tags(n: int, generator: torch.Generator) -> Tensor:
    """Distinct, spaced numbers +-(1 + permuted rank / n), one a sample, in float64. [n]."""
    ranks = torch.randperm(n, generator=generator, device="cpu").double()
    signs = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    return signs * (1 + ranks / max(n, 1))


def _fit_layout(
    one: Tensor | None, tagged: Tensor | None, tags: Tensor, shape: tuple[int, ...], n: int, dtype: torch.dtype
) -> tuple[Layout | None, bool]:
    candidates = list(_candidates(shape, n))
    if one is None or tagged is None or not bool(one.any()):
        return (candidates[0] if candidates else None), False
    for layout in candidates:
        first, second = layout.split(one).reshape(n, -1), layout.split(tagged).reshape(n, -1)
        error = (second - tags.to(first)[:, None] * first).norm()
        if bool(error <= LAYOUT_TOLERANCE[dtype] * first.norm()):
            return layout, True
    return None, True


def _candidates(shape: Iterable[int], n: int) -> Iterator[Layout]:
    for axis, size in enumerate(shape):
        if size and size % n == 0:
            yield Layout(axis, n)
            if n < size and n > 1:
                yield Layout(axis, n, is_major=False)


Rule = Callable[[LayerCapture], Any]
"""A layer rule: from a capture to the gradients over its weight, or None where it does not apply."""
