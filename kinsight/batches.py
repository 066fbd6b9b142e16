"""A batch: some samples with ids, inputs and targets, and what can be done with inputs of any structure.

Inputs are nested tuples, lists and dicts; their leaves are tensors with samples on axis 0, or constants.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kinsight.errors import EmptyDataError, InputError, SampleTypeError, ShapeError, TargetError, UnknownNameError

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
    numbered_by: object = field(default=None, repr=False)
    """Where nobody gave ids: whose positions stand in for them. They name nothing in other data."""

    def __post_init__(self) -> None:
        n = n_samples(self.inputs)
        given = checked_ids(self.ids)
        if not given and self.numbered_by is None:
            object.__setattr__(self, "numbered_by", object())
        ids = given or tuple(range(n))
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
        targets = None if self.targets is None else cut(self.targets)
        return Batch(map_leaves(cut, self.inputs), ids, targets, self.numbered_by)

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """The same samples in order, at most `batch_size` at a time, as views; all at once without it."""
        size = max(len(self), 1) if batch_size is None else checked_count("batch_size", batch_size)
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on this device."""

        def moved(leaf: Any) -> Any:
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        return Batch(map_leaves(moved, self.inputs), self.ids, moved(self.targets), self.numbered_by)


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
    if leaf.dtype.kind not in "biufc" or leaf.dtype.itemsize > (16 if leaf.dtype.kind == "c" else 8):
        raise SampleTypeError(f"An array of dtype {leaf.dtype} has no tensor. Turn it into numbers of 64 bits first.")
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
    if any(not is_same(leaves[0], leaf) for leaf in leaves[1:]):
        raise ShapeError(f"Batches cannot be joined: {name} is a constant, but not the same in all of them.")
    return leaves[0]


def is_same(a: Any, b: Any) -> bool:
    """Whether two constants are one."""
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
            f"Targets have to be numbers [n] or [n d]; {kind_of(targets)} is not: {str(error).rstrip('.')}. For "
            "classes pass their indices, and the names as class_names."
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


def checked_count(name: str, count: Any, least: int = 1) -> int:
    """The count, if it is a whole number of at least so many."""
    try:
        found = None if isinstance(count, bool) else operator.index(count)
    except TypeError:
        found = None
    if found is None or found < least:
        raise InputError(f"{name} is {count!r}: it has to be a whole number, {least} or more.")
    return found


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
