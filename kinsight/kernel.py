"""How similar a network finds two inputs: the kernel of its output gradients, and what is derived from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from kinsight.axes import GramBlock, OutputBlocks, Outputs, PerSample
from kinsight.batches import checked_count
from kinsight.captures.running import check_finite
from kinsight.differentiation.batch_gradients import BatchGradients, OwnGram
from kinsight.differentiation.differentiate import Differentiator
from kinsight.differentiation.footprint import Footprint, measure
from kinsight.differentiation.layer_by_layer import Take
from kinsight.differentiation.trace import Check
from kinsight.differentiation.unit_gradients import Normalizer, UnitGradients, mark_undefined, warn_undefined
from kinsight.errors import EmptyDataError, InputError, NonFiniteError, SampleTypeError, UnknownNameError
from kinsight.gradients.contractions import SAFE_NORMS, Contraction, in_float64, refuse_contraction
from kinsight.normalization import Normalization, check_normalization
from kinsight.outputs import OutputFunction, resolve_output
from kinsight.parameters import choose_parameters
from kinsight.samples import Batch, Id, Inputs, as_batch
from kinsight.stream import Blocks, Prepared, Source, batches, filled, pair_blocks, symmetric_pair_blocks
from kinsight.whitening import Spectrum, best_rotation_trace, spectrum


@dataclass(frozen=True)
class Estimate:
    """Values with their standard error.

    Args:
        values: [n m].
        standard_error: of each value, [n m].
    """

    values: GramBlock
    standard_error: GramBlock


class GradientKernel:
    """The gradient kernel of a trained network, k(x, y) = grad f(x) . grad f(y), over its parameters.

    f is the network's output, not its loss: no label enters. For c outputs K(x, y) = J(x) J(y)^T is a [c c] block a
    pair, and the kernel its trace / c. Everything is exact, for any module, unchanged; sums over parameters run in
    float64, and results are float64.

    Inputs `x`, `y` are a tensor, a tuple (passed as positional arguments), a dict (as keywords) or a `Batch`, with
    samples on axis 0. Where `y` is left out it is `x`.

    Args:
        model: any `torch.nn.Module`, in eval mode. It comes back exactly as it went in.
        output: what is differentiated: a name of `kinsight.outputs.OUTPUTS`, an output function, or any callable from
            what the model returns to [n] or [n c].
        parameters: which parameters count: a function of the name, or names. All that require a gradient where
            left out.
        fallback: whether parameters without a layer rule take the generic exact paths; an error where False.
        check: when the proof of coverage runs: 'first' batch of each kind, 'always', or 'never'.
        max_outputs: number of outputs above which differentiating each is refused.
        batch_size: samples in one pass; chosen from `max_bytes` where left out.
        max_bytes: bound on the memory that gradients are held in.
        contraction: what inner products of float32 gradients are computed in: 'full' (float32), 'bfloat16' (errors of
            up to 2.5e-2 of |g(x)| |g(y)|, mostly below 5e-3), 'split' (1e-5 in emulation, CUDA only). Gradients and
            norms stay in float32, and so do `blocks` and what is made of them.

    Raises:
        NoParametersError: nothing to differentiate with respect to.
        UnknownNameError: an unknown output or parameter name, contraction or check.
        InputError: a batch size, a bound on memory or a number of outputs below 1.
        ModelError: asked later, when layers of the model have been replaced or added.

    Example:
        >>> import torch, kinsight
        >>> model = torch.nn.Linear(2, 1)
        >>> kernel = kinsight.GradientKernel(model)
        >>> kernel(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))  # x.y + 1, the 1 is the bias
        tensor([[26.,  4.],
                [ 4.,  2.]], dtype=torch.float64)

    Reference:
        Charpiat, Girard, Felardos, Tarabalka (2019), "Input Similarity from the Neural Network Perspective".
    """

    def __init__(
        self,
        model: nn.Module,
        output: str | OutputFunction | Callable[[Any], Tensor] = "logits",
        *,
        parameters: Callable[[str], bool] | Iterable[str] | None = None,
        fallback: bool = True,
        check: Check = "first",
        max_outputs: int = 32,
        batch_size: int | None = None,
        max_bytes: int = 2**30,
        contraction: Contraction = "full",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise SampleTypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module.")
        for name, known, asked in (
            ("contraction", get_args(Contraction), contraction), ("check", get_args(Check), check),
        ):  # fmt: skip
            if asked not in known:
                raise UnknownNameError(f"{name} {asked!r} is unknown: use {', '.join(map(repr, known))}.")
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.output = resolve_output(output)
        self.parameters = choose_parameters(self.model, parameters)
        refuse_contraction(contraction, self.device)
        self.contraction = contraction
        self.batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
        self.max_bytes = checked_count("max_bytes", max_bytes)
        self._measured: Footprint | None = None
        self.n_outputs: int | None = None  # of the last batch
        self._differentiate = Differentiator(
            self.model, self.output, self.parameters, fallback=fallback, check=check,
            max_outputs=checked_count("max_outputs", max_outputs),
            known=None if parameters is not None else list(self.model.parameters()),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ what is known

    @property
    def routes(self) -> dict[str, str]:
        """The route of every parameter, as far as batches have been seen.

        Its rule; 'vmap' or 'one sample at a time', with the reason; or 'unused'.
        """
        return dict(self._differentiate.routes)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(iter(self.parameters.values())).device

    @property
    def precision(self) -> torch.dtype:
        """The coarsest precision that parameters have, or that was computed in as far as batches have been seen."""
        known = [parameter.dtype for parameter in self.parameters.values()] + [self._differentiate.precision]
        return max(known, key=lambda dtype: torch.finfo(dtype).eps)

    # ------------------------------------------------------------------------------------ gradients of a batch

    def gradients(self, x: Inputs | Batch, *, is_differentiable: bool = False) -> BatchGradients:
        """The per-sample gradients of one batch, in factored form: what all else is made of; with their graph if asked.

        Raises:
            NonFiniteError: nan or inf in outputs or gradients, with the samples' ids.
        """
        batch = _filled(x).to(self.device)
        gradients = self._differentiate(batch, is_differentiable=is_differentiable).within_range()
        self.n_outputs = gradients.n_outputs
        return gradients if self.contraction == "full" else replace(gradients, contraction=self.contraction)

    def outputs(self, x: Inputs | Batch) -> Outputs:
        """The output function's values. [n c]."""
        return self._differentiate.outputs(as_batch(x).to(self.device))

    def unit_gradients(self, x: Inputs | Batch, normalization: Normalization = "whitened") -> UnitGradients:
        """The gradients of one batch, normalized: inner products of the result are similarities.

        A sample with zero gradient becomes zero: it adds nothing to any sum.
        """
        batch = as_batch(x).to(self.device)
        gradients = self.gradients(batch)
        return UnitGradients.of(gradients, self.normalizer(gradients, normalization))

    def normalizer(self, gradients: BatchGradients, normalization: Normalization = "whitened") -> Normalizer:
        """What makes the gradients of a batch unit gradients.

        Raises:
            NonFiniteError: norms overflow, with the samples' ids.
            UnknownNameError: there is no such normalization.
        """
        return Normalizer.of(gradients, normalization, self.precision)

    # ----------------------------------------------------------------------------------------- kernel values

    def __call__(self, x: Inputs | Batch, y: Inputs | Batch | None = None) -> GramBlock:
        """The kernel, Tr K(x, y) / c. [n m]."""
        rows = as_batch(x)
        if y is not None or len(rows) > self.block_size(rows):
            return self._rectangle(rows, y, BatchGradients.mean_gram)
        block, _ = self._own_gram(rows)
        self._check_block(block, rows, rows)
        return block

    def hand_over(self, batch: Batch, take: Take) -> Outputs:
        """The gradients of one batch, given away parameter by parameter, one output's during the backward pass. [n c].

        Args:
            batch: the samples.
            take: called with each parameter's name and gradients, which are forgotten afterwards.
        """
        outputs = self._differentiate.hand_over(_filled(batch).to(self.device), take)
        self.n_outputs = outputs.shape[1]
        return outputs

    def _own_gram(self, batch: Batch) -> tuple[GramBlock, int]:
        """The kernel of one batch with itself, captures freed layer by layer, [n n]; and the number of outputs."""
        gram = OwnGram(len(batch), self.contraction)
        outputs = self.hand_over(batch, gram.take)
        return gram.total(outputs), outputs.shape[1]

    def blocks(self, x: Inputs | Batch, y: Inputs | Batch | None = None) -> OutputBlocks:
        """K(x, y): entry [n, m, a, b] is grad f_a(x_n) . grad f_b(y_m). [n m c c]."""
        return self._rectangle(x, y, lambda a, b: a.gram(b, "blocks"), mirror=lambda block: block.permute(1, 0, 3, 2))

    def diag(self, x: Inputs | Batch) -> PerSample:
        """k(x, x) = Tr K(x, x) / c, in time linear in n. [n]."""
        blocks = self.each(as_batch(x), self.gradients)
        return torch.cat([part.content.self_blocks().diagonal(dim1=1, dim2=2).mean(dim=1) for part in blocks])

    def ranks(self, x: Inputs | Batch) -> Tensor:
        """Rank of K(x, x): how many outputs can be moved independently of each other. [n]."""
        return torch.cat([self._spectrum(part.content).ranks for part in self.each(as_batch(x), self.gradients)])

    def per_layer(self, x: Inputs | Batch, y: Inputs | Batch | None = None) -> dict[str, GramBlock]:
        """Each parameter's share of the kernel, by name. Added up in order, they are the kernel. [n m] each."""
        names = list(self.parameters)

        def shares(a: BatchGradients, b: BatchGradients) -> Tensor:
            known = a.shares(b)
            zero = a.outputs.new_zeros(len(a), len(b))
            return torch.stack([in_float64(known.get(name, zero)) / a.n_outputs for name in names], dim=2)

        return dict(zip(names, self._rectangle(x, y, shares).unbind(dim=2), strict=True))

    def estimate(self, x: Inputs | Batch, y: Inputs | Batch | None = None) -> Estimate:
        """The kernel estimated from random probes (`output=probes(k)`), with its standard error over the probes.

        Raises:
            UnknownNameError: the output is not an estimate: call the kernel itself.
        """
        if not self.output.is_estimate:
            raise UnknownNameError(
                f"output {self.output.name!r} is exact: there is no error to state. Call kernel(x, y), or use "
                "output=probes(k=16, seed=0)."
            )
        each = self._rectangle(x, y, lambda a, b: a.gram(b, "diagonal"))
        if each.shape[2] < 2:
            raise InputError("One probe gives no standard error: use output=probes(k) with k of 2 or more.")
        return Estimate(each.mean(dim=2), each.std(dim=2) / each.shape[2] ** 0.5)

    # ------------------------------------------------------------------------------------------ similarities

    def influence(self, x: Inputs | Batch, y: Inputs | Batch | None = None) -> Tensor:
        """How f(y_m) moves when the smallest step of the parameters moves f(x_n) by one. Not symmetric.

        For one output k(x, y) / k(x, x), [n m]. For c outputs K(y, x) K(x, x)^-1, [n m c c]: entry [n, m, a, b] is the
        move of output a at y_m for a move of output b at x_n. Samples x with zero gradient give nan, with a
        `ZeroGradientWarning` that names them.
        """
        rows, columns = as_batch(x), as_batch(x if y is None else y)
        moved = filled(
            len(rows),
            len(columns),
            pair_blocks(
                self.each(rows, self._dual_gradients),
                self.each(columns, self.gradients),
                lambda a, b: a.gram(b, "blocks").transpose(2, 3),
                max_bytes=self.max_bytes // 2,
            ),
        )
        undefined = self.diag(rows) == 0
        moved[undefined] = torch.nan
        warn_undefined([id_ for id_, bad in zip(rows.ids, undefined.tolist(), strict=True) if bad])
        return moved[:, :, 0, 0] if moved.shape[2] == 1 else moved

    def similarity(self, x: Inputs | Batch, y: Inputs | Batch | None = None) -> GramBlock:
        """The network's similarity, in [-1, 1]: Tr K_C(x, y) / sqrt(rank(x) rank(y)). [n m].

        K_C(x, y) = K(x, x)^-1/2 K(x, y) K(y, y)^-1/2; for one output, the cosine of the two gradients. Rows and
        columns of samples with zero gradient are nan, with a `ZeroGradientWarning` that names them.
        """
        return self._similarity(x, y, "whitened", UnitGradients.gram)

    def flat_similarity(self, x: Inputs | Batch, y: Inputs | Batch | None = None) -> GramBlock:
        """Tr K(x, y) / sqrt(Tr K(x, x) Tr K(y, y)), in [-1, 1]: cheaper, and a different number. [n m]."""
        return self._similarity(x, y, "flat", UnitGradients.gram)

    def rotation_similarity(
        self, x: Inputs | Batch, y: Inputs | Batch | None = None, *, is_special: bool = False
    ) -> GramBlock:
        """max_R Tr(R K_C(x, y)) / sqrt(rank(x) rank(y)): outputs that differ by a rotation count as alike. [n m].

        Args:
            x: inputs, such as those of a network that predicts displacements or flows.
            y: inputs; x where left out.
            is_special: only proper rotations (det R = 1), no reflections.
        """

        def combine(a: UnitGradients, b: UnitGradients) -> Tensor:
            return best_rotation_trace(a.gram(b, "blocks"), is_special=is_special)

        return self._similarity(x, y, "whitened", combine)

    def _similarity(
        self,
        x: Inputs | Batch,
        y: Inputs | Batch | None,
        normalization: Normalization,
        combine: Callable[[UnitGradients, UnitGradients], Tensor],
    ) -> GramBlock:
        rows = as_batch(x)
        columns = rows if y is None else as_batch(y)
        pairs = self.similarity_blocks(rows, None if y is None else columns, normalization, combine=combine)
        block = filled(len(rows), len(columns), pairs)
        return block.clamp(-1, 1)

    # -------------------------------------------------------------------------------------- blocks and memory

    def similarity_blocks(
        self,
        rows: Source,
        columns: Source | None = None,
        normalization: Normalization = "whitened",
        *,
        combine: Callable[[UnitGradients, UnitGradients], Tensor] = UnitGradients.gram,
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, block) for all pairs of two sets of samples, or of one, in bounded memory.

        At the end, a `ZeroGradientWarning` names the samples whose similarity is undefined, if there are any.

        Args:
            rows: the samples of the rows.
            columns: the samples of the columns; those of the rows where left out: then every block is computed once.
            normalization: which similarity.
            combine: what is computed from two batches; their similarities where left out. Rows and columns of samples
                with zero gradient are nan.
        """
        check_normalization(normalization)
        undefined: dict[Id, None] = {}

        def values(a: UnitGradients, b: UnitGradients) -> Tensor:
            return mark_undefined(a, b, combine(a, b), undefined)

        prepared = self.each(rows, lambda batch: self.unit_gradients(batch, normalization))
        if columns is None and prepared.is_one and combine is UnitGradients.gram:
            for batch in batches(rows, prepared.batch_size):
                yield slice(0, len(batch)), slice(0, len(batch)), self._with_itself(batch, normalization, undefined)
        elif columns is None:
            yield from symmetric_pair_blocks(
                prepared, values, lambda block: block.transpose(0, 1), max_bytes=self.max_bytes // 2
            )
        else:
            others = self.each(columns, prepared.prepare)
            yield from pair_blocks(prepared, others, values, max_bytes=self.max_bytes // 2)
        warn_undefined(list(undefined))

    def _with_itself(self, batch: Batch, normalization: Normalization, undefined: dict[Id, None]) -> Tensor:
        """Similarities of one batch. Where one number normalizes a gradient, the Gram block has it on its diagonal."""
        if self.contraction == "full" and (normalization == "flat" or self.n_outputs == 1):
            block, n_outputs = self._own_gram(batch)
            squares = block.diagonal().clone()
            low, high = SAFE_NORMS
            is_safe = bool(((squares > low**2) & (squares < high**2)).all())
            if is_safe and (normalization == "flat" or n_outputs == 1):
                return block.mul_(squares.rsqrt()[:, None]).mul_(squares.rsqrt())
        # norms of their own: in float32 the smallest squares are 0, or nearly so
        unit = self.unit_gradients(batch, normalization)
        return mark_undefined(unit, unit, unit.gram(unit), undefined)

    def each(self, source: Source, prepare: Callable[[Batch], Prepared]) -> Blocks[Prepared]:
        """A source made ready batch by batch, in batches whose gradients fit in memory."""
        size = self.block_size(source)
        is_eager = self._footprint(source).is_eager(len(source), size, self.max_bytes)
        return Blocks(source, prepare, size, is_eager)

    def block_size(self, source: Source) -> int:
        """Samples in one pass: `batch_size`, or as many as `max_bytes` has room for, by measuring a few."""
        if self.batch_size is not None:
            return self.batch_size
        return self._footprint(source).batch_size(len(source), self.max_bytes)

    def _footprint(self, source: Source) -> Footprint:
        if self._measured is None:
            few = next(batches(source, _FEW), None)
            if few is None or not len(few):
                raise EmptyDataError("There are 0 samples: nothing to compare.")
            self._measured = measure(self._differentiate, few.to(self.device))
            self.n_outputs = self._measured.n_outputs
        return self._measured

    def _rectangle(
        self,
        x: Inputs | Batch,
        y: Inputs | Batch | None,
        combine: Callable[[BatchGradients, BatchGradients], Tensor],
        *,
        mirror: Callable[[Tensor], Tensor] = lambda block: block.transpose(0, 1),
    ) -> Tensor:
        rows = as_batch(x)
        prepared = self.each(rows, self.gradients)
        budget = self.max_bytes // 2
        if y is None:
            pairs = symmetric_pair_blocks(prepared, combine, mirror, max_bytes=budget)
            block = filled(len(rows), len(rows), pairs)
        else:
            columns = as_batch(y)
            pairs = pair_blocks(prepared, self.each(columns, prepared.prepare), combine, max_bytes=budget)
            block = filled(len(rows), len(columns), pairs)
        self._check_block(block, rows, rows if y is None else as_batch(y))
        return block

    def _check_block(self, block: Tensor, rows: Batch, columns: Batch) -> None:
        # the sum of numbers that are all finite may overflow
        if not bool(torch.isfinite(block.sum())) and not bool(torch.isfinite(block).all()):
            for batch in (rows, columns):
                for part in batches(batch.to(self.device), self.block_size(batch)):
                    check_finite(self.gradients(part).self_blocks(), part, "gradients")
            raise NonFiniteError(
                f"Kernel values overflow {str(self.precision).removeprefix('torch.')}, though every gradient is "
                "finite. Scale the output down, or use model.double()."
            )

    def _dual_gradients(self, batch: Batch) -> BatchGradients:
        gradients = self.gradients(batch)
        return gradients.mix(self._spectrum(gradients).power(-1.0))

    def _spectrum(self, gradients: BatchGradients) -> Spectrum:
        return spectrum(gradients.self_blocks(), self.precision)


def check_kernel(kernel: Any, normalization: Normalization = "flat") -> None:
    """Raise where what is asked is no kernel, or there is no such similarity.

    Raises:
        SampleTypeError, UnknownNameError: it is none, or there is none.
    """
    if not isinstance(kernel, GradientKernel):
        raise SampleTypeError(
            f"kernel is a {type(kernel).__name__}, and similarities are asked of a GradientKernel: pass "
            "kinsight.GradientKernel(model)."
        )
    check_normalization(normalization)


_FEW = 4
"""Samples that are measured to choose how many to work on at once."""


def _filled(x: Inputs | Batch) -> Batch:
    batch = as_batch(x)
    if not len(batch):
        raise EmptyDataError("The batch has 0 samples: there is nothing to differentiate.")
    return batch
