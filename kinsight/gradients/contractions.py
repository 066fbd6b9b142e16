"""Inner products of factored gradients, on plain tensors.

Axis letters: n m samples, c d outputs, t s positions, g groups, i o features.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kinsight.errors import InputError

Form = Literal["trace", "diagonal", "blocks"]
"""What a Gram block keeps of each pair's [c d] block: its trace, its diagonal, or all of it."""

SCRATCH_BYTES = 8 * 2**20
"""Upper bound of a contraction's scratch memory: small enough to stay in caches, and to be given out again."""


Contraction = Literal["full", "bfloat16", "split"]
"""What large matrices of float32 numbers are multiplied in, where sums over a layer's weights are taken:

full: float32.
bfloat16: gradients (of layers used at one position: their factors) are rounded to 8 bits, products added up in float32;
    CPUs round the sums to 8 bits, too. Off by up to six roundings of 2^-8, 2.5e-2 of |g(x)| |g(y)|, if all go one way;
    mostly below 5e-3.
split: two such halves a number, three products of them: off by 1e-5, as emulated on a CPU. On CUDA, where
    products of bfloat16 matrices can be had in float32.
"""


def matrix_product(x: Tensor, y: Tensor, contraction: Contraction = "full", *, is_upper: bool = False) -> Tensor:
    """x y^T of matrices. [n p], [m p] -> [n m]. Where they are the same, little more than half of it is computed.

    Args:
        x, y: the matrices.
        contraction: what they are multiplied in.
        is_upper: then leave what is not computed as it is, whatever is there: `mirror_upper` fills it in.
    """
    if contraction == "full" or x.dtype != torch.float32:  # float64 is there for a reason
        return _product(x, y, is_upper=is_upper)
    if contraction == "bfloat16":
        rounded = x.bfloat16()
        return _product(rounded, rounded if are_one(x, y) else y.bfloat16(), is_upper=is_upper).float()
    high_x, high_y = x.bfloat16(), y.bfloat16()
    low_x, low_y = (x - high_x).bfloat16(), (y - high_y).bfloat16()
    return wide_product(high_x, high_y) + (wide_product(high_x, low_y) + wide_product(low_x, high_y))


def refuse_contraction(contraction: Contraction, device: torch.device) -> None:
    """Raise where a device does not have the products that a contraction is made of.

    Raises:
        InputError: it does not.
    """
    if contraction == "split" and device.type != "cuda":
        raise InputError(
            f"contraction='split' needs products of bfloat16 matrices with results in float32, which torch does not "
            f"have on {device.type}. Use contraction='full', or 'bfloat16' where errors of 2.5e-2 do no harm."
        )


def wide_product(x: Tensor, y: Tensor) -> Tensor:
    """x y^T of bfloat16 matrices, in float32."""
    refuse_contraction("split", x.device)
    return torch.mm(x, y.T, out_dtype=torch.float32)


def _product(x: Tensor, y: Tensor, *, is_upper: bool) -> Tensor:
    n = x.shape[0]
    if not are_one(x, y) or n < SYMMETRIC or x.requires_grad or y.requires_grad:
        return x @ y.T
    product = x.new_empty(n, n)
    step = _step(n)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        torch.mm(x[rows], x[start:].T, out=product[rows, start:])
    return product if is_upper else mirror_upper(product)


def _step(n: int) -> int:
    """Rows of a symmetric product of n that are computed at once."""
    return -(-n // max(2, min(8, n // 128)))


def are_one(x: Tensor, y: Tensor) -> bool:
    """Whether two matrices are the same piece of memory, read in the same way."""
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype


def mirror_upper(product: Tensor) -> Tensor:
    """Fill in what a symmetric product leaves out: what lies below the blocks on the diagonal. [n n]."""
    step = _step(len(product)) if len(product) >= SYMMETRIC else len(product)
    for start in range(step, product.shape[0], step):
        product[start : start + step, :start] = product[:start, start : start + step].T
    return product


SYMMETRIC = 128
"""Smallest number of samples for which a symmetric product is worth splitting into blocks."""


def position_gram(inputs: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor], form: Form) -> Tensor:
    """sum_ts (a_nt . b_ms)(g_nt . h_ms): factors stay factors. Of a batch with itself, pairs are computed once.

    Args:
        inputs: of both batches, [g n t i], or tokens [n t].
        gradients: of both batches, [n c t g o].
        form: what is kept of each pair's block.
    """
    is_same = inputs[0] is inputs[1] and gradients[0] is gradients[1] and form == "trace"
    is_same = is_same and not any(tensor.requires_grad for tensor in (*inputs, *gradients))
    inputs_x, inputs_y = inputs
    by_group = gradients[0].permute(3, 0, 2, 1, 4).contiguous()  # [g n t c o]
    gradients_x, gradients_y = by_group, by_group if is_same else gradients[1].permute(3, 0, 2, 1, 4)
    g, n, t, c, _ = gradients_x.shape
    m, s, d = gradients_y.shape[1:4]
    held = {"trace": 2, "diagonal": 1 + c, "blocks": 1 + c * d}[form]
    found = gradients_x.new_empty(n, m, *{"trace": (), "diagonal": (c,), "blocks": (c, d)}[form])
    for rows in chunks(n, 4 * g * m * t * s * held):
        columns = slice(rows.start if is_same else 0, m)
        place = (slice(None), columns) if inputs_y.dim() > 2 else columns
        products = _input_products(inputs_x[rows] if inputs_x.dim() == 2 else inputs_x[:, rows], inputs_y[place])
        found[rows, columns] = _paired(
            products.to(gradients_x.dtype), gradients_x[:, rows], gradients_y[:, columns], form
        )
        if is_same:
            found[columns, rows] = found[rows, columns].clone().T
    return found


def _input_products(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of inputs [g n t i] or equality of tokens [n t], at all pairs of positions. [g n t m s]."""
    if x.dim() == 2:
        return same_token(x[:, :, None, None], y)[None]
    product = torch.bmm(x.flatten(1, 2), y.flatten(1, 2).transpose(1, 2))
    return product.reshape(x.shape[0], -1, x.shape[2], *y.shape[1:3])


def _paired(products: Tensor, x: Tensor, y: Tensor, form: Form) -> Tensor:
    """Products of inputs [g n t m s] times those of output gradients [g n t c o], [g m s d o], over all positions."""
    if form == "trace":
        of_gradients = torch.bmm(x.flatten(3).flatten(1, 2), y.flatten(3).flatten(1, 2).transpose(1, 2))
        return (products * of_gradients.reshape(products.shape)).sum(dim=-1).sum(dim=(0, 2))
    if form == "diagonal":
        pairs = torch.einsum("gntco,gmsco->gntmsc", x, y)
        return torch.einsum("gntms,gntmsc->nmc", products, pairs)
    pairs = torch.einsum("gntco,gmsdo->gntmscd", x, y)
    return torch.einsum("gntms,gntmscd->nmcd", products, pairs)


def crossed_gram(x_inputs: Tensor, x_gradients: Tensor, tokens: Tensor, y_gradients: Tensor, form: Form) -> Tensor:
    """Gram block between two uses of a tied table: as the weight of a linear layer, and as an embedding.

    The layer's output gradient is read at the tokens, its input meets the embedding's output gradient.

    Args:
        x_inputs: the layer's, [n t i].
        x_gradients: the layer's output gradients, [n c t vocabulary].
        tokens: looked up, [m s].
        y_gradients: the embedding's output gradients, [m c s i].
        form: what is kept of each pair's block.
    """
    blocks = []
    seen = (tokens >= 0).to(x_gradients.dtype)
    m, s = tokens.shape
    n, t = x_inputs.shape[:2]
    outputs = {"trace": "nm", "diagonal": "nmc", "blocks": "nmcd"}[form]
    d = "d" if form == "blocks" else "c"
    for rows in chunks(n, 4 * t * m * s * (x_gradients.shape[1] + y_gradients.shape[1])):
        at_tokens = x_gradients[rows][..., tokens.clamp(min=0)] * seen
        met = torch.einsum(f"nti,m{d}si->nm{d}ts", x_inputs[rows], y_gradients)
        blocks.append(torch.einsum(f"nctms,nm{d}ts->{outputs}", at_tokens, met))
    return torch.cat(blocks)


@contextlib.contextmanager
def full_precision(*, keeps_autocast: bool = False) -> Iterator[None]:
    """Matrix products and convolutions of float32 numbers in float32: TF32 and its like are wrong by 1e-3.

    Args:
        keeps_autocast: leave on what the user has turned on, for the model itself.
    """
    before = torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        for device in () if keeps_autocast else ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, before)
        if torch.cuda.is_available() and torch.backends.cudnn.allow_tf32:
            benchmark, deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
            stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=torch.backends.cudnn.enabled,
                    benchmark=benchmark,
                    deterministic=deterministic,
                    allow_tf32=False,
                )
            )
        yield


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64; on the CPU where its device has no such numbers, as Apple's GPUs."""
    return tensor.to("cpu", torch.float64) if tensor.device.type == "mps" else tensor.double()


def add_in_float64(total: Tensor, part: Tensor) -> Tensor:
    """A float64 total plus a part of any precision, in one pass over both; the total may be written into."""
    return total.add_(part if part.device == total.device else part.to(total.device))


def norm_over(tensor: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Euclidean norm along axes, squares added up in float64: in float32 those of numbers below 1e-19 are 0."""
    tensor = torch.view_as_real(tensor).norm(dim=-1) if tensor.is_complex() else tensor
    precision = torch.float32 if tensor.device.type == "mps" else torch.float64
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dim, dtype=precision)
    return norms


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norms of rows, in float64. [n p] -> [n].

    Pieces of `PIECE` numbers in float32, whose rounding they keep below 1e-8, and those in float64: eight times as fast
    as all in float64. Where squares would leave the range of float32, all in float64 after all.
    """
    n, p = rows.shape
    if rows.dtype != torch.float32 or p < 2 * PIECE or rows.requires_grad:
        return norm_over(rows, 1)
    whole = p - p % PIECE
    pieces = torch.linalg.vector_norm(rows[:, :whole].reshape(n, -1, PIECE), dim=2)
    pieces = torch.cat([pieces, torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True)], dim=1)
    norms = norm_over(pieces, 1)
    is_safe = bool(((norms > SAFE_NORMS[0]) & (norms < SAFE_NORMS[1])).all())
    return norms if is_safe else norm_over(rows, 1)


def are_safe(norms: Tensor) -> bool:
    """Whether no norm but 0, nor its inverse, is near the ends of float32."""
    low, high = SAFE_NORMS
    return bool(((norms == 0) | ((norms > low) & (norms < high))).all())


PIECE = 256
"""Numbers whose squares are added up in float32."""

SAFE_NORMS = (1e-12, 1e12)
"""Norms between which squares of gradients are far from the ends of float32."""


def mixed(mixing: Tensor, values: Tensor) -> Tensor:
    """A linear map of the output axis. [n a c], [n c ...] -> [n a ...].

    In the precision of the map: whitening cancels much of nearly dependent outputs, and float32 would cancel too much.
    """
    flat = values.reshape(*values.shape[:2], math.prod(values.shape[2:]))
    mixing = mixing.to(flat) if flat.device.type == "mps" else mixing.to(flat.device)
    product = torch.bmm(mixing, flat.to(mixing.dtype)).to(values.dtype)
    return product.reshape(values.shape[0], mixing.shape[1], *values.shape[2:])


def combined(weights: Tensor, values: Tensor) -> Tensor:
    """sum_c weights[k, n, c] values[n, c, ...], k combinations of each sample's outputs. [n k ...]."""
    if weights.shape[0] == values.shape[1] == 1:
        return values * weights[0].reshape(-1, *(1,) * (values.dim() - 1))
    flat = values.reshape(*values.shape[:2], math.prod(values.shape[2:]))
    return torch.bmm(weights.transpose(0, 1), flat).reshape(len(flat), -1, *values.shape[2:])


def same_token(x: Tensor, y: Tensor) -> Tensor:
    """Whether two tokens are the same, and not padding (-1)."""
    return (x == y) & (x >= 0)


def self_product(x: Tensor) -> Tensor:
    """x x^T for each sample, in float64. [n c p] -> [n c c]."""
    found: Tensor = _SelfProduct.apply(x)  # type: ignore[no-untyped-call]
    return found


class _SelfProduct(torch.autograd.Function):
    """The same with a derivative in the precision of x: autograd's own would take several passes in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        n, c, p = x.shape
        if c == 1:
            return row_norms(x.detach()[:, 0]).square()[:, None, None]
        total = in_float64(x.new_zeros(n, c, c))
        for columns in chunks(p, 8 * n * c, DOUBLE_BYTES):
            part = in_float64(x[:, :, columns])
            total = torch.baddbmm(total, part, part.transpose(1, 2))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        both = (cotangent + cotangent.transpose(1, 2)).to(x)
        found: Tensor = x * both if x.shape[1] == 1 else torch.bmm(both, x)
        return found


DOUBLE_BYTES = 2 * 2**20
"""Size of what is converted to float64 at once: a third of the time of converting all of it first."""


def part_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    """tensor[start:stop]; itself where that is all of it: the derivative of a slice fills a tensor with zeros first."""
    return tensor if start == 0 and stop >= tensor.shape[0] else tensor[start:stop]


def in_memory_order(x: Tensor) -> Tensor:
    """The tensor with its axes in the order in which they lie in memory: some operations copy what is not so."""
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))


def mirrored(block: Tensor, form: Form) -> Tensor:
    """The Gram block of (y, x) from that of (x, y)."""
    return block.permute(1, 0, 3, 2) if form == "blocks" else block.transpose(0, 1)


def total_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def chunks(n: int, bytes_per_sample: int, max_bytes: int | None = None) -> Iterator[slice]:
    """Slices of 0..n whose scratch memory stays below a bound, `SCRATCH_BYTES`; one empty slice when n is 0."""
    step = max(1, (max_bytes or SCRATCH_BYTES) // max(1, bytes_per_sample))
    for start in range(0, max(n, 1), step):
        yield slice(start, min(start + step, n))
