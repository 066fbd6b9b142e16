"""Readers: how each kind of data set is read, from memory, item by item, or from front to back.

`reader_of` picks the one that fits. A reader gives batches in one fixed order and knows nothing of the ids
and targets that the user adds; `Samples` puts those on top.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from kinsight.batches import (
    Batch,
    Id,
    as_tensor,
    concatenate,
    cut_rows,
    kind_of,
    make_batch,
    map_leaves,
    n_samples,
    without_labels,
)
from kinsight.errors import InputError, SampleTypeError, ShapeError

Unpack: TypeAlias = Callable[[Any], tuple[Any, Any]]
"""Turns an item of a Dataset, or a batch of a DataLoader, into (inputs, targets)."""

_UNDERSTOOD = (
    "a tensor or array [n ...], a tuple (positional arguments) or dict (keyword arguments) of them, a torch "
    "Dataset, a DataLoader that does not shuffle, a Batch, or a list of them"
)


@runtime_checkable
class Reader(Protocol):
    """How one kind of source is read. Ids and targets given by the user are put on top by Samples."""

    @property
    def is_stream(self) -> bool:
        """Whether it can only be read from front to back."""
        ...

    def read_by(self, n_workers: int) -> Reader:
        """The same, read by so many processes, where that makes sense."""
        ...

    def __len__(self) -> int: ...

    def take(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions, in the order asked for."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample, in order, at most `batch_size` at a time."""
        ...


class _Held:
    """Tensors and arrays in memory (or mapped into it); batches are views where that is possible."""

    is_stream = False

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self.n = n_samples(inputs)
        self._rows(slice(0))  # an array that cannot become a tensor is found now

    def __len__(self) -> int:
        return self.n

    def read_by(self, n_workers: int) -> Reader:
        return self

    def take(self, positions: Sequence[int]) -> Batch:
        return self._rows(torch.tensor(positions, dtype=torch.long))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, self.n, batch_size):
            yield self._rows(slice(start, start + batch_size))

    def _rows(self, rows: slice | Tensor) -> Batch:
        return Batch(map_leaves(partial(cut_rows, rows=rows), self.inputs))


class _Read:
    """A map-style Dataset, item by item; `order` holds the keys of the samples."""

    is_stream = False

    def __init__(
        self, dataset: Any, order: Sequence[Any], collate: Callable[[list[Any]], Any], unpack: Unpack | None,
        workers: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.order, self.collate, self.unpack = dataset, order, collate, unpack
        self.workers = workers

    def __len__(self) -> int:
        return len(self.order)

    def read_by(self, n_workers: int) -> Reader:
        workers = {**(self.workers or {}), "num_workers": n_workers} if n_workers else None
        return _Read(self.dataset, self.order, self.collate, self.unpack, workers)

    def take(self, positions: Sequence[int]) -> Batch:
        keys = [self.order[i] for i in positions]
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(keys) if fetch else [self.dataset[key] for key in keys]
        return _split_batch(self.collate(items), self.unpack)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        chunks = [range(i, min(i + batch_size, len(self))) for i in range(0, len(self), batch_size)]
        if self.workers is None:
            yield from map(self.take, chunks)
            return
        keys = [[self.order[i] for i in chunk] for chunk in chunks]
        loader: DataLoader[Any] = DataLoader(
            self.dataset, batch_sampler=keys, collate_fn=self.collate, **self.workers,
            generator=torch.Generator(),  # or the loader draws its seed from the user's global one
        )  # fmt: skip
        for collated in loader:
            yield _split_batch(collated, self.unpack)


class Streamed:
    """What is read from front to back only: a list of batches, or a loader over an IterableDataset."""

    is_stream = True

    def __init__(self, parts: Callable[[], Iterator[Batch]], n: int | None = None) -> None:
        self.parts = parts
        self.n = n
        self.ids: tuple[Id, ...] | None = None

    def __len__(self) -> int:
        if self.n is None:
            self.n = sum(map(len, self.parts()))
        return self.n

    def read_by(self, n_workers: int) -> Reader:
        """Itself: whoever made the stream knows how it is read."""
        return self

    def take(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions, in the order asked for."""
        wanted = sorted(set(positions))
        found: list[Batch] = []
        start = n_found = 0
        for part in self.parts():
            stop = bisect_left(wanted, start + len(part))
            if stop > n_found:
                found.append(part[[i - start for i in wanted[n_found:stop]]])
            start, n_found = start + len(part), stop
            if n_found == len(wanted):
                break
        else:
            self._check_count(start)
        return concatenate(found)[[bisect_left(wanted, i) for i in positions]]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample, in order, at most `batch_size` at a time."""
        n = 0
        for batch in _rebatched(self.parts(), batch_size):
            n += len(batch)
            yield batch
        self._check_count(n)

    def _check_count(self, n: int) -> None:
        if self.n not in (None, n):
            raise ShapeError(
                f"The data gave {self.n} samples in one pass and {n} in the next, so an id does not name the "
                "same sample twice. Pass data that can be read again from the start."
            )
        self.n = n


class First:
    """The first n samples of another reader."""

    def __init__(self, reader: Reader, n: int) -> None:
        self.reader, self.n = reader, n

    def __len__(self) -> int:
        return min(self.n, len(self.reader))

    @property
    def is_stream(self) -> bool:
        """Whether it can only be read from front to back."""
        return self.reader.is_stream

    def read_by(self, n_workers: int) -> Reader:
        """The same of the reader that is so read."""
        return First(self.reader.read_by(n_workers), self.n)

    def take(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions, in the order asked for."""
        return self.reader.take(positions)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample, in order, at most `batch_size` at a time."""
        left = self.n
        for batch in self.reader.batches(min(batch_size, self.n)):
            yield batch[:left]
            left -= len(batch)
            if left <= 0:
                return


class Converted:
    """Another reader's samples with floating-point inputs in another precision."""

    def __init__(self, reader: Reader, dtype: torch.dtype) -> None:
        self.reader, self.dtype = reader, dtype

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def is_stream(self) -> bool:
        """Whether it can only be read from front to back."""
        return self.reader.is_stream

    def read_by(self, n_workers: int) -> Reader:
        """The same of the reader that is so read."""
        return Converted(self.reader.read_by(n_workers), self.dtype)

    def take(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions, in the order asked for."""
        return self._converted(self.reader.take(positions))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every sample, in order, at most `batch_size` at a time."""
        return map(self._converted, self.reader.batches(batch_size))

    def _converted(self, batch: Batch) -> Batch:
        def convert(leaf: Any) -> Any:
            is_real = isinstance(leaf, Tensor) and leaf.is_floating_point()
            return leaf.to(self.dtype) if is_real else leaf

        return Batch(map_leaves(convert, batch.inputs), batch.ids, batch.targets, batch.numbered_by)


def reader_of(data: Any, unpack: Unpack | None) -> Reader:
    """The reader that fits the data; SampleTypeError where none does."""
    if isinstance(data, DataLoader):
        return _loader_reader(data, unpack)
    if isinstance(data, IterableDataset):
        raise SampleTypeError(
            f"{kind_of(data)} is an IterableDataset: it does not say how its items become batches. Wrap it: "
            "DataLoader(dataset, batch_size=...)."
        )
    if isinstance(data, Dataset) or _is_indexed(data):
        if not hasattr(data, "__len__"):
            raise SampleTypeError(f"{kind_of(data)} has no length. Give it __len__, to number the samples.")
        return _Read(data, range(len(data)), partial(_collate_items, unpack=unpack), unpack=_pair)
    if unpack is not None:
        raise InputError(f"unpack= is for a Dataset or a DataLoader; {kind_of(data)} has nothing to unpack.")
    if isinstance(data, (Tensor, np.ndarray, tuple, dict)):
        return _Held(data)
    if isinstance(data, Batch):
        return _batches_reader([data])
    if isinstance(data, list) and all(isinstance(part, Batch) for part in data):
        return _batches_reader(data)
    if isinstance(data, Iterator):
        raise SampleTypeError(
            f"{kind_of(data)} can be read only once; samples are read several times. Pass what it is made "
            "from, or list(...) of it where it yields Batch."
        )
    hint = " For a string that names a data set call kinsight.sources.load_samples." if isinstance(data, str) else ""
    raise SampleTypeError(f"Samples cannot be read from {kind_of(data)}. Understood are {_UNDERSTOOD}.{hint}")


def _batches_reader(batches: list[Batch]) -> Streamed:
    reader = Streamed(lambda: iter(batches), sum(map(len, batches)))
    if any(batch.numbered_by is None for batch in batches):
        reader.ids = tuple(name for batch in batches for name in batch.ids)
    return reader


def _loader_reader(loader: DataLoader[Any], unpack: Unpack | None) -> Reader:
    if loader.drop_last or getattr(loader.batch_sampler, "drop_last", False):
        raise SampleTypeError(
            f"The DataLoader has drop_last=True (batch_size={loader.batch_size}): the samples of its last "
            "batch could be left out without a word. Build it with drop_last=False."
        )
    if isinstance(loader.dataset, IterableDataset):
        return Streamed(lambda: (_split_batch(found, unpack) for found in loader))
    batched = loader.batch_sampler
    sampler = loader.sampler if batched is None else getattr(batched, "sampler", batched)
    random = isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler))
    order = None if random else _drawn_keys(loader)
    if order is None or order != _drawn_keys(loader):
        raise SampleTypeError(
            f"The DataLoader draws its samples at random ({kind_of(sampler)}): an id would name another "
            "sample in every pass. Build it with shuffle=False or with a sampler that keeps its order."
        )
    if loader.batch_sampler is None:  # batch_size=None: what the dataset gives is a batch already
        return Streamed(lambda: (_split_batch(found, unpack) for found in loader))
    workers = {
        name: getattr(loader, name)
        for name in ("num_workers", "multiprocessing_context", "worker_init_fn", "prefetch_factor", "timeout")
    }
    return _Read(loader.dataset, order, loader.collate_fn, unpack, workers if loader.num_workers else None)


def _drawn_keys(loader: DataLoader[Any]) -> Sequence[Any]:
    if loader.batch_sampler is None:
        return list(loader.sampler)
    if type(getattr(loader.batch_sampler, "sampler", None)) is SequentialSampler:  # a subclass may shuffle
        return range(len(loader.dataset))  # type: ignore[arg-type]
    return [key for keys in loader.batch_sampler for key in keys]


def _is_indexed(data: Any) -> bool:
    """Whether this is a data set by its looks, such as one of Hugging Face; a table with `keys` is not."""
    taken = isinstance(data, (Tensor, np.ndarray, tuple, list, dict, str, bytes, range, Batch))
    is_sequence = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return is_sequence and not taken and not hasattr(data, "keys")


def _pair(found: Any) -> tuple[Any, Any]:
    return found  # type: ignore[no-any-return]


def _split(found: Any, unpack: Unpack | None, what: str) -> tuple[Any, Any]:
    """(inputs, targets) of an item of a Dataset or a batch of a DataLoader."""
    if unpack is not None:
        pair = unpack(found)
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise SampleTypeError(f"unpack= has to give (inputs, targets); it gave {kind_of(pair)}.")
        return pair
    if isinstance(found, (tuple, list)):
        if len(found) not in (1, 2):
            raise SampleTypeError(
                f"{what} has {len(found)} entries: which are inputs and which are targets cannot be told. "
                "Say it: Samples(..., unpack=lambda found: ((found[0], found[1]), found[2])), for example."
            )
        return found[0], found[1] if len(found) == 2 else None
    return without_labels(found)


def _split_batch(found: Any, unpack: Unpack | None) -> Batch:
    return make_batch(*_split(found, unpack, "A batch of the DataLoader"))


def _collate_items(items: list[Any], unpack: Unpack | None) -> tuple[Any, Any]:
    """Items stacked along a new axis 0, as a DataLoader does it."""
    pairs = [_split(item, unpack, "An item of the Dataset") for item in items]
    inputs = [map_leaves(as_tensor, inputs) for inputs, _ in pairs]
    targets = [as_tensor(target) for _, target in pairs]
    try:
        stacked = default_collate(inputs)
        return stacked, None if all(target is None for target in targets) else default_collate(targets)
    except (TypeError, RuntimeError, KeyError) as error:
        raise SampleTypeError(
            f"The items of the Dataset, {kind_of(pairs[0][0])} and {kind_of(pairs[0][1])}, do not stack into "
            f"a batch: {error}. Let them be tensors of one shape, or pass a DataLoader with a collate_fn."
        ) from error


def _rebatched(parts: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    held: list[Batch] = []
    n = 0
    for part in parts:
        while len(part):
            held.append(part[: batch_size - n])
            part = part[batch_size - n :]
            n += len(held[-1])
            if n == batch_size:
                yield concatenate(held)
                held, n = [], 0
    if held:
        yield concatenate(held)
