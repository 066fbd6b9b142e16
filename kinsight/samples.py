"""Samples: batches with ids, inputs, targets and, where there is one, a preview, from whatever the user has.

They are read batch by batch and in the same order every time, so that an id names the same sample in every
pass. What they are read from is never held as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kinsight.batches import (
    Batch,
    Id,
    Inputs,
    as_batch,
    as_targets,
    check_length,
    checked_count,
    checked_ids,
    checked_positions,
    concatenate,
    join,
    n_samples,
    without_labels,
)
from kinsight.errors import EmptyDataError, InputError, ShapeError
from kinsight.readers import Converted, First, Streamed, Unpack, reader_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Batch", "Id", "Inputs", "Samples", "Unpack", "as_batch", "concatenate", "n_samples"]


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
        self.numbered_by: object = None if self._ids is not None else object()
        if isinstance(data, Batch) and ids is None:
            self._ids, self.numbered_by = data.ids, data.numbered_by
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
    def is_stream(self) -> bool:
        """Whether they can only be read from front to back."""
        return self._reader.is_stream

    def read_by(self, n_workers: int) -> Samples:
        """The same samples, read by so many processes where they are items of a Dataset; 0 for this one.

        Raises:
            InputError: it is below 0.
        """
        if n_workers < 0:
            raise InputError(f"n_workers is {n_workers}: 0 reads in this process, more in so many others.")
        found = copy(self)
        found._reader = self._reader.read_by(n_workers)
        return found

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

    def to_dtype(self, dtype: torch.dtype) -> Samples:
        """The same samples with floating-point inputs in this precision; targets stay as they are."""
        converted = copy(self)
        converted._reader = Converted(self._reader, dtype)
        return converted

    def preview(self, position: int) -> Image | str | None:
        """What the sample looks like: an image, a text, or None where there is nothing to show."""
        (position,) = checked_positions([position], len(self))
        if self._preview is not None:
            return self._preview(position)
        return self.previews(self.take([position]), [position])[0]

    def previews(self, batch: Batch, positions: Sequence[int]) -> list[Image | str | None]:
        """The same of samples that have been read: a batch of this data, and where its samples lie."""
        if self._preview is not None:
            return [self._preview(position) for position in positions]
        inputs = batch.inputs
        return [_image(row) for row in inputs] if isinstance(inputs, Tensor) else [None] * len(batch)

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
            return Batch(batch.inputs, ids, batch.targets, self.numbered_by)
        return Batch(batch.inputs, ids, self._targets[list(positions)], self.numbered_by)


def _check_unique(ids: tuple[Id, ...]) -> None:
    first: dict[Id, int] = {}
    for position, name in enumerate(ids):
        if first.setdefault(name, position) != position:
            raise InputError(
                f"The id {name!r} names the samples at positions {first[name]} and {position}. A result "
                "could not say which of them is meant: make ids unique, or leave ids out to use positions."
            )


def queries_of(samples: Samples, data: Any, queries: Any) -> Samples:
    """The samples that are asked about: those of the data themselves, where queries are that, or left out.

    Args:
        samples: of the data, as `Samples.wrap` made them.
        data: as the user passed it.
        queries: whatever `Samples` takes, or None.
    """
    return samples if queries is None or queries is data else Samples.wrap(queries)


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
