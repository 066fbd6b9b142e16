"""What one process does for an index: read the samples of a shard, sketch them, write their rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from kinsight.errors import ChangedDataError
from kinsight.identity import check_identity, content_digests
from kinsight.indexing.rows import MAX_PREVIEW_NUMBERS, ROWS, as_table, ids_of
from kinsight.indexing.store import Store
from kinsight.kernel import GradientKernel
from kinsight.samples import Batch, Samples
from kinsight.sketch import sketch


@dataclass(frozen=True)
class Shard:
    """Some samples of a data set that are committed together.

    Args:
        start: the first of them.
        n: how many.
        is_committed: whether they are in the index already.
    """

    start: int
    n: int
    is_committed: bool


Result: TypeAlias = tuple[Shard, list[dict[str, Any]]]
"""A shard, and the files that were written for it, as `Store.adopt` takes them; none where it is committed."""


class Worker:
    """Does one shard after another of one data set; several of them can do so at once, in any order.

    What it writes is not committed: that is left to the one process that may.

    Args:
        store: the index.
        kernel: of the network it is built with.
        samples: the data.
        number: which part of the index it is.
        n_committed: samples of the data that are in the index already.
    """

    def __init__(self, store: Store, kernel: GradientKernel, samples: Samples, number: int, n_committed: int) -> None:
        self.store, self.kernel, self.samples = store, kernel, samples
        self.number, self.n_committed = number, n_committed
        part = store.about["parts"][number]
        self.first_row, self.n, self.size = part["first"], part["n"], part["shard_size"]
        if n_committed % self.size and n_committed != self.n:
            raise ChangedDataError(
                f"The index ends within a shard of {self.size} samples, at sample {n_committed} of {self.n}. It was "
                "built by something else: build it anew."
            )

    @classmethod
    def open(cls, folder: Path, kernel: GradientKernel, samples: Samples, number: int, n_committed: int) -> Worker:
        """The same in a process that only reads the index, and writes files that it does not name yet.

        Raises:
            WrongModelError: the index was built with another kernel.
        """
        store = Store.open(folder)
        check_identity(kernel, store.about["kernel"], f"Index {str(folder)!r}")
        return cls(store, kernel, samples, number, n_committed)

    @property
    def shards(self) -> list[Shard]:
        """All there are, in order."""
        starts = range(0, self.n, self.size)
        return [Shard(start, min(self.size, self.n - start), start < self.n_committed) for start in starts]

    def read(self) -> Iterator[tuple[Shard, Batch]]:
        """Every shard with its samples, which are read from front to back."""
        return zip(self.shards, self.samples.batches(self.size), strict=True)

    def take(self, shard: Shard) -> Batch:
        """The samples of one shard."""
        return self.samples.take(range(shard.start, shard.start + shard.n))

    def __call__(self, shard: Shard, batch: Batch) -> list[dict[str, Any]]:
        """Write the rows of a shard; of a committed one, check that its samples are still the same.

        Returns:
            The files that were written, for `Store.adopt`; none where they are committed.

        Raises:
            ChangedDataError: the samples are not those that are committed.
            NonFiniteError: nan or inf in outputs or gradients, with the samples' ids.
            IndexWriteError: the files cannot be written.
        """
        contents = content_digests(batch)
        if shard.is_committed:
            self._check(shard, batch, contents)
            return []
        return self.store.write(ROWS, self._rows(shard, batch, contents))

    def _rows(self, shard: Shard, batch: Batch, contents: list[bytes]) -> Any:
        about = self.store.about
        found = sketch(self.kernel, batch, about["dim"], seed=about["seed"], normalization=about["normalization"])
        previews: list[Any] = [None] * len(batch)
        if about["has_previews"]:
            shown = self.samples.previews(batch, range(shard.start, shard.start + shard.n))
            previews = [each if each is not None else _small(batch, row) for row, each in enumerate(shown)]
        return as_table(found, self.first_row + shard.start, contents, batch.targets, previews)

    def _check(self, shard: Shard, batch: Batch, contents: list[bytes]) -> None:
        first = self.first_row + shard.start
        known = self.store.slice(ROWS, first, first + shard.n, ["id", "is_number", "content"])
        ids = ids_of(known["id"].to_pylist(), known["is_number"].to_pylist())
        stored = zip(ids, known["content"].to_pylist(), strict=True)
        found = zip(batch.ids, contents, strict=True)
        for place, (was, now) in enumerate(zip(stored, found, strict=True), shard.start):
            if was != now:
                what = f"({now[0]!r}) has another input or target"
                if was[0] != now[0]:
                    what = f"has the id {now[0]!r} instead of {was[0]!r}"
                raise ChangedDataError(
                    f"The data has changed since the index was built: the sample at position {place} {what}. Rows of "
                    "different data in one index would be mixed up. Pass the same data in the same order, or build a "
                    "new index with overwrite=True."
                )


def _small(batch: Batch, row: int) -> Tensor | None:
    """A sample's input where it is a few numbers."""
    inputs = batch.inputs
    return inputs[row] if isinstance(inputs, Tensor) and inputs[row].numel() <= MAX_PREVIEW_NUMBERS else None
