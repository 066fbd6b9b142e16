"""Which samples of a batch are known to be alike, and which to be apart: what similarity is enforced between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kinsight.batches import Batch, as_batch
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

    @property
    def alike_weights(self) -> Tensor:
        """Half of how often each pair counts, in both directions: the sum is the number of pairs. [n n], float64."""
        if self.alike is not None:
            return self._counted(self.alike)
        assert self.groups is not None
        return self._half(self._same)

    @property
    def apart_weights(self) -> Tensor:
        """The same of pairs that are apart. [n n], float64."""
        if self.apart is not None:
            return self._counted(self.apart)
        if self.groups is None:
            return torch.zeros(self.n, self.n, dtype=torch.float64)
        is_in_one = self.groups >= 0
        return self._half(~self._same & is_in_one[:, None] & is_in_one)

    @property
    def n_alike(self) -> int:
        """Number of pairs that are alike."""
        if self.alike is not None:
            return len(self.alike)
        assert self.groups is not None
        sizes = torch.bincount(self.groups[self.groups >= 0])
        return int((sizes * (sizes - 1)).sum()) // 2

    @property
    def _same(self) -> Tensor:
        assert self.groups is not None
        return (self.groups[:, None] == self.groups) & (self.groups[:, None] >= 0)

    def _half(self, flags: Tensor) -> Tensor:
        return 0.5 * flags.double().fill_diagonal_(0)

    def _counted(self, pairs: Tensor) -> Tensor:
        counts = torch.zeros(self.n, self.n, dtype=torch.float64)
        counts.index_put_(
            (pairs[:, 0], pairs[:, 1]), torch.full((len(pairs),), 0.5, dtype=torch.float64), accumulate=True
        )
        return counts + counts.T


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
        if self.n_views < 2:
            raise InputError(f"n_views is {self.n_views}: a pair takes two.")
        if not callable(self.transform):
            raise SampleTypeError(f"transform is a {type(self.transform).__name__}: pass something callable.")

    def views(self, batch: Batch) -> Batch:
        """All views of a batch, one after another."""
        parts = [batch.inputs] if self.keeps_original else []
        parts += [self._moved(batch.inputs) for _ in range(self.n_views - len(parts))]
        targets = None if batch.targets is None else torch.cat([batch.targets] * self.n_views)
        return as_batch(Batch(_joined(parts), targets=targets))

    def _moved(self, inputs: Any) -> Any:
        if self.is_batched:
            return self.transform(inputs)
        if not isinstance(inputs, Tensor):
            raise SampleTypeError(
                f"Inputs are a {type(inputs).__name__} of tensors: pass Augmented(transform, is_batched=True), with a "
                "transform of whole batches."
            )
        return torch.stack([torch.as_tensor(self.transform(sample)) for sample in inputs])


def _joined(parts: list[Any]) -> Any:
    """Batches of inputs, one after another."""
    first = parts[0]
    if isinstance(first, Tensor):
        shapes = {tuple(part.shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise ShapeError(f"Augmentations have the shapes {sorted(shapes)}: one batch takes one.")
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*parts, strict=True))
    return first


PairSource = str | Augmented | Callable[[Batch], Any]
"""'class': samples of the same target; augmentations; or from a batch to groups, [n], or to pairs, [k 2]."""


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
        return batch, pairing_of(source(batch), len(batch))
    targets = batch.targets
    if targets is None or targets.is_floating_point() or targets.is_complex() or targets.dim() != 1:
        kind = "missing" if targets is None else f"{str(targets.dtype).removeprefix('torch.')} {list(targets.shape)}"
        raise TargetError(
            f"pairs='class' makes pairs of samples of one class, and targets are {kind}: pass integers [n], or say "
            "otherwise what is alike: loss(x, groups=...), loss(x, pairs=...), or pairs=Augmented(transform)."
        )
    _, numbers = torch.unique(targets.cpu(), return_inverse=True)
    return batch, Pairing(len(batch), groups=numbers.masked_fill(targets.cpu() < 0, -1))


def pairing_of(given: Any, n: int, apart: Any = None) -> Pairing:
    """Groups [n], or pairs [k 2], of n samples.

    Raises:
        ShapeError, InputError: they are neither.
    """
    found = _whole(given, "groups or pairs")
    listed = None if apart is None else _pairs(_whole(apart, "dissimilar pairs"), n)
    if found.dim() == 1 and len(found) == n:
        return Pairing(n, groups=found, apart=listed)
    return Pairing(n, alike=_pairs(found, n), apart=listed)


def _whole(given: Any, what: str) -> Tensor:
    found = torch.as_tensor(given).detach().cpu()
    if found.is_floating_point() or found.is_complex():
        raise InputError(f"{what} are {str(found.dtype).removeprefix('torch.')}: they are whole numbers.")
    return found.long()


def _pairs(found: Tensor, n: int) -> Tensor:
    if found.numel() == 0:
        return found.reshape(0, 2)
    if found.dim() != 2 or found.shape[1] != 2:
        raise ShapeError(f"Groups or pairs are {list(found.shape)} for {n} samples: groups are [{n}], pairs [k 2].")
    if int(found.min()) < 0 or int(found.max()) >= n or bool((found[:, 0] == found[:, 1]).any()):
        raise InputError(f"A pair is two different positions from 0 to {n - 1}, and some are not.")
    return found
