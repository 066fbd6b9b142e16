"""Samples: batches with ids, inputs, targets and, where there is one, a preview, from whatever the user has.

They are read batch by batch and in the same order every time, so that an id names the same sample in every
pass. What they are read from is never held as a whole.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

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

from .errors import EmptyDataError, InputError, SampleTypeError, ShapeError, TargetError, UnknownNameError

if TYPE_CHECKING:
    from PIL.Image import Image

Id: TypeAlias = int | str
"""What names a sample."""

Inputs: TypeAlias = Tensor | tuple[Any, ...] | dict[str, Any]
"""The model's one argument, its positional arguments, or its keyword arguments; samples on axis 0."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples: ids, inputs ready for the model, and targets where they are known.

    Args:
        inputs: a tensor [n ...], or a tuple or dict of them, the model's positional or keyword arguments.
            Tensors without axes and everything that is not a tensor are constants: every sub-batch gets them
            whole.
        ids: one a sample; by default the positions 0 to n-1.
        targets: [n] or [n d].

    Raises:
        ShapeError: inputs, ids and targets do not agree on n.

    Example:
        >>> batch = Batch(torch.arange(6.0).view(3, 2), ids=("a", "b", "c"), targets=torch.tensor([0, 1, 1]))
        >>> batch[1:].ids, batch[[2, 0]].inputs.tolist()
        (('b', 'c'), [[4.0, 5.0], [0.0, 1.0]])
    """

    inputs: Inputs
    ids: tuple[Id, ...] = ()
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        n = n_samples(self.inputs)
        ids = checked_ids(self.ids) or tuple(range(n))
        object.__setattr__(self, "ids", ids)
        check_length("ids", len(ids), n)
        if self.targets is not None:
            check_length("targets", len(self.targets) if self.targets.ndim else 0, n)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Batch:
        """The samples in these rows; a slice gives views, no copy. A bool tensor [n] is a mask."""
        if not isinstance(rows, slice) or (rows.step or 1) < 0:
            positions = checked_positions(rows, len(self))
            rows, ids = torch.tensor(positions, dtype=torch.long), tuple(self.ids[i] for i in positions)
        else:
            ids = self.ids[rows]
        cut = partial(cut_rows, rows=rows)
        return Batch(map_leaves(cut, self.inputs), ids, None if self.targets is None else cut(self.targets))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on this device."""

        def moved(leaf: Any) -> Any:
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        return Batch(map_leaves(moved, self.inputs), self.ids, moved(self.targets))


def as_batch(x: Any) -> Batch:
    """The batch that x means: a Batch as it is, anything else as the inputs of one.

    x is a tensor or array [n ...], a tuple or dict of them, or a Batch. A tuple holds the model's positional
    arguments, a dict its keyword arguments; `labels` of a dict are the targets. Arrays become tensors of the
    same dtype.

    Raises:
        SampleTypeError: x is none of these.

    Example:
        >>> as_batch({"x": torch.zeros(2, 3), "labels": torch.ones(2)}).targets
        tensor([1., 1.])
    """
    if isinstance(x, Batch):
        return x
    if not isinstance(x, (Tensor, np.ndarray, tuple, Mapping)):
        raise SampleTypeError(
            f"A batch cannot be made of {kind_of(x)}. Pass a tensor [n ...], a tuple of tensors (the model's "
            "positional arguments), a dict of tensors (its keyword arguments), or a Batch."
        )
    return make_batch(*without_labels(x))


def n_samples(inputs: Any) -> int:
    """The number of samples in a model's inputs: the length of axis 0 that all their tensors share.

    Raises:
        SampleTypeError: there is no tensor with a sample axis.
        ShapeError: two tensors disagree.

    Example:
        >>> n_samples({"x": torch.zeros(3, 5), "mask": torch.ones(3), "scale": 2.0})
        3
    """
    shapes = {name: leaf.shape for name, leaf in leaves(inputs) if has_samples(leaf)}
    if not shapes:
        raise SampleTypeError(
            f"The inputs, {kind_of(inputs)}, hold no tensor with samples on axis 0, so there is nothing to "
            "count or cut."
        )
    name, shape = next(iter(shapes.items()))
    for other, found in shapes.items():
        if found[0] != shape[0]:
            raise ShapeError(
                f"{name} is {list(shape)} and {other} is {list(found)}: {shape[0]} against {found[0]} "
                "samples on axis 0. Every tensor of the inputs needs one row a sample; a constant is passed "
                "as a tensor without axes, or inside the model."
            )
    return int(shape[0])


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch of all samples of these, in order.

    Raises:
        EmptyDataError: there is no batch.
        ShapeError: their inputs differ in more than the number of samples.

    Example:
        >>> concatenate([Batch(torch.zeros(2, 3), ("a", "b")), Batch(torch.ones(1, 3), ("c",))]).ids
        ('a', 'b', 'c')
    """
    if not batches:
        raise EmptyDataError("There are no batches to concatenate.")
    if len(batches) == 1:
        return batches[0]
    columns = zip(*(list(leaves(batch.inputs)) for batch in batches), strict=False)
    if len({tuple(name for name, _ in leaves(batch.inputs)) for batch in batches}) > 1:
        raise ShapeError("Batches cannot be joined: their inputs do not have the same entries.")
    joined = iter([join(column[0][0], [leaf for _, leaf in column]) for column in columns])
    targets = [batch.targets for batch in batches if batch.targets is not None]
    if len(targets) not in (0, len(batches)):
        raise TargetError(f"{len(targets)} of {len(batches)} batches have targets: it has to be all or none.")
    return Batch(
        map_leaves(lambda _: next(joined), batches[0].inputs),
        tuple(name for batch in batches for name in batch.ids),
        join("targets", targets) if targets else None,
    )


def make_batch(inputs: Any, targets: Any) -> Batch:
    """A batch of inputs and targets that may still be arrays or lists."""
    if isinstance(inputs, list):  # a loader's collate makes lists of tuples
        inputs = tuple(inputs)
    return Batch(map_leaves(as_tensor, inputs), targets=as_targets(targets))


def leaves(inputs: Any, name: str = "inputs") -> Iterator[tuple[str, Any]]:
    """What nested tuples, lists and dicts hold, each with the expression that a user would write for it."""
    if isinstance(inputs, Mapping):
        for key, value in inputs.items():
            yield from leaves(value, f"{name}[{key!r}]")
    elif isinstance(inputs, (tuple, list)):
        if isinstance(inputs, list) and inputs and all(isinstance(value, str) for value in inputs):
            raise SampleTypeError(
                f"{name} is a list of {len(inputs)} texts, which cannot be cut into samples. Tokenize them first."
            )
        for i, value in enumerate(inputs):
            yield from leaves(value, f"{name}[{i}]")
    else:
        yield name, inputs


def map_leaves(change: Callable[[Any], Any], inputs: Any) -> Any:
    """The same structure with every leaf changed."""
    if isinstance(inputs, Mapping):
        return {key: map_leaves(change, value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        values = [map_leaves(change, value) for value in inputs]
        return type(inputs)(*values) if hasattr(inputs, "_fields") else type(inputs)(values)
    return change(inputs)


def has_samples(leaf: Any) -> bool:
    """Whether a leaf has one row a sample; if not, it is a constant."""
    return isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0


def cut_rows(leaf: Any, rows: slice | Tensor) -> Any:
    """These rows of a leaf as a tensor; a constant as it is."""
    if not has_samples(leaf):
        return leaf
    if isinstance(leaf, np.ndarray):
        return as_tensor(leaf[rows if isinstance(rows, slice) else rows.numpy()])
    return leaf[rows] if isinstance(rows, slice) else leaf.index_select(0, rows.to(leaf.device))


def as_tensor(leaf: Any) -> Any:
    """An array as a tensor of the same dtype, a view where torch allows one; anything else as it is."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    if leaf.dtype.kind not in "biufc":
        raise SampleTypeError(f"An array of dtype {leaf.dtype} has no tensor. Turn it into numbers first.")
    if not leaf.flags.writeable or not leaf.dtype.isnative or any(stride < 0 for stride in leaf.strides):
        leaf = np.array(leaf, dtype=leaf.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(leaf)


def join(name: str, leaves: list[Any]) -> Any:
    """One leaf of the rows of several; a constant has to be the same in all."""
    if has_samples(leaves[0]):
        shapes = sorted({str(list(leaf.shape[1:])) for leaf in leaves})
        if len(shapes) > 1:
            raise ShapeError(
                f"Batches cannot be joined: {name} is {' in one and '.join(shapes[:2])} a sample in another. "
                "Pad all samples to one shape."
            )
        return torch.cat(leaves)
    if any(not _is_same(leaves[0], leaf) for leaf in leaves[1:]):
        raise ShapeError(f"Batches cannot be joined: {name} is a constant, but not the same in all of them.")
    return leaves[0]


def _is_same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)


def without_labels(data: Any) -> tuple[Any, Any]:
    """(inputs, targets): a dict gives up its `labels`, anything else has none."""
    if not isinstance(data, Mapping):
        return data, None
    inputs = dict(data)
    return inputs, inputs.pop("labels", None)


def as_targets(targets: Any) -> Tensor | None:
    """Targets as a tensor [n ...]; arrays and tensors keep their dtype."""
    if targets is None:
        return None
    try:
        found = as_tensor(targets) if isinstance(targets, np.ndarray) else torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(
            f"Targets have to be numbers [n] or [n d]; {kind_of(targets)} is not: {error}. For classes pass "
            "their indices, and the names as class_names."
        ) from error
    if found.ndim == 0:
        raise ShapeError("Targets are a single number; one a sample is needed, [n] or [n d].")
    return found


def checked_ids(ids: Any) -> tuple[Id, ...]:
    """The ids, each a plain int or str."""
    found = ids.tolist() if isinstance(ids, (Tensor, np.ndarray)) else ids
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise SampleTypeError(f"ids have to be a sequence of int or str; this is {kind_of(ids)}.")
    return tuple(name if type(name) in (int, str) else _checked_id(name) for name in found)


def _checked_id(name: Any) -> Id:
    if isinstance(name, str):
        return str(name)
    if isinstance(name, bool) or not hasattr(name, "__index__"):
        raise SampleTypeError(f"An id has to be an int or a str; {name!r} is {kind_of(name)}.")
    return operator.index(name)


def checked_positions(rows: Any, n: int) -> list[int]:
    """Positions from 0 to n-1 that a slice, a mask, a list or a tensor of int stands for."""
    if isinstance(rows, slice):
        return list(range(n))[rows]
    if isinstance(rows, (Tensor, np.ndarray)):
        if rows.ndim == 1 and rows.dtype in (torch.bool, np.bool_):
            check_length("mask", len(rows), n)
            rows = rows.nonzero()[0] if isinstance(rows, np.ndarray) else rows.nonzero()[:, 0]
        rows = rows.tolist()
    found: list[Any] = list(rows) if isinstance(rows, Iterable) else [None]
    if any(isinstance(i, bool) or not hasattr(i, "__index__") for i in found):
        raise SampleTypeError(f"Positions have to be a list of int, not {rows!r}. For one sample pass [i].")
    positions = [operator.index(i) for i in found]
    for i in positions:
        if not 0 <= i < n:
            raise UnknownNameError(f"There is no sample at position {i}: there are {n}, from 0 to {n - 1}.")
    return positions


def checked_count(name: str, count: Any) -> int:
    """The count, if it is an int of at least 1."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"{name}={count!r} is not a number of samples; it has to be 1 or more.")
    return count


def check_length(name: str, found: int, n: int) -> None:
    """Raise ShapeError unless there is one a sample."""
    if found != n:
        raise ShapeError(f"{found} {name} for {n} samples: there has to be one a sample.")


def kind_of(data: Any) -> str:
    """What the user passed, in a few words."""
    if data is None:
        return "None"
    if isinstance(data, (Tensor, np.ndarray)):
        return f"a {type(data).__name__} {list(data.shape)} of {data.dtype}"
    if isinstance(data, (list, tuple)):
        return f"a {type(data).__name__} of {len(data)} {type(data[0]).__name__ if data else 'entries'}"
    return f"a {type(data).__name__}"


Unpack: TypeAlias = Callable[[Any], tuple[Any, Any]]
"""Turns an item of a Dataset, or a batch of a DataLoader, into (inputs, targets)."""

_UNDERSTOOD = (
    "a tensor or array [n ...], a tuple (positional arguments) or dict (keyword arguments) of them, a torch "
    "Dataset, a DataLoader that does not shuffle, a Batch, or a list of them"
)


@runtime_checkable
class Reader(Protocol):
    """How one kind of source is read. Ids and targets given by the user are put on top by Samples."""

    def __len__(self) -> int: ...

    def take(self, positions: Sequence[int]) -> Batch: ...

    def batches(self, batch_size: int) -> Iterator[Batch]: ...


class _Held:
    """Tensors and arrays in memory (or mapped into it); batches are views where that is possible."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs
        self.n = n_samples(inputs)
        self._rows(slice(0))  # an array that cannot become a tensor is found now

    def __len__(self) -> int:
        return self.n

    def take(self, positions: Sequence[int]) -> Batch:
        return self._rows(torch.tensor(positions, dtype=torch.long))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, self.n, batch_size):
            yield self._rows(slice(start, start + batch_size))

    def _rows(self, rows: slice | Tensor) -> Batch:
        return Batch(map_leaves(partial(cut_rows, rows=rows), self.inputs))


class _Read:
    """A map-style Dataset, item by item; `order` holds the keys of the samples."""

    def __init__(
        self, dataset: Any, order: Sequence[Any], collate: Callable[[list[Any]], Any], unpack: Unpack | None,
        workers: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.order, self.collate, self.unpack = dataset, order, collate, unpack
        self.workers = workers

    def __len__(self) -> int:
        return len(self.order)

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

    def __init__(self, parts: Callable[[], Iterator[Batch]], n: int | None = None) -> None:
        self.parts = parts
        self.n = n
        self.ids: tuple[Id, ...] | None = None

    def __len__(self) -> int:
        if self.n is None:
            self.n = sum(map(len, self.parts()))
        return self.n

    def take(self, positions: Sequence[int]) -> Batch:
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

    def take(self, positions: Sequence[int]) -> Batch:
        return self.reader.take(positions)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        left = self.n
        for batch in self.reader.batches(min(batch_size, self.n)):
            yield batch[:left]
            left -= len(batch)
            if left <= 0:
                return


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
    hint = " For a string that names a data set call load_samples." if isinstance(data, str) else ""
    raise SampleTypeError(f"Samples cannot be read from {kind_of(data)}. Understood are {_UNDERSTOOD}.{hint}")


def _batches_reader(batches: list[Batch]) -> Streamed:
    reader = Streamed(lambda: iter(batches), sum(map(len, batches)))
    if any(batch.ids != tuple(range(len(batch))) for batch in batches):  # else they are the defaults of each
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


class Samples:
    """All samples of a data set, read batch by batch in the same order every time.

    Args:
        data: a tensor or numpy array [n ...]; a tuple or dict of them, the model's positional or keyword
            arguments (`labels` of a dict are the targets; what is not an array is a constant); a torch
            Dataset or anything else with `__len__` and `__getitem__` whose items are an input, (input,
            target), or a dict with `labels`; a DataLoader whose batches are such, in the order it gives them;
            a list of Batch. Arrays keep their dtype.
        targets: [n] or [n d]; they take the place of targets that the data has.
        ids: int or str, one a sample, no two the same; by default the positions 0 to n-1. Equal samples stay
            two.
        unpack: turns an item of the Dataset, or a batch of the DataLoader, into (inputs, targets); targets
            may be None.
        batch_size: of `batches`, where none is asked for there. A loader's own batch size never matters.
        class_names: name of class i at i.
        preview: a function from position to a PIL image or a text. By default inputs that look like images,
            [h w] or [c h w] with 1 or 3 channels, are shown, scaled to their own minimum and maximum unless
            uint8.

    Raises:
        EmptyDataError: there are no samples.
        ShapeError: lengths do not agree.
        SampleTypeError: data is of a kind that is not understood, shuffles, or can be read only once.

    Example:
        >>> samples = Samples(torch.arange(10.0).view(5, 2), targets=[0, 1, 0, 1, 1], ids=list("abcde"))
        >>> [(batch.ids, batch.targets.tolist()) for batch in samples.batches(2)]
        [(('a', 'b'), [0, 1]), (('c', 'd'), [0, 1]), (('e',), [1])]
        >>> samples.take([3, 0]).inputs.tolist()
        [[6.0, 7.0], [0.0, 1.0]]
    """

    def __init__(
        self,
        data: Any,
        targets: Any = None,
        *,
        ids: Iterable[Any] | None = None,
        unpack: Unpack | None = None,
        batch_size: int = 64,
        class_names: Sequence[str] | None = None,
        preview: Callable[[int], Image | str | None] | None = None,
    ) -> None:
        data, labels = without_labels(data)
        self.batch_size = checked_count("batch_size", batch_size)
        self.class_names = None if class_names is None else tuple(class_names)
        self._preview = preview
        self._reader = reader_of(data, unpack)
        self._targets = as_targets(labels if targets is None else targets)
        self._has_own_targets = self._targets is None  # whether they come with the batches
        self._ids = checked_ids(ids) if ids is not None else getattr(self._reader, "ids", None)
        is_counted = not isinstance(self._reader, Streamed) or self._reader.n is not None
        if is_counted or self._targets is not None or self._ids is not None:
            n = len(self)  # costs a pass over a stream, so only where there is something to compare with
            if self._ids is not None:
                check_length("ids", len(self._ids), n)
                _check_unique(self._ids)
            if self._targets is not None:
                check_length("targets", len(self._targets), n)

    @classmethod
    def wrap(cls, data: Any) -> Samples:
        """The samples of whatever `Samples` understands; Samples themselves come back as they are."""
        return data if isinstance(data, Samples) else cls(data)

    def __len__(self) -> int:
        n = len(self._reader)
        if n == 0:
            raise EmptyDataError("There are no samples: the data has length 0.")
        return n

    @property
    def ids(self) -> tuple[Id, ...]:
        """One id a sample, in order, length n."""
        if self._ids is None:
            self._ids = tuple(range(len(self)))
        return self._ids

    @property
    def targets(self) -> Tensor | None:
        """All targets, [n] or [n d], or None; read in one pass and kept where the data does not hold them."""
        if self._has_own_targets and self._targets is None:
            parts = []
            for batch in self.batches():
                if batch.targets is None:
                    self._has_own_targets = False
                    return None
                if batch.targets.ndim > 2:
                    raise ShapeError(
                        f"The targets are {list(batch.targets.shape[1:])} a sample: too large to hold all of "
                        "them. Read them from batches(), or pass an unpack= that gives [n] or [n d]."
                    )
                parts.append(batch.targets)
            self._targets = join("targets", parts)
        return self._targets

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Every sample, in order, `batch_size` at a time; the last batch may be smaller."""
        size = self.batch_size if batch_size is None else checked_count("batch_size", batch_size)
        return self._named_batches(size)

    def take(self, positions: Sequence[int] | Tensor) -> Batch:
        """The samples at these positions, in the order asked for, repeats included.

        Data that can only be read from front to back, such as a loader over an IterableDataset, is read up to
        the last position asked for.

        Raises:
            UnknownNameError: a position is not between 0 and n-1.
        """
        wanted = checked_positions(positions, len(self))
        if not wanted:
            return self.take([0])[:0]
        return self._named(self._reader.take(wanted), wanted)

    def first(self, n: int) -> Samples:
        """The first n samples, or all where there are fewer; ids, targets and previews stay theirs.

        Example:
            >>> Samples(torch.zeros(5, 2), ids=list("abcde")).first(2).ids
            ('a', 'b')
        """
        fewer = copy(self)
        fewer._reader = First(self._reader, checked_count("n", n))
        fewer._ids = None if self._ids is None else self._ids[:n]
        fewer._targets = None if self._targets is None else self._targets[:n]
        return fewer

    def preview(self, position: int) -> Image | str | None:
        """What the sample looks like: an image, a text, or None where there is nothing to show."""
        (position,) = checked_positions([position], len(self))
        if self._preview is not None:
            return self._preview(position)
        inputs = self.take([position]).inputs
        return _image(inputs[0]) if isinstance(inputs, Tensor) else None

    def _named_batches(self, batch_size: int) -> Iterator[Batch]:
        start = 0
        for batch in self._reader.batches(batch_size):
            yield self._named(batch, range(start, start + len(batch)))
            start += len(batch)
        if start == 0:
            raise EmptyDataError("There are no samples: the data gave no batch.")

    def _named(self, batch: Batch, positions: Sequence[int]) -> Batch:
        """The batch with the ids of these positions, and with the targets where they do not come with it."""
        ids = tuple(positions) if self._ids is None else tuple(self._ids[i] for i in positions)
        if self._has_own_targets or self._targets is None:
            return Batch(batch.inputs, ids, batch.targets)
        return Batch(batch.inputs, ids, self._targets[list(positions)])


def _check_unique(ids: tuple[Id, ...]) -> None:
    first: dict[Id, int] = {}
    for position, name in enumerate(ids):
        if first.setdefault(name, position) != position:
            raise InputError(
                f"The id {name!r} names the samples at positions {first[name]} and {position}. A result "
                "could not say which of them is meant: make ids unique, or leave ids out to use positions."
            )


def _image(x: Tensor) -> Image | None:
    """[h w] or [c h w] as an image: uint8 as it is, anything else from its minimum to its maximum."""
    has_channels = x.ndim == 3 and x.shape[0] in (1, 3)
    if x.numel() == 0 or x.is_complex() or not (x.ndim == 2 or has_channels):
        return None
    if has_channels:
        x = x[0] if x.shape[0] == 1 else x.permute(1, 2, 0)
    from PIL import Image

    if x.dtype != torch.uint8:
        x = x.detach().double()
        finite = x[x.isfinite()]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        x = (x.nan_to_num(low).clamp(low, high) - low) / ((high - low) or 1.0) * 255
    return Image.fromarray(x.round().to(torch.uint8).contiguous().cpu().numpy())
