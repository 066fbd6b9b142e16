"""Every pair of samples, block by block, in bounded memory.

Rows are held in groups as large as memory allows; each group meets the columns in one pass over them. When rows and
columns are the same samples, each unordered pair of batches is worked on once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from torch import Tensor

from kinsight.errors import EmptyDataError
from kinsight.samples import Batch, Samples


@runtime_checkable
class Kept(Protocol):
    """Something that knows the memory it holds, and the form that is best kept."""

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        ...

    def compact(self, *, is_eager: bool) -> Any:
        """The form that is best kept for meeting many others; `is_eager`: also where it takes more memory."""
        ...


Prepared = TypeVar("Prepared", bound=Kept)


Source: TypeAlias = Samples | Batch
"""What gives its samples in batches, in the same order every time."""


def batches(source: Source, batch_size: int) -> Iterator[Batch]:
    """The samples of a source, at most `batch_size` at a time."""
    if isinstance(source, Samples):
        yield from source.batches(batch_size)
    else:
        for start in range(0, len(source), batch_size):
            yield source[start : start + batch_size]


Pairs: TypeAlias = Callable[["Tensor | None"], Iterator[tuple[slice, slice, Tensor]]]
"""Similarities of some rows of a data set, or of all (None), with all of it: (rows, columns, block) block by block."""


@dataclass(frozen=True)
class Block(Generic[Prepared]):
    """A batch made ready, and where it lies among all samples."""

    start: int
    stop: int
    content: Prepared

    @property
    def places(self) -> slice:
        """Rows or columns it stands for."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Blocks(Generic[Prepared]):
    """A source, made ready batch by batch, as often as it is asked.

    Args:
        source: the samples.
        prepare: what is done to a batch.
        batch_size: samples a batch.
    """

    source: Source
    prepare: Callable[[Batch], Prepared]
    batch_size: int
    is_eager: bool = True

    def __iter__(self) -> Iterator[Block[Prepared]]:
        return self.starting_at(0)

    def starting_at(self, place: int) -> Iterator[Block[Prepared]]:
        """The blocks from sample `place` on; it must be where a block starts."""
        start = 0
        for batch in batches(self.source, self.batch_size):
            stop = start + len(batch)
            if start >= place:
                yield Block(start, stop, self.prepare(batch))
            start = stop

    @property
    def is_one(self) -> bool:
        """Whether all samples are in one batch."""
        return len(self.source) <= self.batch_size

    def groups(self, max_bytes: int) -> Iterator[list[Block[Prepared]]]:
        """Consecutive blocks to be kept, as many at a time as fit in `max_bytes` (at least one)."""
        group: list[Block[Prepared]] = []
        held = 0
        for block in self:
            kept = self.compacted(block)
            size = kept.content.n_bytes
            if group and held + size > max_bytes:
                yield group
                group, held = [], 0
            group.append(kept)
            held += size
            del block, kept  # or they would stay while the next one is made
        if group:
            yield group

    def compacted(self, block: Block[Prepared]) -> Block[Prepared]:
        """The block in the form that is best kept."""
        content: Prepared = block.content.compact(is_eager=self.is_eager)
        return Block(block.start, block.stop, content)


def pair_blocks(
    rows: Blocks[Prepared],
    columns: Blocks[Prepared],
    combine: Callable[[Prepared, Prepared], Tensor],
    *,
    max_bytes: int,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, block) for every pair of batches of two sources."""
    if rows.is_one and columns.is_one:
        for row, column in zip(rows, columns, strict=False):
            yield row.places, column.places, combine(row.content, column.content)
        return
    for group in rows.groups(max_bytes):
        for column in columns:
            yield from _row_pairs(group, column, columns, combine)
            del column


def _row_pairs(
    group: list[Block[Prepared]],
    column: Block[Prepared],
    columns: Blocks[Prepared],
    combine: Callable[[Prepared, Prepared], Tensor],
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, block) for one column batch and the rows held; what it meets once is not made compact."""
    met = columns.compacted(column) if len(group) > 1 else column
    for row in group:
        yield row.places, met.places, combine(row.content, met.content)


def symmetric_pair_blocks(
    rows: Blocks[Prepared],
    combine: Callable[[Prepared, Prepared], Tensor],
    mirror: Callable[[Tensor], Tensor],
    *,
    max_bytes: int,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, block) for every pair of batches of one source; half of the blocks are mirrored, not computed."""
    if rows.is_one:
        for row in rows:
            yield row.places, row.places, combine(row.content, row.content)
        return
    for group in rows.groups(max_bytes):
        for place, row in enumerate(group):
            for column in group[place:]:
                yield from _both_ways(row, column, combine, mirror)
        if group[-1].stop < len(rows.source):
            for column in rows.starting_at(group[-1].stop):
                met = rows.compacted(column) if len(group) > 1 else column
                for row in group:
                    yield from _both_ways(row, met, combine, mirror)
                del column, met


def _both_ways(
    row: Block[Prepared],
    column: Block[Prepared],
    combine: Callable[[Prepared, Prepared], Tensor],
    mirror: Callable[[Tensor], Tensor],
) -> Iterator[tuple[slice, slice, Tensor]]:
    block = combine(row.content, column.content)
    yield row.places, column.places, block
    if row.start != column.start:
        yield column.places, row.places, mirror(block)


def filled(n: int, m: int, pairs: Iterator[tuple[slice, slice, Tensor]]) -> Tensor:
    """All blocks in their places, [n m ...]; a single one as it is.

    Raises:
        EmptyDataError: there is none.
    """
    whole: Tensor | None = None
    for rows, columns, block in pairs:
        if whole is None:
            whole = block if block.shape[:2] == (n, m) else block.new_empty(n, m, *block.shape[2:])
        if whole is not block:
            whole[rows, columns] = block
    if whole is None:
        raise EmptyDataError(f"There are {n} x {m} samples: nothing to compare.")
    return whole
