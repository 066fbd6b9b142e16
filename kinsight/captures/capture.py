"""What one batch left behind at every use of every parameter: all that a layer rule sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kinsight.captures.graph import Use
from kinsight.captures.layouts import Layout
from kinsight.captures.nodes import output_shape, widen


@dataclass(frozen=True, eq=False)
class LayerCapture:
    """What one batch left at one use of a weight: all a layer rule sees.

    Args:
        use: the graph's node and the operand that the weight is.
        layout: where the samples lie in the node's output.
        output_gradients: gradients of c outputs at the node's output, samples first: [n c ...].
        keeps_bounds: whether rules also work out `Gradients.bound` (only the proof of coverage asks).
        values: what autograd saved, by name, where it was read before; else the node is asked.
    """

    use: Use
    layout: Layout
    output_gradients: Tensor
    is_differentiable: bool = False
    keeps_bounds: bool = False
    values: Mapping[str, Any] | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.layout.n

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the node's output, as the model had it."""
        return output_shape(self.use.node)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight, as the node took it."""
        return self.use.weight_shape

    def saved(self, name: str) -> Any:
        """What autograd saved under a name; tensors in the precision gradients are computed in."""
        value = getattr(self.use.node, f"_saved_{name}") if self.values is None else self.values[name]
        if isinstance(value, Tensor):
            value = value if self.is_differentiable else value.detach()
            return widen(value)
        return value

    def saved_samples(self, name: str) -> Tensor:
        """A saved tensor laid out like the node's output, samples first: [n ...]."""
        return self.layout.split(self.saved(name))


Rule = Callable[[LayerCapture], Any]
"""A layer rule: from a capture to the gradients over its weight, or None where it does not apply."""
