"""What is differentiated: the functions from what a model returns to the c outputs of each sample.

No label enters any of them except `loss`, which is here for comparison. Each is a frozen dataclass that is called on
what the model returned and gives [n c] (a model that returns [n] has one output, [n 1]).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kinsight.errors import KinsightError, OutputCountError, SampleTypeError, ShapeError, TargetError, UnknownNameError


class OutputFunction(ABC):
    """From what the model returned, and targets where there are any, to the outputs [n] or [n c]."""

    needs_targets = False
    is_estimate = False
    is_logits = False
    """Whether their softmax is what the network says of classes."""
    is_values = False
    """Whether they are what the network says of values, where they are as many as the numbers of a target."""

    @abstractmethod
    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        """Outputs of a batch, [n] or [n c]."""

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        return type(self).__name__


@dataclass(frozen=True)
class logits(OutputFunction):  # noqa: N801 (read as a function: output=logits())
    """What the model returns: class scores before the softmax, or the values of a regression. [n] or [n c]."""

    is_logits = is_values = True

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        return unwrap(returned)


@dataclass(frozen=True)
class centered_logits(OutputFunction):  # noqa: N801
    """z_c - mean_c z_c. Their sum is 0, so K(x, x) has rank c - 1. [n c]."""

    is_logits = True

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        scores = class_scores(returned, self.name)
        return scores - scores.mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class log_probs(OutputFunction):  # noqa: N801
    """log softmax(z). sum_c p_c grad log p_c = 0, so K(x, x) has rank c - 1. [n c]."""

    is_logits = True

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        return _log_softmax(class_scores(returned, self.name))


@dataclass(frozen=True)
class fisher(OutputFunction):  # noqa: N801
    """2 sqrt(p): the flat kernel is the Fisher metric, sum_c p_c grad log p_c (x) grad log p_c. [n c]."""

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        return 2 * torch.exp(0.5 * _log_softmax(class_scores(returned, self.name)))


@dataclass(frozen=True)
class one_vs_rest(OutputFunction):  # noqa: N801
    """z_R - mean_{c != R} z_c: one output whatever the number of classes. [n].

    Args:
        class_index: R; the class predicted for each sample where left out.
    """

    class_index: int | None = None

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        scores = class_scores(returned, self.name)
        chosen = _one_hot_of(scores, self.class_index, rank=0)
        rest = (scores.sum(dim=1) - (scores * chosen).sum(dim=1)) / (scores.shape[1] - 1)
        return (scores * chosen).sum(dim=1) - rest


@dataclass(frozen=True)
class adversary_pair(OutputFunction):  # noqa: N801
    """z_R - z_A: what would have to change for A to be predicted instead of R. [n].

    Args:
        class_index: R; the predicted class where left out.
        adversary: A; the runner-up where left out.
    """

    class_index: int | None = None
    adversary: int | None = None

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        scores = class_scores(returned, self.name)
        first = _one_hot_of(scores, self.class_index, rank=0)
        second = _one_hot_of(scores, self.adversary, rank=1)
        return (scores * (first - second)).sum(dim=1)


@dataclass(frozen=True)
class probes(OutputFunction):  # noqa: N801
    """k random combinations of the outputs, the same for every sample: a cheap stand-in for many outputs. [n k].

    With v of independent signs, E[(v^T J(x)) . (v^T J(y))] = Tr K(x, y). Scaled by 1/sqrt(c), so that the kernel
    of the probes estimates the kernel of the logits; `GradientKernel.estimate` gives its standard error.

    Args:
        k: number of probes.
        seed: of the signs.
    """

    k: int = 16
    seed: int = 0
    is_estimate = True

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        scores = class_scores(returned, self.name)
        signs = probe_signs(scores.shape[1], self.k, self.seed).to(scores)
        return scores @ signs.T / math.sqrt(scores.shape[1])


@dataclass(frozen=True)
class loss(OutputFunction):  # noqa: N801
    """The loss of each sample against its target. Not label-free: a comparison, not the network's own view. [n].

    Args:
        kind: 'cross_entropy' (integer targets), 'mse' (targets of the outputs' shape, mean over outputs), or a callable
            (what the model returned, targets) -> [n].
    """

    kind: Literal["cross_entropy", "mse"] | Callable[[Any, Tensor], Tensor] = "cross_entropy"
    needs_targets = True

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        if targets is None:
            raise TargetError(
                "output=loss(...) compares with targets, and this batch has none. Pass Batch(inputs, targets=...), or "
                "Samples with targets."
            )
        if callable(self.kind):
            return self.kind(returned, targets)
        values = unwrap(returned)
        if self.kind == "cross_entropy":
            if targets.is_floating_point() or targets.dim() != 1:
                raise TargetError(
                    f"loss('cross_entropy') needs class numbers [n]; these targets are "
                    f"{str(targets.dtype).removeprefix('torch.')} [{_shape(targets)}], and would be cut to whole "
                    "numbers. For values use loss('mse')."
                )
            log_p = _log_softmax(class_scores(returned, self.name))
            return F.nll_loss(log_p, targets.long(), reduction="none")
        if self.kind != "mse":
            raise UnknownNameError(
                f"loss kind {self.kind!r} is unknown: use 'cross_entropy', 'mse', or a callable (returned, targets)."
            )
        if values.shape != targets.shape:
            raise ShapeError(
                f"loss('mse'): the model returned [{_shape(values)}] and the targets are [{_shape(targets)}]. They "
                "would broadcast to something else than a loss a sample."
            )
        return ((values - targets.to(values)) ** 2).reshape(len(values), -1).mean(dim=1)


@dataclass(frozen=True)
class pooled(OutputFunction):  # noqa: N801
    """Dense outputs [n c *positions] (segmentation, displacement fields), pooled over positions. [n c].

    Args:
        over: 'mean', 'sum', 'center' (the middle position), or a callable [n c *positions] -> [n c].
        of: output function or callable that gives the dense outputs; the model's own where left out.
        channel_axis: axis that is kept besides the samples'.
    """

    over: Literal["mean", "sum", "center"] | Callable[[Tensor], Tensor] = "mean"
    of: Callable[[Any], Tensor] | None = None
    channel_axis: int = 1
    is_values = True

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        dense = unwrap(returned) if self.of is None else self.of(returned)
        if dense.dim() < 3:
            raise ShapeError(
                f"pooled(...) needs outputs [n c *positions]; the model returned [{_shape(dense)}], which has no "
                "positions. Use output='logits'."
            )
        dense = dense.movedim(self.channel_axis, 1)
        if callable(self.over):
            return self.over(dense)
        flat = dense.flatten(2)
        if self.over == "mean":
            return flat.mean(dim=2)
        if self.over == "sum":
            return flat.sum(dim=2)
        if self.over == "center":
            for size in dense.shape[2:]:
                dense = dense[:, :, size // 2]
            return dense
        raise UnknownNameError(f"pooled over {self.over!r} is unknown: use 'mean', 'sum', 'center', or a callable.")


@dataclass(frozen=True)
class custom(OutputFunction):  # noqa: N801
    """Any callable on what the model returns, taken for values where it is compared with targets. [n] or [n c]."""

    function: Callable[[Any], Tensor]
    is_values = True

    def __call__(self, returned: Any, targets: Tensor | None) -> Tensor:
        return self.function(returned)

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", "custom")


OUTPUTS: dict[str, type[OutputFunction]] = {
    function.__name__: function
    for function in (logits, centered_logits, log_probs, fisher, one_vs_rest, adversary_pair, probes, loss, pooled)
}


def resolve_output(output: str | OutputFunction | Callable[[Any], Tensor]) -> OutputFunction:
    """The output function of a name, a callable, or itself.

    Raises:
        UnknownNameError: no output function has this name.
        SampleTypeError: neither a name nor a callable.
    """
    if isinstance(output, OutputFunction):
        return output
    if isinstance(output, type) and issubclass(output, OutputFunction):
        return output()
    if isinstance(output, str):
        if output not in OUTPUTS:
            raise UnknownNameError(
                f"output={output!r} is unknown. Known: {', '.join(OUTPUTS)}; or pass any callable from what the model "
                "returns to [n] or [n c]."
            )
        return OUTPUTS[output]()
    if callable(output):
        return custom(cast("Callable[[Any], Tensor]", output))
    raise SampleTypeError(f"output is a {type(output).__name__}: pass a name ({', '.join(OUTPUTS)}) or a callable.")


def kind_of_output(name: str) -> type[OutputFunction]:
    """The class of an output function, by the name that an index keeps; for those of others the common one."""
    found = custom if name == custom.__name__ else OUTPUTS.get(name)
    return OutputFunction if found is None else found


def evaluate(output: OutputFunction, returned: Any, targets: Tensor | None, n: int) -> Tensor:
    """The outputs of a batch as [n c], checked.

    Raises:
        ShapeError: not [n] or [n c] for n samples.
    """
    try:
        values = output(returned, targets)
    except (KinsightError, NotImplementedError):  # the latter: no forward-mode derivative
        raise
    except (IndexError, KeyError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise SampleTypeError(
            f"output {output.name!r} raised {type(error).__name__} on what the model returned, a "
            f"{type(returned).__name__}: {error}."
        ) from error
    if not isinstance(values, Tensor):
        raise SampleTypeError(
            f"output {output.name!r} gave a {type(values).__name__}, not a tensor. It must give [n] or [n c]."
        )
    if values.dim() not in (1, 2):
        raise ShapeError(
            f"output {output.name!r} gave [{_shape(values)}] for {n} samples; it must be [n] or [n c]. For dense "
            "outputs say how positions are pooled: output=pooled('mean'), pooled('sum'), pooled('center'), or a "
            "callable."
        )
    if values.shape[0] != n:
        raise ShapeError(
            f"output {output.name!r} gave [{_shape(values)}] for a batch of {n} samples: axis 0 must be the samples, "
            "one row each."
        )
    if values.dim() == 2 and values.shape[1] == 0:
        raise ShapeError(f"output {output.name!r} gave [{_shape(values)}]: there is no output to differentiate.")
    if not values.is_floating_point():
        raise ShapeError(
            f"output {output.name!r} gave {values.dtype}: only real floating-point outputs have gradients."
        )
    return values.reshape(n, -1) if values.dim() == 1 else values


def check_output_count(outputs: Tensor, *, limit: int, n_parameters: int, n: int) -> None:
    """Refuse to differentiate more than `limit` outputs one by one.

    Raises:
        OutputCountError: with the count, the bytes and the passes it would take.
    """
    c = outputs.shape[1]
    if c > limit:
        size = c * n_parameters * outputs.element_size()
        raise OutputCountError(
            f"The output has c = {c} entries a sample (limit {limit}): {c} backward passes a batch, up to "
            f"{bytes_in_words(size)} of gradients a sample ({bytes_in_words(size * n)} for this batch of {n}), and "
            f"[{c} {c}] blocks. Cheaper: output=probes(k=16, seed=0) (16 passes, with a standard error) or "
            f"output='one_vs_rest' (1 pass). Or pass max_outputs={c}."
        )


def probe_signs(c: int, k: int, seed: int) -> Tensor:
    """k rows of c random signs, the same on every device. [k c]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (k, c), generator=generator).double() * 2 - 1


def unwrap(returned: Any) -> Tensor:
    """The tensor in what a model returned: itself, or the field `logits`.

    Raises:
        SampleTypeError: neither; the message lists the fields there are.
    """
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping) and isinstance(returned.get("logits"), Tensor):
        return cast("Tensor", returned["logits"])
    if isinstance(getattr(returned, "logits", None), Tensor):
        return cast("Tensor", returned.logits)
    if isinstance(returned, Mapping):
        fields = f" with fields {', '.join(map(repr, returned))}"
    elif isinstance(returned, tuple | list):
        fields = f" of {len(returned)}: {', '.join(type(part).__name__ for part in returned)}"
    else:
        fields = ""
    raise SampleTypeError(
        f"The model returned a {type(returned).__name__}{fields}, and no 'logits'. Say which part is meant: "
        "output=lambda returned: returned[...]."
    )


def class_scores(returned: Any, name: str) -> Tensor:
    """Scores [n c] with c >= 2, checked."""
    scores = unwrap(returned)
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ShapeError(
            f"output {name!r} needs class scores [n c] with c >= 2; the model returned [{_shape(scores)}]. For dense "
            "outputs pool first: output=pooled(...)."
        )
    return scores


def _log_softmax(scores: Tensor) -> Tensor:
    """log softmax(z), with gradients that are accurate however sure the network is. [n c].

    For a predicted class R of probability near 1, grad log p_R is tiny, and `F.log_softmax` computes it as
    (1 - p_R) grad z_R - ...: rounding is all that is left. Here log p_R = -log(1 + sum_{c != R} exp(z_c - z_R)), where
    nothing cancels, and log p_c = log p_R + z_c - z_R for the rest.
    """
    predicted = _one_hot_of(scores, None, rank=0)
    top = scores.masked_fill(predicted == 0, 0.0).sum(dim=1, keepdim=True)
    rest = scores.masked_fill(predicted > 0, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_p_top = -F.softplus(rest - top)
    return torch.where(predicted > 0, log_p_top, log_p_top + scores - top)


def _one_hot_of(scores: Tensor, index: int | None, *, rank: int) -> Tensor:
    """One-hot rows of a given class, or of each row's class of that rank, without data-dependent shapes."""
    c = scores.shape[1]
    if index is None:
        order = scores.detach().argsort(dim=1, descending=True, stable=True)
        return (torch.arange(c, device=scores.device) == order[:, rank : rank + 1]).to(scores)
    if not -c <= index < c:
        raise ShapeError(f"class index {index} is out of range: the model gives {c} class scores.")
    return (torch.arange(c, device=scores.device) == index % c).to(scores).expand_as(scores)


def _shape(tensor: Tensor) -> str:
    return " ".join(map(str, tensor.shape))


def bytes_in_words(size: int) -> str:
    """A number of bytes in the unit that it is some of.

    Example:
        >>> bytes_in_words(1_500_000)
        '1.5 MB'
    """
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"
