"""A batch in parts whose gradients fit in memory, and what is found out about its pairs."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from kinsight.batches import Batch
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.gradients import Gradients
from kinsight.kernel import GradientKernel
from kinsight.normalization import Normalization
from kinsight.training.second_order import PullBack, UnitRows, without_graph


@dataclass(frozen=True)
class Cost:
    """What pairs cost: 1 - mean similarity of those that are alike, and the mean excess of those that are apart.

    Args:
        dissimilar_weight: of pairs that are apart; 0 does not look at them.
        margin: similarity up to which they cost nothing.
    """

    dissimilar_weight: float = 0.0
    margin: float = 0.0


@dataclass(eq=False)
class Enforced:
    """What was seen of a batch, and the gradient of what its pairs cost.

    Args:
        gradients: over the parameters that are trained, as far as it has any.
        similarity: sum over pairs that are alike, in the end their mean; nan where there are none.
        excess: the same of max(0, similarity - margin) over those that are apart.
        n_alike, n_apart: pairs.
        undefined: positions of samples that were left out, since their gradient is zero.
    """

    gradients: list[Tensor | None]
    similarity: float = float("nan")
    excess: float = float("nan")
    n_alike: int = 0
    n_apart: int = 0
    undefined: list[int] = field(default_factory=list)

    def add(self, found: list[Tensor | None]) -> None:
        """The gradient of a term of the cost."""
        for place, part in enumerate(found):
            known = self.gradients[place]
            if part is not None:
                self.gradients[place] = part if known is None else known + part


@dataclass(eq=False)
class Parts:
    """A batch in parts whose gradients fit in memory: with their graph, or fixed.

    Args:
        kernel: makes gradients.
        batch: all samples.
        normalization: what makes them unit gradients.
        trained: the parameters that are moved; none: nothing has a graph.
    """

    kernel: GradientKernel
    batch: Batch
    normalization: Normalization
    trained: list[nn.Parameter]
    kept: dict[int, UnitRows] = field(default_factory=dict)
    wide: set[int] = field(default_factory=set)  # parts that leave the range of float32
    only: BatchGradients | None = None
    n_bytes: int = 0

    def __post_init__(self) -> None:
        n = len(self.batch)
        size = max(1, min(n, self.kernel.block_size(self.batch)))
        self.places = [slice(start, min(start + size, n)) for start in range(0, n, size)]

    @property
    def is_whole(self) -> bool:
        """Whether one part is the whole batch."""
        return len(self.places) == 1

    def graphed(self, number: int) -> BatchGradients:
        """One part with its graph; made anew each time, where it is not the only one."""
        if not self.is_whole:
            found = self._made(number, is_differentiable=True)
        else:
            found = self.only = self.only or self._made(0, is_differentiable=True)
        return found.double() if number in self.wide else found

    def fixed(self, number: int) -> UnitRows:
        """One part without a graph; kept as far as there is room."""
        if number in self.kept:
            return self.kept[number]
        if self.is_whole and self.trained:
            gradients = without_graph(self.graphed(0))
        else:
            gradients = self._made(number, is_differentiable=False)
        gradients = gradients.compact(is_eager=True)  # once, for many inner products
        found = UnitRows.of(gradients, self.normalization, self.kernel.precision, is_followed=bool(self.trained))
        if found.is_wide:
            self.wide.add(number)
        n_bytes = found.gradients.n_bytes
        if self.n_bytes + n_bytes <= self.kernel.max_bytes or self.is_whole:
            self.kept[number] = found
            self.n_bytes += n_bytes
        return found

    def drop(self, number: int) -> None:
        """Forget a part, if it is the only one."""
        if self.is_whole:
            self.kept.pop(number)
            self.only = None

    def back(self, number: int) -> PullBack | None:
        """What takes the cost of a part back to parameters; None where none are trained."""
        return PullBack(self.graphed(number)) if self.trained else None

    def _made(self, number: int, *, is_differentiable: bool) -> BatchGradients:
        return self.kernel.gradients(self.batch[self.places[number]], is_differentiable=is_differentiable)


def both_ways(slopes: Tensor) -> Tensor:
    """Slopes over K(x, x) as the map of gradients that they are: d tr(A g g^T) = (A + A^T) g."""
    return slopes + slopes.transpose(1, 2)


def of_lengths(gradients: Gradients, slopes: Tensor) -> Tensor:
    """A parameter's share of a cost that depends on K(x, x), [n c c]."""
    own = gradients.self_blocks()
    return (own * slopes.to(own)).sum()
