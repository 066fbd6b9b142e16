"""The same Gram blocks by other libraries: nngeometry, dattri, dattri-llm, opacus and BackPACK.

Each is used as its documentation advises for speed; what can be made once (wrapped models, hooks, tasks) is made before
the clock starts. None is needed: what is not installed, or cannot do a network, is left out with its reason.
"""

from __future__ import annotations

import copy
import importlib.metadata
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import peers

Gram = Callable[[Tensor], Tensor]
"""Inputs -> their Gram block with themselves: of one output, or the trace over the first n. [n n], float64."""

Maker = Callable[[nn.Module, Tensor, int], Gram]
"""A copy of the model, which it may change; a few inputs; n outputs -> the way."""

N_TRIED = 3
"""Samples of the trial that a way has to pass before it is timed: not a power of two, nor a size within a network."""

MAX_ERROR = 1e-4
"""Relative error of a trial. It runs in float64, but some libraries make float32 buffers for any network."""


def gram_ways(
    model: nn.Module,
    x: Tensor,
    n_outputs: int = 1,
    *,
    refused: dict[str, str],
    chunk: int | None = None,
    max_seconds: float = 60.0,
) -> dict[str, Callable[[], Tensor]]:
    """The ways that are installed and that give the right Gram block for a few samples of this network.

    Args:
        model: in eval mode; every way works on a copy.
        x: inputs of n samples.
        n_outputs: one output, or the trace over the first so many.
        refused: here the ways that are left out are entered, each with its reason.
        chunk: samples that ways without a batch size of their own take at a time.
        max_seconds: a way that would take longer than this for all of x is left out.

    Returns:
        name -> the job. Each returns [n n].
    """
    makers: dict[str, tuple[str, Maker]] = {
        "nngeometry, Gram": ("nngeometry", by_nngeometry_gram),
        "nngeometry, Jacobian": ("nngeometry", by_nngeometry_jacobian),
        "dattri": ("dattri", partial(by_dattri, chunk=chunk)),
        "dattri-llm, factors": ("dattri-llm", partial(by_dattri_llm, is_factorized=True)),
        "dattri-llm, built": ("dattri-llm", partial(by_dattri_llm, is_factorized=False)),
        "opacus": ("opacus", by_opacus),
        "backpack": ("backpack-for-pytorch", by_backpack),
    }
    return _tried(makers, model, x, n_outputs, peers.gram_one_at_a_time, refused, max_seconds)


def blocks_ways(
    model: nn.Module, x: Tensor, n_outputs: int, *, refused: dict[str, str], max_seconds: float = 60.0
) -> dict[str, Callable[[], Tensor]]:
    """The same for every output with every other one: each returns [n n c c]."""
    makers: dict[str, tuple[str, Maker]] = {"dattri-llm, factors": ("dattri-llm", blocks_by_dattri_llm)}
    return _tried(makers, model, x, n_outputs, peers.blocks_by_torch_func, refused, max_seconds)


def _tried(
    makers: Mapping[str, tuple[str, Maker]],
    model: nn.Module,
    x: Tensor,
    n_outputs: int,
    reference: Callable[[nn.Module, Tensor, int], Tensor],
    refused: dict[str, str],
    max_seconds: float,
) -> dict[str, Callable[[], Tensor]]:
    """The ways that are installed, agree with the reference, and are fast enough."""
    few = x[:N_TRIED]
    ways: dict[str, Callable[[], Tensor]] = {}
    installed = versions()
    for name, (package, make) in makers.items():
        if package not in installed:
            refused[name] = "not installed"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about layers without hooks: the trial shows whether they matter
                error = _error(make, model, few, n_outputs, reference)
                gram = make(copy.deepcopy(model), few, n_outputs)
                gram(few)
                start = time.perf_counter()
                gram(few)
                seconds = (time.perf_counter() - start) * len(x) / len(few)
        except Exception as reason:  # whatever a library raises at a network that it cannot do is what to report
            refused[name] = f"{type(reason).__name__}: {' '.join(str(reason).split())[:300]}"
            continue
        if not error < MAX_ERROR:
            refused[name] = f"wrong, and says nothing: relative error {error:.1e} on {len(few)} samples in float64"
        elif seconds > max_seconds:
            refused[name] = f"too slow: about {seconds:.0f} s for {len(x)} samples, going by {len(few)}"
        else:
            ways[name] = partial(gram, x)
    return ways


def _error(
    make: Maker,
    model: nn.Module,
    few: Tensor,
    n_outputs: int,
    reference: Callable[[nn.Module, Tensor, int], Tensor],
) -> float:
    """Relative error on a few samples, in float64: there, only mistakes show.

    In float32 they could hide behind the rounding of long sums, which alone reaches 1e-3 over 11 million parameters.
    """
    exact = copy.deepcopy(model).double()
    few = few.double() if few.is_floating_point() else few
    truth = reference(exact, few, n_outputs)
    found = make(exact, few, n_outputs)(few)
    return float((found - truth).norm() / truth.norm())


def versions() -> dict[str, str]:
    """The optional packages that are installed, with their versions."""
    found = {}
    for package in ("nngeometry", "dattri", "dattri-llm", "opacus", "backpack-for-pytorch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def by_nngeometry_gram(model: nn.Module, few: Tensor, n_outputs: int) -> Gram:
    """GramMatrix: a contraction rule for linear layers, built per-sample gradients for the others.

    One call an output, because a call for c outputs computes all c x c blocks, of which the trace needs c.
    """
    from nngeometry import GramMatrix

    def gram(x: Tensor) -> Tensor:
        total = torch.zeros(len(x), len(x), dtype=torch.float64)
        for output in range(n_outputs):
            total += GramMatrix(model, _loader(x), function=_output(model, output)).to_torch()[0, :, 0]
        return total

    return gram


def by_nngeometry_jacobian(model: nn.Module, few: Tensor, n_outputs: int) -> Gram:
    """Jacobian, then one matrix product an output: half of GramMatrix's passes, all of the gradients in memory."""
    from nngeometry import Jacobian

    def gram(x: Tensor) -> Tensor:
        total = torch.zeros(len(x), len(x), dtype=torch.float64)
        for output in range(n_outputs):
            gradients = Jacobian(model, _loader(x), function=_output(model, output)).to_torch()[0]
            total += gradients @ gradients.T
        return total

    return gram


def by_dattri(model: nn.Module, few: Tensor, n_outputs: int, *, chunk: int | None) -> Gram:
    """The gradient function of an AttributionTask, which its attributors call: vmap of grad over flat parameters."""
    from dattri.task import AttributionTask

    def target(output: int) -> Callable[[dict[str, Tensor], tuple[Tensor]], Tensor]:
        def of(values: dict[str, Tensor], data: tuple[Tensor]) -> Tensor:
            found: Tensor = torch.func.functional_call(model, values, (data[0].unsqueeze(0),))
            return found[0, output]

        return of

    tasks = [AttributionTask(target(output), model, model.state_dict()) for output in range(n_outputs)]
    flat = tasks[0].get_param()[0].detach()
    derivatives = [task.get_grad_target_func(in_dims=(None, 0)) for task in tasks]

    def gram(x: Tensor) -> Tensor:
        total = torch.zeros(len(x), len(x), dtype=torch.float64)
        with torch.no_grad():
            for derivative in derivatives:
                gradients = torch.cat([derivative(flat, (part,)) for part in x.split(chunk or len(x))])
                total += gradients @ gradients.T
        return total

    return gram


def by_dattri_llm(model: nn.Module, few: Tensor, n_outputs: int, *, is_factorized: bool) -> Gram:
    """A HookManager's capture, then its inner products, layer by layer.

    With is_factorized, it keeps inputs and output gradients, and its cost model contracts or builds (its default).
    Without, it builds per-sample gradients in the backward pass: once, not once for either side of the product.
    """
    from dattri_llm.gradient import ops

    capture = _dattri_llm_capture(model, few, is_factorized=is_factorized)

    def gram(x: Tensor) -> Tensor:
        total = torch.zeros(len(x), len(x), dtype=torch.float64)
        for output in range(n_outputs):
            for values, kind in capture(x, output).values():
                is_built = isinstance(values, Tensor)
                total += ops.cross_dot(values, values, kind) if is_built else ops.pairwise_dot(values, kind)
        return total

    return gram


def blocks_by_dattri_llm(model: nn.Module, few: Tensor, n_outputs: int) -> Gram:
    """The same capture of every output, then the inner products of each pair of outputs, computed once. [n n c c]."""
    from dattri_llm.gradient import ops

    capture = _dattri_llm_capture(model, few, is_factorized=True)

    def blocks(x: Tensor) -> Tensor:
        captured = [capture(x, output) for output in range(n_outputs)]
        total = torch.zeros(len(x), len(x), n_outputs, n_outputs, dtype=torch.float64)
        for a in range(n_outputs):
            for b in range(a, n_outputs):
                for name, (values, kind) in captured[a].items():
                    total[:, :, a, b] += ops.cross_dot(values, captured[b][name][0], kind)
                total[:, :, b, a] = total[:, :, a, b].T
        return total

    return blocks


def _dattri_llm_capture(
    model: nn.Module, few: Tensor, *, is_factorized: bool
) -> Callable[[Tensor, int], dict[str, tuple[Any, str]]]:
    """What gives (gradients, kind) of every layer for one output."""
    from dattri_llm import HookManager, HookManagerConfig
    from dattri_llm.gradient import CaptureCallback, default_hook_assignment

    numbered, capture = Numbered(model), CaptureCallback()
    # Layers that never run as modules (the projections of nn.MultiheadAttention) would leave a step unfinished.
    hooks = default_hook_assignment(numbered, (few, list(range(len(few)))))
    done = {
        f"{name}.{each}"
        for name, kind in hooks.items()
        if kind == "linear_io"
        for each, _ in numbered.get_submodule(name).named_parameters(recurse=False)
    }
    missing = [name.removeprefix("model.") for name, _ in numbered.named_parameters() if name not in done]
    if missing:
        raise NotImplementedError(f"no per-sample gradients of {len(missing)} parameters, such as {missing[0]!r}")
    # Its advice where only captures are wanted: all frozen but one parameter at the input, so that the backward pass
    # computes no weight gradients.
    for parameter in list(model.parameters())[1:]:
        parameter.requires_grad_(False)
    style = "factorized" if is_factorized else "materialized"
    config = HookManagerConfig(hook_types=hooks, capture_style=style, include_frozen=True)
    manager = HookManager(numbered, config=config, callbacks=[capture], sample_id_key=1)

    def captured(x: Tensor, output: int) -> dict[str, tuple[Any, str]]:
        with manager.collect():
            numbered(x, list(range(len(x))))[:, output].sum().backward()
        gradient = capture.record.gradient
        found = {name: (values, gradient.layer_types[name]) for name, values in gradient.data.items()}
        model.zero_grad()
        capture.record = None
        return found

    return captured


def by_opacus(model: nn.Module, few: Tensor, n_outputs: int) -> Gram:
    """GradSampleModule: per-sample gradients by layer rules, or by vmap where it has none."""
    from opacus import GradSampleModule

    # Its replacements (ModuleValidator.fix) are left alone. Batch normalization becomes group normalization, another
    # function; so does attention, unmeant: DPMultiheadAttention of 1.6.0 mixes up its heads where batch_first is set.
    # Captures only in training mode; no network here has dropout, and batch normalization is refused.
    wrapped = GradSampleModule(model.train(), loss_reduction="sum")

    def gram(x: Tensor) -> Tensor:
        total = torch.zeros(len(x), len(x), dtype=torch.float64)
        for output in range(n_outputs):
            wrapped(x)[:, output].sum().backward()
            for parameter in wrapped.parameters():
                flat = parameter.grad_sample.flatten(1)
                total += flat @ flat.T
            wrapped.zero_grad(set_to_none=True)
        return total

    return gram


def by_backpack(model: nn.Module, few: Tensor, n_outputs: int) -> Gram:
    """BatchGrad, contracted in an extension hook layer by layer, as it advises for what is made from gradients."""
    from backpack import backpack as extensions
    from backpack import extend
    from backpack.core.derivatives.convnd import weight_jac_t_save_memory
    from backpack.extensions import BatchGrad

    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    model = extend(model)

    def gram(x: Tensor) -> Tensor:
        total = torch.zeros(len(x), len(x), dtype=torch.float64)

        def contract(module: nn.Module) -> None:
            for parameter in module.parameters(recurse=False):
                if not hasattr(parameter, "grad_batch"):
                    raise NotImplementedError(f"BatchGrad has no rule for the parameters of {type(module).__name__}")
                flat = parameter.grad_batch.flatten(1)
                total.add_(flat @ flat.T)
                del parameter.grad_batch

        with OutOfPlace():
            outputs = model(x)
        for output in range(n_outputs):
            is_last = output + 1 == n_outputs
            context = extensions(BatchGrad(), extension_hook=contract, retain_graph=not is_last)
            # Of its two algorithms for convolutions, the one that is not the default takes half the time on a CPU.
            with context, weight_jac_t_save_memory(True):
                outputs[:, output].sum().backward(retain_graph=not is_last)
            model.zero_grad()
        return total

    return gram


class Numbered(nn.Module):
    """Takes the samples' numbers along: without them dattri-llm hashes every input at every call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, numbers: list[int]) -> Tensor:
        """The model's outputs."""
        outputs: Tensor = self.model(x)
        return outputs


class OutOfPlace(TorchFunctionMode):
    """F.relu that keeps its input: what a module with a full backward hook returns must not be changed in place."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Call the function, F.relu with inplace=False."""
        return func(*args, **(kwargs or {}) | ({"inplace": False} if func is F.relu else {}))


class Whole(TensorDataset):
    """Fetches a batch by one indexing: sample by sample, fetching would take longer than a small network."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """The batch."""
        return [tensor[indices] for tensor in self.tensors]


def _loader(x: Tensor) -> DataLoader[Any]:
    return DataLoader(Whole(x), batch_size=len(x), collate_fn=_as_it_is)


def _as_it_is(batch: list[Tensor]) -> list[Tensor]:
    return batch


def _output(model: nn.Module, output: int) -> Callable[..., Tensor]:
    return lambda *data: model(data[0])[:, output : output + 1]
