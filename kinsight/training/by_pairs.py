"""The cost of single pairs, and its gradient: by Gram blocks, of each part of a batch with every part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinsight.gradients import Gradients, gram_block
from kinsight.gradients.built import Built
from kinsight.gradients.contractions import chunks, mixed
from kinsight.gradients.factored import Product
from kinsight.gradients.products import CACHED_BYTES
from kinsight.training.pairs import Pairing
from kinsight.training.parts import Cost, Enforced, Parts, both_ways, of_lengths
from kinsight.training.second_order import Term, UnitRows


def from_pairs(found: Enforced, parts: Parts, pairing: Pairing, cost: Cost, trained: list[nn.Parameter]) -> None:
    """By Gram blocks, of each part with every part."""
    found.n_apart = pairing.n_apart if cost.dissimilar_weight else 0
    similarity, excess = 0.0, 0.0
    for number, place in enumerate(parts.places):
        rows = parts.fixed(number)
        back, of_own = parts.back(number), torch.zeros_like(rows.own, requires_grad=False)
        for other in sorted(range(len(parts.places)), key=lambda other: other == number):  # itself in the end
            where = parts.places[other]
            columns = parts.fixed(other).detached()
            columns = columns.double() if rows.is_wide else columns  # weights of both are in the precision of columns
            block = rows.similarities(columns)
            values = block.detach()
            w = pairing.alike_weights(place, where).to(values) / max(1, found.n_alike)
            v = pairing.apart_weights(place, where).to(values) / found.n_apart if found.n_apart else 0 * w
            similarity += float((w * values).sum())
            excess += float((v * (values - cost.margin).clamp(min=0)).sum())
            if back is not None:
                slopes = 2 * (cost.dissimilar_weight * v * (values > cost.margin) - w)
                of_own += torch.autograd.grad((slopes * block).sum(), rows.own, retain_graph=True)[0]
                weights = slopes * rows.scale.detach().to(slopes)[:, None] * columns.scale.to(slopes)
                own = of_own if other == number else None
                back.add(OfPairs(rows, columns, weights, own, is_last=parts.is_whole))
        if back is not None:
            parts.drop(number)
            del rows, columns, block  # not looked at again
            found.add(back.over(trained))
    found.similarity = similarity if found.n_alike else float("nan")
    found.excess = excess if found.n_apart else float("nan")


class OfPairs(Term):
    """A sum over pairs of similarities times weights, and of what it is through K(x, x).

    Args:
        rows: the samples that are moved.
        columns: those that they are compared with.
        weights: of inner products, [n m].
        of_own: slopes over K(x, x), [n c c], where columns are the rows; None: not of this term.
        is_last: whether gradients that are multiplied out are used up: they are not looked at again.
    """

    def __init__(
        self, rows: UnitRows, columns: UnitRows, weights: Tensor, of_own: Tensor | None, *, is_last: bool
    ) -> None:
        self.mixing = None if rows.mixing is None else rows.mixing.detach()
        if self.mixing is None and of_own is not None:  # normalization sees the trace alone
            weights = weights + 2 * of_own[:, 0, 0].to(weights).diag()
            of_own = None
        self.others, self.weights, self.of_own = columns.gradients.by_parameter, weights, of_own
        self.used_up = [rows.gradients, columns.gradients] if is_last else []
        self.moved: set[str] = set()

    def concerns(self, name: str) -> bool:
        return name in self.others  # the columns may have taken other ways through the model

    def slopes(self, name: str, gradients: Product, which: slice) -> Tensor | None:
        others = self.others[name]
        if not isinstance(others, Built):
            return None
        found = self._moved(name, others.values, which).to(gradients.dtype)
        found = found if self.mixing is None else mixed(self.mixing[which].transpose(1, 2), found)
        return found if self.of_own is None else found + mixed(both_ways(self.of_own[which]), gradients.build())

    def _moved(self, name: str, values: Tensor, which: slice) -> Tensor:
        """Sums of all gradients times weights, for some samples; in place of the gradients, where they are used up."""
        weights, flat = self.weights.to(values), values.flatten(1)
        if not self.used_up or not values.is_contiguous():  # flat would be a copy
            return (weights[which] @ flat).view(-1, *values.shape[1:])
        if name not in self.moved:
            self.moved.add(name)
            for columns in chunks(flat.shape[1], flat.element_size() * len(flat), CACHED_BYTES):
                flat[:, columns] = weights @ flat[:, columns]
        return values[which]

    def let_go(self, name: str) -> None:
        for gradients in self.used_up:
            gradients.let_go(name)

    def share(self, name: str, gradients: Gradients, which: slice) -> Tensor:
        own = gradients.compact(is_eager=True)
        block = gram_block(own if self.mixing is None else own.mix(self.mixing[which]), self.others[name], "trace")
        found = (block * self.weights[which].to(block)).sum()
        return found if self.of_own is None else found + of_lengths(own, self.of_own[which])
