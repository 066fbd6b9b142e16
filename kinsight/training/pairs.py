"""Which samples of a batch are known to be alike, and which to be apart: what similarity is enforced between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kinsight.batches import Batch, as_batch, checked_count, has_samples, leaves, map_leaves
from kinsight.errors import InputError, SampleTypeError, ShapeError, TargetError


@dataclass(frozen=True, eq=False)
class Pairing:
    """The pairs of a batch of n samples.

    Args:
        n: samples.
        groups: samples of the same number, 0 or more, are alike, and samples of different ones apart; those of a
            negative number belong to none, [n]. None where pairs are listed.
        alike: pairs of positions, [k 2]; None: those that groups say.
        apart: pairs of positions, [l 2]; None: those that groups say.
    """

    n: int
    groups: Tensor | None = None
    alike: Tensor | None = None
    apart: Tensor | None = None

    @property
    def is_grouped(self) -> bool:
        """Whether groups alone say what is alike."""
        return self.groups is not None and self.alike is None

    def without(self, is_left_out: Tensor) -> Pairing:
        """The same pairs, but for those with certain samples, [n]."""
        groups = None if self.groups is None else self.groups.masked_fill(is_left_out, -1)
        alike, apart = (
            None if pairs is None else pairs[~is_left_out[pairs].any(dim=1)] for pairs in (self.alike, self.apart)
        )
        return replace(self, groups=groups, alike=alike, apart=apart)

    def alike_weights(self, rows: slice, columns: slice) -> Tensor:
        """Half of how often each pair counts, in both directions, for some samples with some. [r c], float64."""
        if self.alike is not None:
            return _counted(self.alike, rows, columns)
        assert self.groups is not None
        return self._halves(self._is_same(rows, columns), rows, columns)

    def apart_weights(self, rows: slice, columns: slice) -> Tensor:
        """The same of pairs that are apart. [r c], float64."""
        if self.apart is not None:
            return _counted(self.apart, rows, columns)
        if self.groups is None:
            return torch.zeros(rows.stop - rows.start, columns.stop - columns.start, dtype=torch.float64)
        is_in_one = self.groups >= 0
        is_apart = is_in_one[rows, None] & is_in_one[columns] & ~self._is_same(rows, columns)
        return self._halves(is_apart, rows, columns)

    @property
    def n_alike(self) -> int:
        """Number of pairs that are alike."""
        if self.alike is not None:
            return len(self.alike)
        assert self.groups is not None
        sizes = torch.bincount(self.groups[self.groups >= 0])
        return int((sizes * (sizes - 1)).sum()) // 2

    @property
    def n_apart(self) -> int:
        """Number of pairs that are apart."""
        if self.apart is not None:
            return len(self.apart)
        if self.groups is None:
            return 0
        n = int((self.groups >= 0).sum())
        return n * (n - 1) // 2 - replace(self, alike=None).n_alike

    def _is_same(self, rows: slice, columns: slice) -> Tensor:
        assert self.groups is not None
        return (self.groups[rows, None] == self.groups[columns]) & (self.groups[rows, None] >= 0)

    def _halves(self, flags: Tensor, rows: slice, columns: slice) -> Tensor:
        """0.5 where flags are, but for a sample with itself."""
        places = torch.arange(self.n)
        return 0.5 * (flags & (places[rows, None] != places[columns])).double()


def _counted(pairs: Tensor, rows: slice, columns: slice) -> Tensor:
    """Half of how often some samples meet some in a list of pairs, whichever comes first. [r c]."""
    both = torch.cat([pairs, pairs.flip(1)])
    first, second = both.unbind(dim=1)
    is_inside = (first >= rows.start) & (first < rows.stop) & (second >= columns.start) & (second < columns.stop)
    counts = torch.zeros(rows.stop - rows.start, columns.stop - columns.start, dtype=torch.float64)
    places = first[is_inside] - rows.start, second[is_inside] - columns.start
    return counts.index_put_(places, torch.full(places[0].shape, 0.5, dtype=torch.float64), accumulate=True)


@dataclass(frozen=True, eq=False)
class Augmented:
    """Pairs of augmentations of one input: similarity to them is invariance to the transformations.

    Args:
        transform: from the input of one sample to that of another, such as one of torchvision.transforms.v2; it draws
            its own random numbers.
        n_views: of each sample, all of them pairs.
        keeps_original: whether the first view is the input itself.
        is_batched: whether the transform takes the inputs of a whole batch, and draws for each sample; needed where
            inputs are not one tensor.
    """

    transform: Callable[[Any], Any]
    n_views: int = 2
    keeps_original: bool = False
    is_batched: bool = False

    def __post_init__(self) -> None:
        checked_count("n_views", self.n_views, 2)
        if not callable(self.transform):
            raise SampleTypeError(f"transform is a {type(self.transform).__name__}: pass something callable.")

    def views(self, batch: Batch) -> Batch:
        """All views of a batch, one after another."""
        parts = [batch.inputs] if self.keeps_original else []
        parts += [self._moved(batch.inputs, len(batch)) for _ in range(self.n_views - len(parts))]
        targets = None if batch.targets is None else torch.cat([batch.targets] * self.n_views)
        return as_batch(Batch(_joined(parts), batch.ids * self.n_views, targets))

    def _moved(self, inputs: Any, n: int) -> Any:
        """Transformed copies, of as many samples: a transform may write into what it is given."""
        if self.is_batched:
            copies = map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
            found = self.transform(copies)
            sizes = {len(leaf) for _, leaf in leaves(found) if has_samples(leaf)}
            if sizes != {n}:
                told = " and ".join(map(str, sorted(sizes))) or f"a {type(found).__name__}"
                raise ShapeError(f"transform has made {told} of {n} samples: it has to give each sample one view.")
            return tuple(found) if isinstance(found, list) else found
        if not isinstance(inputs, Tensor):
            raise SampleTypeError(
                f"Inputs are a {type(inputs).__name__} of tensors: pass Augmented(transform, is_batched=True), with a "
                "transform of whole batches."
            )
        if not n:
            return inputs.clone()
        found = [self.transform(sample.clone()) for sample in inputs]
        try:
            return torch.stack([torch.as_tensor(view) for view in found])
        except (TypeError, ValueError, RuntimeError) as error:
            kinds = {f"{list(view.shape)}" if isinstance(view, Tensor) else type(view).__name__ for view in found}
            raise ShapeError(
                f"transform has made {' and '.join(sorted(kinds)[:3])} of samples {list(inputs.shape[1:])}, and views "
                "go through the network as one batch: return tensors of one shape."
            ) from error


def _joined(parts: list[Any]) -> Any:
    """Batches of inputs, one after another; what has no samples is taken once."""
    first = parts[0]
    if isinstance(first, Tensor) and first.dim():
        shapes = {tuple(part.shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise ShapeError(f"Augmentations have the shapes {sorted(shapes)}: one batch takes one.")
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_joined(list(each)) for each in zip(*parts, strict=True))
    return first


PairSource = str | Augmented | Callable[[Batch], Any]
"""'class': samples of the same target, negative ones being of no class; augmentations; or a function from a batch to
groups, [n], or to pairs, [k 2]."""


def paired(source: PairSource, batch: Batch) -> tuple[Batch, Pairing]:
    """The samples that are looked at, and their pairs.

    Raises:
        TargetError: there are no classes.
        ShapeError, InputError: groups or pairs are none of this batch.
    """
    if isinstance(source, Augmented):
        views = source.views(batch)
        return views, Pairing(len(views), groups=torch.arange(len(batch)).repeat(source.n_views))
    if callable(source):
        found = _whole(source(batch), "what pairs= has returned")
        is_grouped = found.dim() == 1 and (found.numel() > 0 or len(batch) == 0)
        return batch, (grouped if is_grouped else listed)(found, len(batch))
    targets = batch.targets
    if targets is None or targets.is_floating_point() or targets.is_complex() or targets.dim() != 1:
        kind = "missing" if targets is None else f"{str(targets.dtype).removeprefix('torch.')} {list(targets.shape)}"
        raise TargetError(
            f"pairs='class' makes pairs of samples of one class, and targets are {kind}: pass integers [n], or say "
            "otherwise what is alike: loss(x, groups=...), loss(x, pairs=...), or pairs=Augmented(transform)."
        )
    return batch, grouped(targets, len(batch))


def grouped(groups: Any, n: int) -> Pairing:
    """Groups of n samples, whatever whole numbers they go by; a negative one belongs to none.

    Raises:
        ShapeError, InputError: they are no such numbers, or not one a sample.
    """
    found = _whole(groups, "groups")
    if found.shape != (n,):
        raise ShapeError(f"groups are {list(found.shape)} for {n} samples: pass one number a sample, [{n}].")
    _, numbers = torch.unique(found, return_inverse=True)
    return Pairing(n, groups=numbers.masked_fill(found < 0, -1))


def listed(pairs: Any, n: int) -> Pairing:
    """Pairs of n samples.

    Raises:
        ShapeError, InputError: they are no pairs of positions.
    """
    return Pairing(n, alike=positions(pairs, n, "pairs"))


def positions(pairs: Any, n: int, name: str) -> Tensor:
    """Pairs of positions among n samples, [k 2].

    Raises:
        ShapeError, InputError: they are something else.
    """
    found = _whole(pairs, name)
    if found.numel() == 0:
        return found.reshape(0, 2)
    if found.dim() != 2 or found.shape[1] != 2:
        raise ShapeError(f"{name} are {list(found.shape)}: pass two positions each, [k 2]. Groups are groups=.")
    if int(found.min()) < 0 or int(found.max()) >= n or bool((found[:, 0] == found[:, 1]).any()):
        raise InputError(f"{name} have two different positions each, from 0 to {n - 1}, and some have not.")
    return found


def _whole(given: Any, name: str) -> Tensor:
    """Whole numbers, on the CPU."""
    try:
        found = torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} are no numbers of one shape ({error}): pass whole numbers.") from error
    if found.numel() and (found.is_floating_point() or found.is_complex()):
        raise InputError(f"{name} are {str(found.dtype).removeprefix('torch.')}: they are whole numbers.")
    if found.dtype == torch.uint64 and bool((found.view(torch.int64) < 0).any()):
        raise InputError(
            f"{name} hold numbers of 2^63 or more: number them anew, numpy.unique({name}, return_inverse=True)[1]."
        )
    return found.long()
