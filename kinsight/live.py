"""How much memory tensors take while something runs."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextlib.contextmanager
def peak_bytes(device: torch.device, known: Iterable[Tensor]) -> Iterator[list[int]]:
    """The most bytes of tensors that are alive at once inside, beyond those before, as the only element of a list.

    On CUDA devices the allocator counts; elsewhere every operation's results are watched, until they are freed.

    Args:
        device: where the tensors lie.
        known: tensors from before that operations may return again, as views: parameters, buffers, inputs.
    """
    found = [0]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found[0] = torch.cuda.max_memory_allocated(device) - before
        return
    with _Watch(known) as watch:
        yield found
    found[0] = watch.peak


class _Watch(TorchDispatchMode):
    """Adds up the storages that operations return, and takes off those that are freed."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.sizes: dict[int, int] = {}
        self.before = [tensor.untyped_storage() for tensor in known]  # held: their places are not given out again
        for storage in self.before:
            self.sizes[storage._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._note(leaf.untyped_storage())
        return returned

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.sizes:
            return
        self.sizes[storage._cdata] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, storage: int) -> None:
        self.live -= self.sizes.pop(storage)
