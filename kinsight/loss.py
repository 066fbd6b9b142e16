"""A loss that makes samples known to be alike similar in the network's eyes, while it is trained.

    loss = weight (1 - mean of k(x, y) over pairs that are alike)

and, where it is asked for, dissimilar_weight times the mean of max(0, k(x, y) - margin) over pairs that are apart.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kinsight.batches import Batch, as_batch, make_batch
from kinsight.enforcing import Cost, Enforced, enforce
from kinsight.errors import InputError, SampleTypeError, SlowAttentionWarning, UnknownNameError
from kinsight.kernel import GradientKernel, Normalization
from kinsight.outputs import OutputFunction
from kinsight.pairs import Augmented, Pairing, PairSource, paired, pairing_of
from kinsight.second_order import Attention, as_used, twice_differentiable, unwrapped
from kinsight.unit_gradients import warn_undefined

Route = Literal["auto", "pairs", "groups"]
"""How it is computed: all pairs by one-sided Gram blocks, or sums of groups."""

FEW_GROUPS = 4
"""Samples a group, on average, from which sums over groups are taken."""

GRAPH_SHARE = 4
"""A graph that is differentiated again holds so many times as much as gradients that are not."""


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
    scaling and other losses beside it work as always. With DistributedDataParallel, each rank makes pairs of its own
    samples. A compiled model is run as it was before it was compiled.

    It is no `torch.nn.Module`: it does not own the model, and may be an attribute of it.

    Args:
        model: the network that is being trained, wrapped or not.
        output: what is differentiated, as in `GradientKernel`.
        pairs: 'class': samples of the same target; `Augmented(transform)`: views of one input; a callable from a batch
            to groups [n] or pairs [k 2].
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
            ("route", ("auto", "pairs", "groups"), route), ("normalization", ("flat", "whitened"), normalization),
            ("pairs", ("class",), pairs if isinstance(pairs, str) else "class"),
        ):  # fmt: skip
            if value not in known:
                raise UnknownNameError(f"{name} {value!r} is unknown: use {' or '.join(map(repr, known))}.")
        if not isinstance(pairs, str | Augmented) and not callable(pairs):
            raise SampleTypeError(
                f"pairs is a {type(pairs).__name__}: use 'class', Augmented(transform) or a callable."
            )
        _check_finite("dissimilar_weight", dissimilar_weight, least=0.0)
        _check_finite("margin", margin, least=-1.0)
        if route == "groups" and dissimilar_weight:
            raise InputError(
                "route='groups' never looks at single pairs, and those that are apart cost something each."
            )
        self.kernel = GradientKernel(
            unwrapped(model), output, parameters=parameters, batch_size=batch_size, max_outputs=max_outputs,
            max_bytes=max(1, max_bytes // GRAPH_SHARE),
        )  # fmt: skip
        _refuse_half(self.kernel)
        self.pairs, self.weight = pairs, weight
        self.dissimilar_weight, self.margin = dissimilar_weight, margin
        self.normalization: Normalization = normalization
        self.route: Route = route
        self.step = 0
        self.last: PairSimilarity | None = None
        self._is_known = False
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
            TargetError, ShapeError, InputError: targets, groups or pairs make no sense for this batch.
            NonFiniteError: nan or inf in outputs or gradients, with the samples' positions.
            SecondDerivativeError: a part of the model cannot be differentiated twice.
        """
        batch = as_batch(inputs) if targets is None or isinstance(inputs, Batch) else make_batch(inputs, targets)
        batch, pairing = self._paired(batch, groups, pairs, dissimilar)
        model, weight = self.kernel.model, self._weight_now()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        moved = trained if torch.is_grad_enabled() and weight else []
        with torch.inference_mode(False), as_used(model), twice_differentiable(self.kernel.device):
            self._look_for_attention(batch)
            found = enforce(
                self.kernel, batch.to(self.kernel.device), pairing, Cost(self.dissimilar_weight, self.margin),
                self.normalization, moved, by_groups=self._is_by_groups(pairing),
            )  # fmt: skip
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
        gradients = [None if each is None else weight * each for each in found.gradients] or [None] * len(trained)
        ready: Tensor = _Ready.apply(value, gradients, *trained)  # type: ignore[no-untyped-call]
        return ready

    def _paired(self, batch: Batch, groups: Any, pairs: Any, dissimilar: Any) -> tuple[Batch, Pairing]:
        if groups is not None and pairs is not None:
            raise InputError("Pass groups= or pairs=, not both: either says what is alike.")
        given = groups if pairs is None else pairs
        if given is None and dissimilar is None:
            return paired(self.pairs, batch)
        if given is not None:
            return batch, pairing_of(given, len(batch), dissimilar)
        batch, pairing = paired(self.pairs, batch)
        listed = pairing_of(torch.zeros(0, 2, dtype=torch.long), len(batch), dissimilar)
        return batch, Pairing(pairing.n, pairing.groups, pairing.alike, listed.apart)

    def _weight_now(self) -> float:
        weight = self.weight(self.step) if callable(self.weight) else self.weight
        return _check_finite("weight", float(weight), least=0.0)

    def _look_for_attention(self, batch: Batch) -> None:
        """Say once that attention is slower here."""
        if self._is_known or len(batch) < 2:  # of one sample, an axis may be squeezed away
            return
        self._is_known = True
        with Attention() as attention:
            self.kernel.outputs(batch[:2])
        if attention.is_used:
            warnings.warn(
                "The model computes attention, which SimilarityLoss does by matrix products: fused kernels have no "
                "second derivative. Its pass takes memory for all pairs of positions; the model's own passes stay as "
                "they are.",
                SlowAttentionWarning,
                stacklevel=3,
            )

    def _warn(self, batch: Batch, found: Enforced) -> None:
        """Say once that samples are left out."""
        if found.undefined and not self._has_warned:
            self._has_warned = True
            warn_undefined([batch.ids[place] for place in found.undefined])

    def _is_by_groups(self, pairing: Pairing) -> bool:
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
        size = 8 * n_groups * sum(parameter.numel() for parameter in self.kernel.parameters.values())
        return n >= FEW_GROUPS * n_groups and size * (self.kernel.n_outputs or 1) <= self.kernel.max_bytes


class _Ready(torch.autograd.Function):
    """A number whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = [
            torch.zeros_like(parameter) if each is None else each
            for each, parameter in zip(gradients, parameters, strict=True)
        ]
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(cotangent.to(each.device) * each for each in ctx.gradients))


def ramp(weight: float, n_steps: int, *, start: float = 0.0) -> Callable[[int], float]:
    """A weight that grows evenly from `start` to `weight` in so many steps, and stays.

    Example:
        >>> weight = ramp(0.5, 10)
        >>> weight(0), weight(5), weight(100)
        (0.0, 0.25, 0.5)
    """
    if n_steps < 1:
        raise InputError(f"n_steps is {n_steps}: it takes at least one.")
    return lambda step: start + (weight - start) * min(1.0, step / n_steps)


def _cost(found: Enforced, dissimilar_weight: float) -> float:
    """What all pairs cost; those that there are none of, nothing."""
    alike = 0.0 if math.isnan(found.similarity) else 1 - found.similarity
    return alike + (0.0 if math.isnan(found.excess) else dissimilar_weight * found.excess)


def _refuse_half(kernel: GradientKernel) -> None:
    halves = [name for name, each in kernel.parameters.items() if each.dtype in (torch.float16, torch.bfloat16)]
    if halves:
        raise InputError(
            f"{len(halves)} of {len(kernel.parameters)} parameters are in half precision: {halves[:3]}. The loss is "
            "trained through second derivatives, which are mostly rounding there. Keep parameters in float32, and use "
            "torch.autocast for the model's own pass."
        )


def _check_finite(name: str, value: float, *, least: float) -> float:
    if not math.isfinite(value) or value < least:
        raise InputError(f"{name} is {value}: it is a finite number of at least {least:g}.")
    return value
