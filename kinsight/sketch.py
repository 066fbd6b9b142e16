"""Sketches: a few numbers a sample, whose inner products estimate similarities."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from kinsight.axes import Outputs, PerSample
from kinsight.captures.running import check_finite
from kinsight.differentiation.unit_gradients import Normalizer
from kinsight.errors import InputError, ZeroGradientWarning
from kinsight.gradients import Gradients
from kinsight.gradients.contractions import add_in_float64, full_precision, in_float64
from kinsight.gradients.projection import Projection
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.normalization import Normalization
from kinsight.samples import Batch, Id, Inputs, as_batch


@dataclass(frozen=True, eq=False)
class Sketch:
    """Projected unit gradients of some samples.

    Args:
        ids: of the samples.
        values: inner products of its rows estimate similarities without bias, [n dim], float32. A sample with zero
            gradient has zeros.
        norms: |g(x)|, over all outputs, [n], float64.
        ranks: rank of K(x, x), [n]; 1 or 0 for one output; for the flat normalization the number of outputs, or 0.
        outputs: the output function's values, [n c].
    """

    ids: tuple[Id, ...]
    values: Tensor
    norms: PerSample
    ranks: Tensor
    outputs: Outputs

    def __len__(self) -> int:
        return len(self.ids)


def sketch(
    kernel: GradientKernel,
    x: Inputs | Batch,
    dim: int,
    *,
    seed: int = 0,
    normalization: Normalization = "whitened",
) -> Sketch:
    """Random projections of the unit gradients of one batch: their inner products are its similarities, on average.

    The error of an estimate has a standard deviation of sqrt((1 + k^2) / dim) for a similarity k, over seeds. The
    projection depends on the seed, the names and shapes of parameters and the number of an output alone: sketches of
    one network can be compared whatever batch, device or process they were made in.

    Args:
        kernel: the gradient kernel of the network.
        x: inputs of n samples, worked on in batches that fit in the kernel's `max_bytes`.
        dim: numbers a sample.
        seed: of the projection.
        normalization: 'whitened' or 'flat' similarity.

    Returns:
        `Sketch`, [n dim].

    Raises:
        InputError: dim is below 1.
        UnknownNameError: there is no such normalization.
        NonFiniteError: nan or inf in outputs or gradients, with the samples' ids.

    Example:
        >>> kernel = GradientKernel(torch.nn.Linear(3, 1))
        >>> x = torch.eye(3)
        >>> values = sketch(kernel, x, 4096).values
        >>> (values @ values.T - kernel.similarity(x)).abs().max() < 0.1
        tensor(True)

    Reference:
        Charikar, Chen, Farach-Colton (2002), "Finding frequent items in data streams".
    """
    check_kernel(kernel, normalization)
    check_dim(dim)
    batch = as_batch(x)
    size = kernel.block_size(batch)
    parts = [_of_batch(kernel, part, dim, seed, normalization) for part in batch.batches(size)]
    return parts[0] if len(parts) == 1 else _joined(parts)


def check_dim(dim: int) -> None:
    """Raise where no sketch has so many numbers.

    Raises:
        InputError: it is below 1, or above `MAX_DIM`.
    """
    if isinstance(dim, bool) or not isinstance(dim, Integral) or dim < 1:
        raise InputError(f"dim is {dim}: a sketch has a whole number of numbers, at least 1.")
    if dim > MAX_DIM:
        raise InputError(f"dim is {dim}: sketches have at most {MAX_DIM:,} numbers. Exact similarities cost less then.")


MAX_DIM = 2**20
"""Longest sketch: its similarities are off by 1e-3 to 2e-3."""


def dim_for(error: float) -> int:
    """The length of sketches whose similarities are off by less than `error`, root mean square: (2 / error)^2.

    Example:
        >>> dim_for(0.05)
        1600
    """
    _check_error(error)
    dim = math.ceil((2 / error) ** 2)
    if dim > MAX_DIM:
        raise InputError(
            f"error is {error}: sketches of at most {MAX_DIM:,} numbers are only sure to be off by less than "
            f"{2 / MAX_DIM**0.5:.1g}. Ask for that, or pass dim= yourself; similarities of the kernel are exact."
        )
    return dim


def _check_error(error: float) -> None:
    if not isinstance(error, Real) or not 0 < error < 2:
        raise InputError(f"error is {error!r}: similarities are in [-1, 1], so it has to be between 0 and 2.")


def measured_dim(
    kernel: GradientKernel, x: Inputs | Batch, error: float, *, seed: int = 0, normalization: Normalization = "whitened"
) -> int:
    """The same, going by how far sketches of some samples are off: shorter where gradients are spread out.

    Lengths are tried until one has the error that is asked for with this very seed, and one that is a third shorter
    could not: where few parameters matter, errors do not just fall as 1 / sqrt(dim), and seeds differ. Never more than
    `dim_for`.
    """
    batch = as_batch(x)
    _check_error(error)
    most = dim_for(max(error, 2 / MAX_DIM**0.5))
    if len(batch) < 3 or most <= STEP:
        return dim_for(error)
    truth = similarities(kernel, batch, normalization)
    dim, too_short = min(most, FIRST_DIM), 0
    while True:
        values = sketch(kernel, batch, dim, seed=seed, normalization=normalization).values
        ratio = MARGIN * error_of(values, truth)["inner"] / error
        needed = math.ceil(max(ratio**2, 0.25) * dim / STEP) * STEP  # a quarter at most, going by one length
        if ratio <= 1:
            needed = max(needed, too_short + STEP)
            if needed > dim / 1.5:
                return dim
        elif dim == most:
            return dim_for(error)
        else:
            too_short, needed = dim, max(needed, dim + STEP)
        dim = min(most, needed)


FIRST_DIM, STEP, MARGIN = 1024, 64, 1.1
"""Length of sketches that is tried first, what lengths are multiples of, and how much an error may be larger for other
samples."""


def error_of(values: Tensor, truth: Tensor) -> dict[str, float]:
    """How far similarities from sketches are off, over all pairs of samples.

    Args:
        values: sketches, [n dim].
        truth: similarities, [n n]; nan where there are none.

    Returns:
        Root mean square error of inner products (`inner`) and of cosines (`cosine`), both with their standard error
        over samples; and what that of inner products is for a dense projection, sqrt((1 + k^2) / dim) (`expected`).
    """
    values = values.double()
    units = values / values.norm(dim=1, keepdim=True).clamp(min=1e-300)
    pairs = ~torch.eye(len(values), dtype=torch.bool) & ~truth.isnan()
    found: dict[str, float] = {}
    for name, each in (("inner", values), ("cosine", units)):
        squares = torch.where(pairs, (each @ each.T - truth).square(), 0.0)
        mean = float(squares.sum()) / max(1, int(pairs.sum()))
        of_samples = squares.sum(dim=1) / pairs.sum(dim=1).clamp(min=1)
        spread = float(of_samples.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        found[name] = math.sqrt(mean)
        found[f"{name}_standard_error"] = spread / (2 * math.sqrt(mean)) if mean else 0.0
    squares = torch.where(pairs, truth.square(), 0.0)
    found["expected"] = math.sqrt((1 + float(squares.sum()) / max(1, int(pairs.sum()))) / values.shape[1])
    return found


def similarities(kernel: GradientKernel, batch: Batch, normalization: Normalization) -> Tensor:
    """The exact similarities of a batch; nan for samples with zero gradient, of which nothing is said. [n n]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroGradientWarning)
        found = kernel.similarity(batch) if normalization == "whitened" else kernel.flat_similarity(batch)
    return found.cpu()


def _of_batch(kernel: GradientKernel, batch: Batch, dim: int, seed: int, normalization: Normalization) -> Sketch:
    """Layer by layer where one number normalizes a gradient; else with all of its outputs' gradients at hand."""
    if normalization == "flat" or kernel.n_outputs == 1:
        own = _OwnSketch(seed, dim)
        outputs = kernel.hand_over(batch, own.take)
        if normalization == "flat" or outputs.shape[1] == 1:
            return own.normalized(batch, outputs)
    gradients = kernel.gradients(batch)
    by = kernel.normalizer(gradients, normalization)
    values = gradients.mix(by.mixing).within_range().sketch(dim, seed)
    return Sketch(batch.ids, values.float().cpu(), by.norms.cpu(), by.ranks.cpu(), gradients.outputs.cpu())


@dataclass(eq=False)
class _OwnSketch:
    """The sketch of gradients that come a parameter at a time, and their squared norms, in float64."""

    seed: int
    dim: int
    values: Tensor | None = None
    squares: Tensor | None = None

    @full_precision()
    def take(self, name: str, gradients: Gradients) -> None:
        """Add what the gradients over one parameter contribute."""
        gradients = gradients if gradients.is_moderate else gradients.double()
        values, squares = gradients.sketch_and_squares(Projection(self.seed, name, self.dim))
        self.values = in_float64(values) if self.values is None else add_in_float64(self.values, values)
        self.squares = squares if self.squares is None else self.squares + squares

    def normalized(self, batch: Batch, outputs: Outputs) -> Sketch:
        """What came so far, divided by its norms."""
        n, c = outputs.shape
        values = in_float64(outputs.new_zeros(n, self.dim)) if self.values is None else self.values
        squares = in_float64(outputs.new_zeros(n)) if self.squares is None else self.squares
        check_finite(squares, batch, "gradients")
        by = Normalizer.scaling(squares.sqrt(), c)
        assert by.scale is not None
        values = values * by.scale[:, None]
        return Sketch(batch.ids, values.float().cpu(), by.norms.cpu(), by.ranks.cpu(), outputs.detach().cpu())


def _joined(parts: list[Sketch]) -> Sketch:
    columns = [torch.cat([getattr(part, name) for part in parts]) for name in ("values", "norms", "ranks", "outputs")]
    return Sketch(tuple(id_ for part in parts for id_ in part.ids), *columns)
