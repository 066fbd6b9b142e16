"""A loss that makes samples known to be alike similar in the network's eyes, while it is trained.

    loss = weight (1 - mean of k(x, y) over pairs that are alike)

and, where it is asked for, dissimilar_weight times the mean of max(0, k(x, y) - margin) over pairs that are apart.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinsight.batches import Batch, as_batch, checked_count, leaves, make_batch
from kinsight.captures.running import call_model, untouched
from kinsight.differentiation.unit_gradients import warn_undefined
from kinsight.errors import (
    InputError,
    NonFiniteError,
    PrecisionWarning,
    SampleTypeError,
    SecondDerivativeError,
    SlowAttentionWarning,
    UnknownNameError,
)
from kinsight.kernel import GradientKernel
from kinsight.normalization import Normalization, check_normalization
from kinsight.outputs import OutputFunction, evaluate
from kinsight.training.by_groups import has_room_for
from kinsight.training.enforcing import enforce
from kinsight.training.pairs import Augmented, Pairing, PairSource, grouped, listed, paired, positions
from kinsight.training.parts import Cost, Enforced
from kinsight.training.running import as_used, made_for, unwrapped
from kinsight.training.second_derivatives import Attention, refuse_constant

Route = Literal["auto", "pairs", "groups"]
"""How it is computed: all pairs by one-sided Gram blocks, or sums of groups."""

FEW_GROUPS, FEW_SAMPLES = 4, 128
"""Samples a group, on average, from which sums over groups are taken; samples up to which pairs are as fast."""

HALF = (torch.float16, torch.bfloat16)
"""Precisions that second derivatives are mostly lost in."""

GRAPH_SHARE: dict[Normalization, int] = {"flat": 4, "whitened": 8}
"""A graph that is differentiated again, and what is made of it, hold so many times as much as gradients without one."""


@dataclass(frozen=True)
class PairSimilarity:
    """What the loss saw of the last batch.

    Args:
        step: how many batches were seen before with gradients on.
        weight: of the loss.
        similarity: mean over pairs that are alike; nan where there are none.
        excess: mean of max(0, similarity - margin) over pairs that are apart; nan where they were not looked at.
        n_alike, n_apart: pairs.
        n_undefined: samples left out, since their gradient is zero.
    """

    step: int
    weight: float
    similarity: float
    excess: float
    n_alike: int
    n_apart: int
    n_undefined: int


class SimilarityLoss:
    """weight (1 - mean similarity) of pairs known to be alike, to be added to a loss.

    The pass is the loss's own: the network as it will be used (every module in eval mode, so that batch normalization
    uses its running statistics and dropout is off; these are not touched), in the precision of its parameters, outside
    of autocast, with attention by matrix products. Its gradient is computed when it is called, part by part within
    `max_bytes`, and given to the parameters by backward(): any number of samples, gradient accumulation, gradient
    scaling and other losses beside it work as always. A compiled model is run as it was before it was compiled. Hooks
    on parameters see its gradient when backward() hands it on, and not before. With DistributedDataParallel, each rank
    makes pairs of its own samples, and gradients are averaged in ONE backward pass of the sum with a loss of what the
    wrapped model returned; passed back alone, they are each rank's own.

    It is no `torch.nn.Module`: it does not own the model, and may be an attribute of it.

    Args:
        model: the network that is being trained, wrapped or not.
        output: what is differentiated, as in `GradientKernel`. Each output is differentiated twice: one of them, as
            'one_vs_rest', takes a fraction of the time of ten logits.
        pairs: 'class': samples of the same target, but for negative ones, which are no class; `Augmented(transform)`:
            views of one input; a callable from a batch to groups [n] or pairs [k 2].
        weight: of the loss; or from the step to it, such as `ramp(0.1, 1000)`.
        dissimilar_weight: of pairs that are apart, relative to those that are alike; 0 does not look at them.
        margin: similarity up to which pairs that are apart cost nothing.
        normalization: which similarity: 'flat', or 'whitened', which for one output are the same.
        parameters: which of them gradients are compared over, as in `GradientKernel`. All that require a gradient are
            trained.
        route: 'pairs', 'groups' (no pairs that are apart), or 'auto'.
        batch_size: samples in one pass; chosen from `max_bytes` where left out.
        max_bytes: bound on the memory that gradients and their graph are held in.
        max_outputs: number of outputs above which differentiating each is refused.

    Raises:
        InputError: a weight or margin is not finite; the model is in half precision.
        UnknownNameError: an unknown name of pairs, route, output or normalization.

    Example:
        >>> import torch, kinsight
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> loss = kinsight.SimilarityLoss(model, weight=0.5)
        >>> x, y = torch.randn(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
        >>> value = torch.nn.functional.cross_entropy(model(x), y) + loss(x, y)
        >>> value.backward()
        >>> loss.last.n_alike
        6

    Reference:
        Charpiat, Girard, Felardos, Tarabalka (2019), "Input Similarity from the Neural Network Perspective". Their
        released code adds the similarity itself to what is minimized; here it is 1 minus the similarity.
    """

    def __init__(
        self,
        model: nn.Module,
        output: str | OutputFunction | Callable[[Any], Tensor] = "logits",
        *,
        pairs: PairSource = "class",
        weight: float | Callable[[int], float] = 0.1,
        dissimilar_weight: float = 0.0,
        margin: float = 0.0,
        normalization: Normalization = "flat",
        parameters: Callable[[str], bool] | Iterable[str] | None = None,
        route: Route = "auto",
        batch_size: int | None = None,
        max_bytes: int = 2**30,
        max_outputs: int = 32,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise SampleTypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module.")
        for name, known, value in (
            ("route", ("auto", "pairs", "groups"), route),
            ("pairs", ("class",), pairs if isinstance(pairs, str) else "class"),
        ):  # fmt: skip
            if value not in known:
                raise UnknownNameError(f"{name} {value!r} is unknown: use {' or '.join(map(repr, known))}.")
        check_normalization(normalization)
        if not isinstance(pairs, str | Augmented) and not callable(pairs):
            raise SampleTypeError(
                f"pairs is a {type(pairs).__name__}: use 'class', Augmented(transform) or a callable."
            )
        if not callable(weight):
            _check_number("weight", weight, least=0.0)
        dissimilar_weight = _check_number("dissimilar_weight", dissimilar_weight, least=0.0)
        if (margin := _check_number("margin", margin, least=-1.0)) >= 1:
            raise InputError(f"margin is {margin}: no similarity is above 1, so that no pair would cost anything.")
        max_bytes = checked_count("max_bytes", max_bytes)
        if route == "groups" and dissimilar_weight:
            raise InputError(
                "route='groups' never looks at single pairs, and those that are apart cost something each."
            )
        if isinstance(parameters, Iterable) and not isinstance(parameters, str):
            parameters = list(parameters)  # a generator is empty the second time
        self._make_kernel = partial(
            GradientKernel, unwrapped(model), output, parameters=parameters,
            batch_size=batch_size, max_outputs=max_outputs, max_bytes=max(1, max_bytes // GRAPH_SHARE[normalization]),
        )  # fmt: skip
        self._renew_kernel()
        self.pairs, self.weight = pairs, weight
        self.dissimilar_weight, self.margin = dissimilar_weight, margin
        self.normalization: Normalization = normalization
        self.route: Route = route
        self.step = 0
        self.last: PairSimilarity | None = None
        self._has_warned = False

    def __call__(
        self, inputs: Any, targets: Any = None, *, groups: Any = None, pairs: Any = None, dissimilar: Any = None
    ) -> Tensor:
        """The loss of one batch, a number with a gradient; 0 where there is no pair.

        Args:
            inputs: what the model takes: a tensor, a tuple or a dict with samples on axis 0, or a `Batch`.
            targets: [n], where pairs are made of classes or the output needs them.
            groups: what is alike in this batch, [n]; negative numbers belong to no group.
            pairs: pairs of positions that are alike in this batch, [k 2].
            dissimilar: pairs of positions that are apart, [l 2]; those of different groups where left out.

        Raises:
            TargetError, ShapeError, InputError: targets, groups or pairs make no sense for this batch, or inputs
                require a gradient, which they would not get.
            NonFiniteError: nan or inf in outputs or gradients, with the samples' positions.
            SecondDerivativeError: a part of the model cannot be differentiated twice.
        """
        if torch.compiler.is_compiling():  # a step that is compiled is compiled around it
            ask: Callable[..., Tensor] = torch.compiler.disable(self._of_batch)
            return ask(inputs, targets, groups, pairs, dissimilar)
        return self._of_batch(inputs, targets, groups, pairs, dissimilar)

    def _of_batch(self, inputs: Any, targets: Any, groups: Any, pairs: Any, dissimilar: Any) -> Tensor:
        if isinstance(inputs, Batch) and targets is not None:
            raise InputError("A Batch has targets of its own: pass it alone, or inputs and targets.")
        batch = as_batch(inputs) if targets is None else make_batch(inputs, targets)
        _refuse_followed(batch)
        batch, pairing = self._paired(batch, groups, pairs, dissimilar)
        _refuse_followed(batch)  # views, by parameters of their own
        if self._made_for != made_for(self.kernel.model):
            self._renew_kernel()
        model, weight = self.kernel.model, self._weight_now()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        moved = trained if torch.is_grad_enabled() and weight else []
        with torch.inference_mode(False), as_used(model), sdpa_kernel(SDPBackend.MATH):  # fused: no second derivative
            found = enforce(
                self.kernel, batch.to(self.kernel.device), pairing, Cost(self.dissimilar_weight, self.margin),
                self.normalization, moved, by_groups=self._is_by_groups(batch, pairing),
            )  # fmt: skip
            self._look_once(batch)
        _check_gradients(moved, found, model)
        self._warn(batch, found)
        self.last = PairSimilarity(
            self.step, weight, found.similarity, found.excess, found.n_alike, found.n_apart, len(found.undefined)
        )
        value = torch.tensor(weight * _cost(found, self.dissimilar_weight), dtype=torch.float64).to(
            next(iter(self.kernel.parameters.values())).detach()
        )
        if not torch.is_grad_enabled() or not trained:
            return value
        self.step += 1
        slopes = {p: weight * each for p, each in zip(trained, found.gradients, strict=False) if each is not None}
        slopes = slopes or self._zeros()
        anchor = torch.zeros((), requires_grad=True)  # where nothing moves, there is a gradient to ask for all the same
        ready: Tensor = _Ready.apply(value, anchor, *slopes.values(), *slopes)  # type: ignore[no-untyped-call]
        return ready

    def _paired(self, batch: Batch, groups: Any, pairs: Any, dissimilar: Any) -> tuple[Batch, Pairing]:
        if groups is not None and pairs is not None:
            raise InputError("Pass groups= or pairs=, not both: either says what is alike.")
        if isinstance(self.pairs, Augmented) and not (groups is pairs is dissimilar is None):
            raise InputError("This loss makes views of each input, which are its pairs: pass inputs alone.")
        if dissimilar is not None and not self.dissimilar_weight:
            raise InputError("dissimilar= is looked at where the loss was made with a dissimilar_weight above 0.")
        if groups is not None:
            pairing = grouped(groups, len(batch))
        elif pairs is not None:
            pairing = listed(pairs, len(batch))
        else:
            batch, pairing = paired(self.pairs, batch)
        if dissimilar is not None:
            pairing = replace(pairing, apart=positions(dissimilar, len(batch), "dissimilar pairs"))
        return batch, pairing

    def _renew_kernel(self) -> None:
        """A kernel of the model as it is: layers may have been replaced, frozen or thawed."""
        self.kernel = self._make_kernel()
        _refuse_half(self.kernel)
        self._made_for = made_for(self.kernel.model)
        self._is_known = False

    def _weight_now(self) -> float:
        return _check_number("weight", self.weight(self.step) if callable(self.weight) else self.weight, least=0.0)

    def _look_once(self, batch: Batch) -> None:
        """Of a model that is new: refuse what is silently wrong the second time, and say what is slow or inexact."""
        if self._is_known or len(batch) < 2:  # of one sample, an axis may be squeezed away
            return
        kernel, few = self.kernel, batch[:2].to(self.kernel.device)
        with untouched(kernel.model, kernel.parameters), Attention() as attention:
            returned = call_model(kernel.model, few.inputs)
            refuse_constant(evaluate(kernel.output, returned, few.targets, 2), list(kernel.parameters.values()))
        self._is_known = True
        if attention.is_used:
            warnings.warn(
                "The model computes attention, which SimilarityLoss does by matrix products: fused kernels have no "
                "second derivative. Its pass takes memory for all pairs of positions; the model's own passes stay as "
                "they are.",
                SlowAttentionWarning,
                stacklevel=4,
            )
        if kernel.precision in HALF:
            warnings.warn(
                f"The model computes in {str(kernel.precision).removeprefix('torch.')} by itself (autocast in its "
                "forward?), though its parameters are not: similarities, and above all the gradient of this loss, are "
                "as inexact. Keep autocast around the model's calls, outside of it.",
                PrecisionWarning,
                stacklevel=4,
            )

    def _zeros(self) -> dict[nn.Parameter, Tensor]:
        """The gradient of a batch that nothing is asked of: optimizers and gradient scalers take it as any other."""
        routes, parameters = self.kernel.routes, self.kernel.parameters
        unused = {name for name, route in routes.items() if route.startswith("unused")}
        return {p: torch.zeros_like(p) for name, p in parameters.items() if p.requires_grad and name not in unused}

    def _warn(self, batch: Batch, found: Enforced) -> None:
        """Say once that samples are left out."""
        if found.undefined and not self._has_warned:
            self._has_warned = True
            warn_undefined([batch.ids[place] for place in found.undefined])

    def _is_by_groups(self, batch: Batch, pairing: Pairing) -> bool:
        """Whether sums over groups are taken."""
        if self.route != "auto":
            if self.route == "groups" and not pairing.is_grouped:
                raise InputError("route='groups' takes groups, and pairs are listed: use route='auto'.")
            return self.route == "groups"
        if not pairing.is_grouped or self.dissimilar_weight:
            return False
        assert pairing.groups is not None
        sizes = torch.bincount(pairing.groups[pairing.groups >= 0])
        n_groups, n = int((sizes > 0).sum()), int(sizes.sum())
        return n > FEW_SAMPLES and n >= FEW_GROUPS * n_groups and has_room_for(self.kernel, batch, n_groups)


class _Ready(torch.autograd.Function):
    """A number whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, *slopes_and_parameters: Tensor) -> Tensor:
        """Slopes over the parameters that move it, then these."""
        ctx.save_for_backward(*slopes_and_parameters[: len(slopes_and_parameters) // 2])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise SecondDerivativeError(
                "backward(create_graph=True) asks for derivatives of this loss's gradient, which is known as numbers "
                "alone. Take the other losses' gradients with their graph, and this one's without."
            )
        slopes = ctx.saved_tensors
        return (None, None, *(None,) * len(slopes), *(cotangent.to(each.device) * each for each in slopes))


@dataclass(frozen=True)
class ramp:  # noqa: N801 (read as a function: weight=ramp(0.1, 1000))
    """A weight that grows evenly from `start` to `weight` in so many steps, and stays.

    Example:
        >>> weight = ramp(0.5, 10)
        >>> weight(0), weight(5), weight(100)
        (0.0, 0.25, 0.5)
    """

    weight: float
    n_steps: int
    start: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        checked_count("n_steps", self.n_steps)
        for name in ("weight", "start"):
            _check_number(name, getattr(self, name), least=0.0)

    def __call__(self, step: int) -> float:
        """The weight of a step, counted from 0."""
        return self.start + (self.weight - self.start) * min(1.0, step / self.n_steps)


def _cost(found: Enforced, dissimilar_weight: float) -> float:
    """What all pairs cost; those that there are none of, nothing."""
    alike = 0.0 if math.isnan(found.similarity) else 1 - found.similarity
    return alike + (0.0 if math.isnan(found.excess) else dissimilar_weight * found.excess)


def _refuse_half(kernel: GradientKernel) -> None:
    halves = [name for name, each in kernel.parameters.items() if each.dtype in HALF]
    if halves:
        raise InputError(
            f"{len(halves)} of {len(kernel.parameters)} parameters are in half precision: {halves[:3]}. The loss is "
            "trained through second derivatives, which are mostly rounding there. Keep parameters in float32, and use "
            "torch.autocast for the model's own pass."
        )


def _refuse_followed(batch: Batch) -> None:
    for name, leaf in leaves(batch.inputs):
        if torch.is_grad_enabled() and isinstance(leaf, Tensor) and leaf.requires_grad:
            raise InputError(
                f"{name} requires a gradient, and the loss gives one to the parameters of its own model alone. Detach "
                "it where that is meant; else pass the whole model, with what comes before, and its inputs."
            )


def _check_gradients(moved: list[nn.Parameter], found: Enforced, model: nn.Module) -> None:
    """Raise where the gradient is nan or inf, though all that it is made of is finite."""
    bad = {p for p, each in zip(moved, found.gradients, strict=False) if each is not None and not each.isfinite().all()}
    if bad:
        names = [name for name, parameter in model.named_parameters() if parameter in bad]
        raise NonFiniteError(
            f"The gradient of the loss over {len(names)} parameters is nan or inf: {names[:3]}, though gradients of "
            "samples are finite. Something in the model has a derivative that is not differentiable there, such as a "
            "square root or a norm at 0: add a small number under it."
        )


def _check_number(name: str, given: Any, *, least: float) -> float:
    """The number, if it is one, such as a tensor of one element, finite and not too small."""
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError):
        value = None
    if value is None or isinstance(given, str):
        raise InputError(f"{name} is {given!r}: it is a number.")
    if not math.isfinite(value) or value < least:
        raise InputError(f"{name} is {value}: it is a finite number of at least {least:g}.")
    return value
