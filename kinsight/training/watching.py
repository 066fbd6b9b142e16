"""Watching a network while it is trained: what it finds alike among a few samples, every so many steps."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kinsight.agreement import nearest, shared
from kinsight.batches import checked_count, map_leaves
from kinsight.captures.running import call_model, untouched
from kinsight.differentiation.trace import Check
from kinsight.errors import InputError, KinsightError, NonFiniteError, NonFiniteWarning, ShapeError
from kinsight.gradients.contractions import Contraction
from kinsight.kernel import GradientKernel
from kinsight.kernel_products import LEAST_SHARE
from kinsight.normalization import Normalization, check_normalization
from kinsight.outputs import OutputFunction, evaluate
from kinsight.samples import Batch, Id, Samples
from kinsight.training.running import as_used, made_for, unwrapped

MAX_PROBE = 1024
"""Samples that are watched at most: all their pairs are looked at, every time."""

_PART = 32
"""Samples that go through the network together where those are looked for that are not finite."""


class SimilarityWatcher:
    """Every so many steps, numbers about how similar a network finds the samples of a fixed probe set.

    Nothing of the training changes: weights, gradients, modes, batch statistics and random numbers stay as they are.
    Gradients are compared over the parameters that require one at that time, unless `parameters` says which, in their
    precision, outside of autocast. In distributed training only the first process looks. Where outputs or gradients
    are not finite, numbers are nan, a warning says so once, and training goes on.

    Args:
        model: the network that is being trained, wrapped or not.
        probe: whatever `Samples` takes, up to 1,024 samples, read once and held in memory; with classes as targets,
            similarities within and between them are told apart (negative ones stand for no class). Floating-point
            inputs are given to the network in the precision of its parameters.
        every: steps from one look to the next; the first step is looked at.
        output: what is differentiated, as in `GradientKernel`.
        normalization: which similarity.
        n_neighbors: of each sample, compared with those at the last look.
        prefix: of the numbers' names.
        parameters, fallback, check, max_outputs, batch_size, max_bytes, contraction: as in `GradientKernel`.

    Raises:
        InputError: there are less than 2 or more than 1,024 samples, or steps or neighbors are no whole number from 1.
        UnknownNameError: there is no such normalization.

    Example:
        >>> import torch, kinsight
        >>> model, probe = torch.nn.Linear(2, 2), kinsight.Samples(torch.randn(8, 2), torch.arange(8) % 2)
        >>> watcher = kinsight.SimilarityWatcher(model, probe, every=10)
        >>> [name.removeprefix("similarity/") for name in watcher.step()]
        ['soft_count', 'within_classes', 'between_classes', 'denoising_factor']
        >>> watcher.step() is None  # not yet
        True
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Any,
        *,
        every: int = 100,
        output: str | OutputFunction | Callable[[Any], Tensor] = "logits",
        normalization: Normalization = "flat",
        n_neighbors: int = 10,
        prefix: str = "similarity/",
        parameters: Callable[[str], bool] | Iterable[str] | None = None,
        fallback: bool = True,
        check: Check = "first",
        max_outputs: int = 32,
        batch_size: int | None = None,
        max_bytes: int = 2**30,
        contraction: Contraction = "full",
    ) -> None:
        every, n_neighbors = checked_count("every", every), checked_count("n_neighbors", n_neighbors)
        check_normalization(normalization)
        if not isinstance(prefix, str):
            raise InputError(f"prefix is {prefix!r}: it is what the numbers' names begin with, or ''.")
        if not (parameters is None or callable(parameters) or isinstance(parameters, str)):
            parameters = list(parameters)
        self._make_kernel = partial(
            GradientKernel, unwrapped(model), output, parameters=parameters, fallback=fallback, check=check,
            max_outputs=max_outputs, batch_size=batch_size, max_bytes=max_bytes, contraction=contraction,
        )  # fmt: skip
        self._renew_kernel()
        with same_random_numbers():
            self.probe = _read(probe)
        self.every, self.normalization, self.prefix = every, normalization, prefix
        self.n_neighbors = min(n_neighbors, len(self.probe) - 1)
        self.n_steps = 0
        self._nearest: Tensor | None = None
        self._has_warned = False

    def step(self, n_steps: int | None = None) -> dict[str, float] | None:
        """To be called once a step: the numbers, by name, where it is time for a look; else None.

        Args:
            n_steps: steps taken so far, this one included, where somebody else counts them; one more than at the last
                call where left out.
        """
        now = self.n_steps + 1 if n_steps is None else n_steps
        is_due = (now - 1) // self.every > (self.n_steps - 1) // self.every
        self.n_steps = now
        return self.look() if is_due and is_first_process() else None

    def look(self) -> dict[str, float]:
        """The numbers as they are now, by name.

        - soft_count: mean over samples of the sum of their similarities to all of them, themselves included;
        - within_classes, between_classes: mean similarity of two samples, where targets are classes: whole numbers,
          one a sample. Samples with a negative one are of no class, and left out here;
        - neighbor_overlap: share of each sample's nearest neighbors that were so at the last look;
        - denoising_factor: median over samples of the norm of their kernel weights. Samples whose kernel values cancel,
          so that their sum is below a thousandth of what it would be were all gradients parallel, are left out.

        Undefined similarities, of samples without a gradient, are left out; what is undefined as a whole is absent.
        Where outputs or gradients are nan or inf, all numbers are nan, and a `NonFiniteWarning` says so once.
        """
        compared = self._compared()
        if compared is None:
            overlap = [] if self._nearest is None else ["neighbor_overlap"]
            names = ["soft_count", *self._class_pairs(), "denoising_factor", *overlap]
            return {self.prefix + name: float("nan") for name in names}
        gram, similarities = compared
        is_defined = gram.diagonal() > 0
        found = {"soft_count": similarities[is_defined].nansum(dim=1).mean()}
        found |= {name: similarities[which].nanmean() for name, which in self._class_pairs().items()}
        found["denoising_factor"] = _denoising_factors(gram).nanmedian()
        ranked = nearest(similarities.nan_to_num(nan=-2.0).fill_diagonal_(-3.0), self.n_neighbors)
        ranked[~is_defined] = torch.nan
        if self._nearest is not None:
            found["neighbor_overlap"] = shared(ranked, self._nearest).nanmean()
        self._nearest = ranked
        return {self.prefix + name: float(value) for name, value in found.items() if bool(value.isfinite())}

    def check(self) -> None:
        """Raise what a look would raise, before training begins: a look that nothing is kept of.

        Raises:
            KinsightError: the network cannot take the probe, or its outputs cannot be differentiated.
        """
        self._compared()

    def state_dict(self) -> dict[str, Any]:
        """Steps counted, and the neighbors at the last look: what a resumed training goes on from."""
        return {"n_steps": self.n_steps, "n_neighbors": self.n_neighbors, "nearest": self._nearest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            InputError: it is no such state.
            ShapeError: it was of another number of samples or neighbors.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise InputError(f"The state has no {missing[0]!r}: pass what state_dict() of a watcher gave.")
        known, n = state["nearest"], len(self.probe)
        n_before = n if known is None else len(known)
        if (n_before, state["n_neighbors"]) != (n, self.n_neighbors):
            raise ShapeError(
                f"The state is of a watcher of {n_before} samples, with {state['n_neighbors']} neighbors of each; this "
                f"one has {n} and {self.n_neighbors}: neighbors among other samples say nothing of these. Watch the "
                "same ones as before, or begin anew, without the state (in Lightning: under another prefix)."
            )
        self.n_steps, self._nearest = state["n_steps"], None if known is None else known.detach().cpu().clone()

    def _compared(self) -> tuple[Tensor, Tensor] | None:
        """The kernel and the similarities of the probe, [n n] each, on the CPU; None where something is not finite."""
        if self._made_for != made_for(self.kernel.model):
            self._renew_kernel()
        batch = self._probe_as_used()
        try:
            with torch.inference_mode(False), as_used(self.kernel.model):
                gram = self.kernel(batch).cpu()
                is_whitened = self.normalization == "whitened" and self.kernel.n_outputs != 1
                return gram, self.kernel.similarity(batch).cpu() if is_whitened else _cosines(gram)
        except KinsightError as error:  # nan looks like much else, such as samples that depend on each other
            what = self._not_finite(batch, error)
            if what is None:
                raise
            self._warn(what)
            self._renew_kernel()  # without routes that were given up because of it
            return None

    def _renew_kernel(self) -> None:
        """A kernel of the model as it is: layers may have been replaced, frozen or thawed."""
        self.kernel = self._make_kernel()
        self._made_for = made_for(self.kernel.model)

    def _not_finite(self, batch: Batch, error: KinsightError) -> str | None:
        """What is nan or inf, in words; None if nothing is, and the error is about something else."""
        weights = self.kernel.parameters
        bad: list[Any] = [name for name, weight in weights.items() if not bool(weight.isfinite().all())]
        if bad:
            return f"{len(bad)} of {len(weights)} parameters hold nan or inf: {_first(bad)}."
        if isinstance(error, NonFiniteError):
            return str(error)
        with as_used(self.kernel.model):
            bad = _samples_not_finite(self.kernel, batch.to(self.kernel.device))
        return f"The gradients of {len(bad)} of {len(batch)} samples are nan or inf: {_first(bad)}." if bad else None

    def _probe_as_used(self) -> Batch:
        """The probe, floating-point inputs in the precision of the parameters where all of them have the same."""
        known = {each.dtype for each in self.kernel.model.parameters() if each.is_floating_point()}
        if len(known) != 1:
            return self.probe
        (dtype,) = known

        def converted(leaf: Any) -> Any:
            return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        return replace(self.probe, inputs=map_leaves(converted, self.probe.inputs))

    def _warn(self, what: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"Similarities are nan after {self.n_steps} steps, and as long as this is so: {what} Training goes on, and "
            "this is said once.",
            NonFiniteWarning,
            stacklevel=4,
        )

    def _class_pairs(self) -> dict[str, Tensor]:
        """Which pairs are of one class, and which of two, [n n] each; nothing where targets are no classes."""
        targets = self.probe.targets
        if targets is None or targets.is_floating_point() or targets.is_complex() or targets.dim() != 1:
            return {}
        targets = targets.cpu()  # where similarities are
        is_of_one = targets >= 0
        same, both = targets[:, None] == targets, is_of_one[:, None] & is_of_one
        others = ~torch.eye(len(targets), dtype=torch.bool)
        pairs = {"within_classes": same & both & others, "between_classes": ~same & both}
        return {name: which for name, which in pairs.items() if bool(which.any())}


def _read(probe: Any) -> Batch:
    """The samples of the probe, all in one batch.

    Raises:
        InputError: there are too few or too many.
    """
    samples = Samples.wrap(probe)
    if not 2 <= len(samples) <= MAX_PROBE:
        raise InputError(
            f"The probe set has {len(samples)} samples: 2 to {MAX_PROBE:,} can be watched, all pairs of them "
            "every time. Take some: samples.take(range(256))."
        )
    return samples.take(range(len(samples)))


def _first(names: list[Any]) -> str:
    return f"{names[:5]}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _samples_not_finite(kernel: GradientKernel, batch: Batch) -> list[Id]:
    """Ids of the samples whose gradient is nan or inf, by plain autograd."""

    def is_finite(part: Batch) -> bool:
        with untouched(kernel.model, kernel.parameters):
            outputs = evaluate(kernel.output, call_model(kernel.model, part.inputs), part.targets, len(part))
            gradients = torch.autograd.grad(outputs.sum(), list(kernel.parameters.values()), allow_unused=True)
        return all(each is None or bool(each.isfinite().all()) for each in gradients)

    parts = [part for part in batch.batches(_PART) if not is_finite(part)]
    return [id_ for part in parts for row, id_ in enumerate(part.ids) if not is_finite(part[[row, row]])]


def _cosines(gram: Tensor) -> Tensor:
    """Similarities from inner products, nan where a length is 0. [n n]."""
    lengths = gram.diagonal().sqrt()
    return gram / torch.where(lengths > 0, lengths, torch.nan)[:, None] / torch.where(lengths > 0, lengths, torch.nan)


def _denoising_factors(gram: Tensor) -> Tensor:
    """Norms of the kernel weights of every sample, nan where their sum is as good as 0. [n n] -> [n]."""
    lengths, sums = gram.diagonal().sqrt(), gram.sum(dim=1)
    shares = sums / (lengths * lengths.sum())
    factors: Tensor = (gram / sums[:, None]).norm(dim=1)
    return factors.masked_fill(~(shares.abs() >= LEAST_SHARE), torch.nan)


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """The random states of torch, numpy and Python are put back, whatever draws from them meanwhile."""
    has_cuda = torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if has_cuda else ()
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def is_first_process() -> bool:
    """Whether this process is the first of a distributed training, or the only one."""
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not is_distributed or torch.distributed.get_rank() == 0
