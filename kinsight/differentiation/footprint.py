"""Memory that one sample takes while it is worked on, measured on a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kinsight.batches import Batch
from kinsight.differentiation.batch_gradients import BatchGradients
from kinsight.differentiation.differentiate import Differentiator

MOST = 1024
"""Largest number of samples in one pass: beyond, nothing gets faster."""

RESERVE_BYTES = 256 * 2**20
"""Held back of large bounds on memory, for gradients that only pass through and for what operators take themselves."""


@dataclass(frozen=True)
class Footprint:
    """Bytes a sample takes.

    Args:
        graph: what autograd saves in the forward pass.
        captured: the gradients as they are captured, of all outputs; what autograd saved anyhow counts again.
        compact: the gradients in the form in which they meet many others fastest.
        n_outputs: outputs of a sample.
    """

    graph: float
    captured: float
    compact: float
    n_outputs: int

    def batch_size(self, n: int, max_bytes: int) -> int:
        """Samples in one pass: all where they fit at once, else as many as fit in a third, beside those that are kept.

        Args:
            n: number of samples.
            max_bytes: bound on the memory in use.
        """
        room = max(max_bytes // 2, max_bytes - RESERVE_BYTES)
        each = max(1.0, self.graph + self.captured)
        fits = int(room // each)
        return min(MOST, max(1, n)) if n <= fits else min(MOST, max(1, fits // 3))

    def is_eager(self, n: int, batch_size: int, max_bytes: int) -> bool:
        """Whether compact gradients of n samples can be kept, and those of a batch beside them."""
        return self.compact * n <= max_bytes // 2 and self.compact * batch_size <= max_bytes // 4


def measure(differentiate: Differentiator, batch: Batch) -> Footprint:
    """What the samples of a batch take, each."""
    gradients: BatchGradients = differentiate(batch)
    held: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in differentiate.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    run = batch[[0, 0]] if len(batch) == 1 else batch  # some models squeeze the axis of one sample away
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept_alive = differentiate.forward(run)
    graph = sum(held.values()) / len(run)
    del kept_alive
    n = len(batch)
    compact = gradients.compact(is_eager=True)
    return Footprint(graph, gradients.n_bytes / n, compact.n_bytes / n, gradients.n_outputs)
