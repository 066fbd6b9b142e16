"""Gram blocks: inner products of the gradients of two batches over one parameter, whatever their forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kinsight.gradients.base import Gradients
from kinsight.gradients.built import Built
from kinsight.gradients.contractions import (
    Contraction,
    Form,
    add_in_float64,
    are_one,
    chunks,
    crossed_gram,
    matrix_product,
    mirrored,
    position_gram,
    total_of,
)
from kinsight.gradients.costs import PASSING_BYTES, is_gram_built
from kinsight.gradients.factored import Factored, Product
from kinsight.gradients.looked_up import LookedUp
from kinsight.gradients.scratch import Scratch
from kinsight.gradients.summed import Summed


@dataclass(eq=False)
class Products:
    """What one Gram block of many parameters shares from one to the next.

    Args:
        factors, value: the last product of two matrices: a layer's weight and bias both need that of its output
            gradients.
        scratch: memory for gradients that only pass through.
        contraction: what matrices are multiplied in.
        is_upper: whether products of a matrix with itself are yet to be mirrored (`contractions.mirror_upper`): once,
            where many are added up.
    """

    factors: tuple[Tensor, Tensor] | None = None
    value: Tensor | None = None
    scratch: Scratch = field(default_factory=Scratch)
    contraction: Contraction = "full"
    is_upper: bool = False

    def of(self, x: Tensor, y: Tensor) -> Tensor:
        """x y^T of matrices [n p] and [m p]. [n m]. Not to be written into."""
        known = self.factors is not None and are_one(self.factors[0], x) and are_one(self.factors[1], y)
        if self.value is None or not known:
            # the factors are held: what is freed may lie elsewhere anew
            self.factors, self.value = (x, y), self.multiply(x, y)
        return self.value

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        """The same, not remembered, to be written into at will."""
        return matrix_product(x, y, self.contraction, is_upper=self.is_upper)


def add_gram_block(total: Tensor, x: Gradients, y: Gradients, form: Form, products: Products) -> Tensor:
    """A float64 total plus the Gram block of one parameter; the total may be written into.

    All pairs of outputs of a layer used at one position are the products of its output gradients, times those of its
    inputs: added to the total as they are multiplied, a few samples at a time.
    """
    is_plain = form == "blocks" and x.dtype == y.dtype and not (x.is_differentiated or y.is_differentiated)
    if not is_plain or total.device != x.tensors[0].device:
        return add_in_float64(total, gram_block(x, y, form, products))
    inputs: Tensor | None = None
    if isinstance(x, Built) and isinstance(y, Built):
        pairs = _all_pairs(x.flat, y.flat, products.of)
    elif isinstance(x, Factored) and isinstance(y, Factored) and _fit(x, y) and x.sizes.t * y.sizes.t * x.sizes.g == 1:
        inputs = products.multiply(x.inputs.flatten(1), y.inputs.flatten(1))[:, :, None, None]
        pairs = _all_pairs(x.output_gradients.flatten(2), y.output_gradients.flatten(2), products.of)
    else:
        pairs = gram_block(x, y, form, products)
    for rows in chunks(x.n, 4 * pairs[0].numel(), CACHED_BYTES):
        total[rows] += pairs[rows] if inputs is None else pairs[rows] * inputs[rows]
    return total


CACHED_BYTES = 2**20
"""Largest size of what is read again at once."""


def gram_block(x: Gradients, y: Gradients, form: Form, products: Products | None = None) -> Tensor:
    """Inner products of the gradients of two batches over one parameter.

    Args:
        x: of one batch, n samples of c outputs.
        y: of another, m samples of d outputs.
        form: what is kept of each pair's [c d] block.
        products: remembers products from one parameter to the next.

    Returns:
        [n m] (trace), [n m c] (diagonal) or [n m c d] (blocks).
    """
    products = Products() if products is None else products
    if x.dtype != y.dtype:  # one of them was too large or too small for float32
        x, y = x.double(), y.double()
    if isinstance(x, Summed) or isinstance(y, Summed):
        if isinstance(x, Built) or isinstance(y, Built):
            return _row_by_row(x, y, form, products)
        parts_x = x.parts if isinstance(x, Summed) else (x,)
        parts_y = y.parts if isinstance(y, Summed) else (y,)
        return total_of([gram_block(a, b, form, products) for a in parts_x for b in parts_y])
    if isinstance(x, LookedUp) and isinstance(y, LookedUp):
        gradients = (x.output_gradients.unsqueeze(3), y.output_gradients.unsqueeze(3))
        return _checked(position_gram((x.tokens, y.tokens), gradients, form), x, y, form)
    if isinstance(x, LookedUp) and isinstance(y, Product) and y.gradient_first and y.sizes.g == 1:
        return mirrored(gram_block(y, x, form, products), form)
    if isinstance(x, Product) and isinstance(y, LookedUp) and x.gradient_first and x.sizes.g == 1:
        layer = x.factored()
        factors = layer.inputs[:, :, 0], layer.output_gradients[:, :, :, 0]
        return _checked(crossed_gram(*factors, y.tokens, y.output_gradients, form), layer, y, form)
    if isinstance(x, Product) and isinstance(y, Product) and _fit(x, y):
        return _of_products(x, y, form, products)
    if isinstance(x, Built) and isinstance(y, Built):
        if form == "trace":
            return products.of(x.values.flatten(1), y.values.flatten(1))
        return _of_built(x.values, y.values, form, products)
    return _row_by_row(x, y, form, products)


def _fit(x: Product, y: Product) -> bool:
    """Whether factors meet factors: a weight may be used whole here, in groups or as a matrix there."""
    a, b = x.sizes, y.sizes
    return x.gradient_first == y.gradient_first and (a.g, a.i, a.o, x.n_parts) == (b.g, b.i, b.o, y.n_parts)


def _row_by_row(x: Gradients, y: Gradients, form: Form, products: Products) -> Tensor:
    """Gram block of gradients of which not both are built, as many samples at a time as fit in `PASSING_BYTES`."""
    if isinstance(y, Built):
        size = x.tensors[0].element_size() * x.c * math.prod(x.shape)
        parts = (x.rows(r.start, r.stop).build() for r in chunks(x.n, size, PASSING_BYTES))
        return torch.cat([_of_built(part, y.values, form, products) for part in parts])
    if isinstance(x, Built):
        return mirrored(_row_by_row(y, x, form, products), form)
    return _row_by_row(x, Built(y.build()), form, products)


def _of_products(x: Product, y: Product, form: Form, products: Products) -> Tensor:
    a, b = x.sizes, y.sizes
    n_pairs = b.c if form == "blocks" else 0
    is_built = is_gram_built(n=x.n, m=0 if x is y else y.n, t=a.t, s=b.t, g=a.g, i=a.i, o=a.o, c=a.c, d=n_pairs)
    if is_built:
        return _part_by_part(x, y, form, products)
    layer_x = x.factored()
    layer_y = layer_x if x is y else y.factored()
    if a.t == b.t == a.g == 1 and form == "trace":
        inputs = products.multiply(layer_x.inputs.flatten(1), layer_y.inputs.flatten(1))
        gradients = products.of(layer_x.output_gradients.flatten(1), layer_y.output_gradients.flatten(1))
        return inputs * gradients if inputs.requires_grad or gradients.requires_grad else inputs.mul_(gradients)
    by_group = layer_x.inputs.permute(2, 0, 1, 3).contiguous()
    both = (by_group, by_group if x is y else layer_y.inputs.permute(2, 0, 1, 3))
    block = position_gram(both, (layer_x.output_gradients, layer_y.output_gradients), form)
    return _checked(block, layer_x, layer_y, form)


def _checked(block: Tensor, x: Gradients, y: Gradients, form: Form) -> Tensor:
    """A float32 Gram block from factors; in float64 after all where too much of the sums over positions cancels.

    A block from factors adds up products of all pairs of positions: their rounding is relative to `bound`s, of which
    the norms may be a small part. What one backward pass cancels once is cancelled twice there.
    """
    if x.dtype != torch.float32 or x.tensors[0].device.type == "mps":
        return block
    is_own = x is y and form == "trace"
    left = [_left(x, block.diagonal())] * 2 if is_own else [_left(each) for each in (x, y)]
    if left[0] * left[1] * MOST_ROUNDED > torch.finfo(torch.float32).eps:
        return block
    wide = x.double()
    return gram_block(wide, wide if x is y else y.double(), form)


def _left(x: Gradients, squares: Tensor | None = None) -> float:
    """Smallest part of the terms of a sum that the sum is, over samples that have any; their squared norms, [n]."""
    if squares is None:
        squares = x.self_blocks().diagonal(dim1=1, dim2=2).sum(dim=1)
    bounds = (x.rough_bound() if isinstance(x, Factored) else x.bound()).detach()
    parts = squares.detach().clamp(min=0).double().sqrt() / bounds
    return float(parts[bounds > 0].min()) if bool((bounds > 0).any()) else 1.0


MOST_ROUNDED = 1e-4
"""Rounding error of inner products, relative to the norms, that is taken from float32."""


def _part_by_part(x: Product, y: Product, form: Form, products: Products) -> Tensor:
    """Gram block of built gradients, as many parts of the parameter at a time as fit in `PASSING_BYTES`."""
    is_followed = x.is_differentiated or y.is_differentiated
    s, n_parts = x.sizes, x.n_parts
    element = x.tensors[0].element_size()
    size = element * s.g * s.i * s.o * (x.n * s.c + (0 if x is y else y.n * y.sizes.c)) // n_parts
    step = max(1, PASSING_BYTES // max(1, size))
    total: Tensor | None = None
    for start in range(0, n_parts, step):
        stop = min(n_parts, start + step)
        is_whole = step >= n_parts
        part_x = x if is_whole else x.narrow(start, stop)
        part_y = part_x if x is y else y if is_whole else y.narrow(start, stop)
        if is_followed:  # autograd keeps what is multiplied
            values = part_x.build().flatten(2)
            others = values if x is y else part_y.build().flatten(2)
        else:
            values = part_x.multiplied(products.scratch, "rows")
            others = values if x is y else part_y.multiplied(products.scratch, "columns")
        part = _of_built(values, others, form, products)
        total = part if total is None else total + part
    assert total is not None
    return total


def _of_built(x: Tensor, y: Tensor, form: Form, products: Products) -> Tensor:
    """Gram block of built gradients [n c *shape], [m d *shape]."""
    if form == "trace":
        return products.multiply(x.flatten(1), y.flatten(1))
    x, y = (values.reshape(*values.shape[:2], math.prod(values.shape[2:])) for values in (x, y))
    if form == "diagonal":
        return torch.bmm(x.transpose(0, 1), y.permute(1, 2, 0)).permute(1, 2, 0)
    return _all_pairs(x, y, products.multiply)


def _all_pairs(x: Tensor, y: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Inner products of all outputs, [n c p], [m d p] -> [n m c d], which lie in memory as [n c m d]."""
    pairs = product(x.flatten(0, 1), y.flatten(0, 1))
    return pairs.view(x.shape[0], x.shape[1], y.shape[0], y.shape[1]).transpose(1, 2)
