"""One small data set in several forms, for tests of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

N = 11
X = torch.arange(N * 6, dtype=torch.float32).view(N, 2, 3)
Y = torch.arange(N) % 4


class Items(Dataset[Any]):
    """A map-style Dataset; counts how often each item is read."""

    def __init__(self, item: Callable[[int], Any], n: int = N) -> None:
        self.item, self.n = item, n
        self.n_reads = [0] * n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        self.n_reads[i] += 1
        return self.item(i)


class Flow(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


class NotADataset:
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return X[i], int(Y[i])


def pairs() -> TensorDataset:
    return TensorDataset(X, Y)
