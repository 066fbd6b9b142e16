"""Every pair of samples, block by block, in bounded memory.

Rows are held in groups as large as memory allows; each group meets the columns in one pass over them. When rows and
columns are the same samples, each unordered pair of batches is worked on once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from torch import Tensor

from kinsight.samples import Batch, Samples


@runtime_checkable
class Sized(Protocol):
    """Something that knows the memory it holds."""

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        ...


Prepared = TypeVar("Prepared", bound=Sized)


Source: TypeAlias = Samples | Batch
"""What gives its samples in batches, in the same order every time."""


def batches(source: Source, batch_size: int) -> Iterator[Batch]:
    """The samples of a source, at most `batch_size` at a time."""
    if isinstance(source, Samples):
        yield from source.batches(batch_size)
    else:
        for start in range(0, len(source), batch_size):
            yield source[start : start + batch_size]


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

    def groups(self, max_bytes: int) -> Iterator[list[Block[Prepared]]]:
        """Consecutive blocks, as many at a time as fit in `max_bytes` (at least one)."""
        group: list[Block[Prepared]] = []
        held = 0
        for block in self:
            size = block.content.n_bytes
            if group and held + size > max_bytes:
                yield group
                group, held = [], 0
            group.append(block)
            held += size
        if group:
            yield group


def pair_blocks(
    rows: Blocks[Prepared],
    columns: Blocks[Prepared],
    combine: Callable[[Prepared, Prepared], Tensor],
    *,
    max_bytes: int,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, block) for every pair of batches of two sources."""
    for group in rows.groups(max_bytes):
        for column in columns:
            for row in group:
                yield row.places, column.places, combine(row.content, column.content)


def symmetric_pair_blocks(
    rows: Blocks[Prepared],
    combine: Callable[[Prepared, Prepared], Tensor],
    mirror: Callable[[Tensor], Tensor],
    *,
    max_bytes: int,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, block) for every pair of batches of one source; half of the blocks are mirrored, not computed."""
    for group in rows.groups(max_bytes):
        for place, row in enumerate(group):
            for column in group[place:]:
                yield from _both_ways(row, column, combine, mirror)
        if group[-1].stop < len(rows.source):
            for column in rows.starting_at(group[-1].stop):
                for row in group:
                    yield from _both_ways(row, column, combine, mirror)


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
