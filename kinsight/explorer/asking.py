"""Where a report's answers come from: the kernel, exactly, or an index, with its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kinsight.density import Counts, soft_count
from kinsight.fit import FitMap, fit_map
from kinsight.kernel import GradientKernel
from kinsight.labels.suspects import LabelSuspects, label_suspects
from kinsight.neighbors import Neighbors, neighbors
from kinsight.normalization import Normalization
from kinsight.samples import Samples

if TYPE_CHECKING:
    from kinsight.index import Index


@runtime_checkable
class Asker(Protocol):
    """Who answers the questions of a report, about one data set."""

    @property
    def normalization(self) -> Normalization:
        """Which similarity."""

    @property
    def dim(self) -> int | None:
        """Numbers in a sketch; None where counts and suspects are exact."""

    def neighbors(self, queries: Samples, k: int) -> Neighbors:
        """The k most similar samples of each query, by their true similarities."""

    def soft_count(self) -> Counts:
        """Of every sample."""

    def label_suspects(self, n_suspects: int) -> LabelSuspects:
        """The first of them."""

    def fit_map(self) -> FitMap:
        """Of all samples."""

    def check(self, places: Sequence[int]) -> None:
        """Raise unless the samples at these positions are those that are asked about."""


def asker(
    kernel: GradientKernel, samples: Samples, normalization: Normalization, index: Index | None, *, progress: bool
) -> Asker:
    """Who answers: the index, where there is one.

    Raises:
        WrongModelError, ChangedDataError: the index is of another model, or of other data.
    """
    if index is None:
        return ByKernel(kernel, samples, normalization, progress)
    index.check(kernel)
    index.take(samples, [0])
    return ByIndex(kernel, samples, index, progress)


@dataclass(frozen=True, eq=False)
class ByKernel:
    """Everything exact."""

    kernel: GradientKernel
    samples: Samples
    normalization: Normalization
    progress: bool
    dim: None = None

    def neighbors(self, queries: Samples, k: int) -> Neighbors:
        """Among all samples."""
        return neighbors(
            self.kernel, queries, self.samples, k, normalization=self.normalization, progress=self.progress
        )

    def soft_count(self) -> Counts:
        """In two passes."""
        return soft_count(self.kernel, self.samples, normalization=self.normalization, progress=self.progress)

    def label_suspects(self, n_suspects: int) -> LabelSuspects:
        """From all pairs."""
        return label_suspects(
            self.kernel, self.samples, n_suspects=n_suspects, normalization=self.normalization, progress=self.progress
        )

    def fit_map(self) -> FitMap:
        """From all pairs."""
        return fit_map(self.kernel, self.samples, normalization=self.normalization, progress=self.progress)

    def check(self, places: Sequence[int]) -> None:
        """They are: nothing else was asked."""


@dataclass(frozen=True, eq=False)
class ByIndex:
    """Counts and suspects from sketches; neighbors by true similarities, looked for by sketches."""

    kernel: GradientKernel
    samples: Samples
    index: Index
    progress: bool

    @property
    def normalization(self) -> Normalization:
        """Of the index."""
        return self.index.normalization

    @property
    def dim(self) -> int:
        """Of the index."""
        return self.index.dim

    def neighbors(self, queries: Samples, k: int) -> Neighbors:
        """Among the best candidates."""
        return self.index.neighbors(queries, n_neighbors=k, kernel=self.kernel, data=self.samples)

    def soft_count(self) -> Counts:
        """With its standard error."""
        return self.index.soft_count()

    def label_suspects(self, n_suspects: int) -> LabelSuspects:
        """By cosines of sketches."""
        return self.index.label_suspects(n_suspects=n_suspects, progress=self.progress)

    def fit_map(self) -> FitMap:
        """By cosines of sketches."""
        return self.index.fit_map(progress=self.progress)

    def check(self, places: Sequence[int]) -> None:
        """By the digests that the index keeps."""
        self.index.take(self.samples, places)
