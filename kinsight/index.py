"""The index: a directory that answers for every sample of a data set, without touching the gradients again."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinsight.batches import checked_count
from kinsight.errors import IncompleteIndexError, InputError
from kinsight.identity import check_identity
from kinsight.indexing import building
from kinsight.indexing.approximate import LEAST_ROWS, SEARCH, build_search, search
from kinsight.indexing.building import ERROR, taken
from kinsight.indexing.engine import EngineName, engine_named
from kinsight.indexing.exchange import read_parquet, write_parquet
from kinsight.indexing.knn import TABLE, NeighborTable, fill_neighbors
from kinsight.indexing.queries import Queries, SketchedQueries
from kinsight.indexing.questions import Questions
from kinsight.indexing.rows import matrix_of
from kinsight.indexing.search import as_neighbors, exactly, nearest
from kinsight.indexing.store import Damage, Store
from kinsight.kernel import GradientKernel
from kinsight.neighbors import Neighbors
from kinsight.normalization import Normalization
from kinsight.samples import Batch, Id, Samples

SEARCHED_FROM = 200_000
"""Samples from which on an index gets an approximate search where nothing is said: a scan takes longer than a blink."""

N_CANDIDATES = 100
"""Best sketches whose similarities are computed, at least; and ten times as many as neighbors are asked for."""


class Index(Questions):
    """An index on disk: `Index.build` makes one, `Index(folder)` opens it.

    Args:
        folder: where it is.
        partial: whether a half-built index is read as far as it is built.

    Raises:
        NoIndexError, IndexFormatError, DamagedIndexError: there is none that can be read.
        IncompleteIndexError: it is half built.
    """

    # ------------------------------------------------------------------------------------------------ building

    @classmethod
    def build(
        cls,
        folder: str | Path,
        kernel: GradientKernel,
        data: Any,
        *,
        dim: int | None = None,
        error: float = ERROR,
        seed: int = 0,
        normalization: Normalization = "whitened",
        previews: bool = True,
        search: bool | None = None,
        resume: bool = False,
        overwrite: bool = False,
        engine: EngineName = "local",
        progress: bool = False,
    ) -> Index:
        """An index of a data set, built shard by shard: what is committed outlasts a crash, and is not done again.

        Args:
            folder: where; made where it does not exist.
            kernel: the gradient kernel of the network.
            data: whatever `Samples` takes.
            dim: numbers in a sketch; as many as `error` needs, by a trial on 32 samples, where left out.
            error: root mean square error of inner products of sketches that is asked for; what it then is, is
                measured on random samples, and stored.
            seed: of the projection.
            normalization: 'whitened' or 'flat' similarity.
            previews: whether a thumbnail, a text or a few numbers are kept of each sample.
            search: whether to build an approximate search, too; from 200,000 samples on where left out.
            resume: go on where an earlier build stopped, with the same data: what is committed is compared with it.
            overwrite: replace an index that is there.
            engine: 'local' works in this process; 'ray' on actors of Ray, of the cluster that RAY_ADDRESS or `ray
                start` names, or of this machine; see docs/cluster.md.
            progress: whether to show a progress bar.

        Raises:
            IndexExistsError: there is something in the folder.
            WrongModelError, ChangedDataError: an index to be resumed was built with other weights, or other data.
            IndexWriteError, BusyIndexError: it cannot be written, or would not fit on the disk.
            EngineError: Ray is not there, or the model or data cannot be sent to actors.
            NonFiniteError: nan or inf in outputs or gradients, with the samples' ids.

        Example:
            >>> import tempfile
            >>> kernel, x = GradientKernel(torch.nn.Linear(3, 1)), torch.randn(100, 3)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     index = Index.build(folder, kernel, x, dim=256)
            ...     len(index), index.neighbors(x[:2], n_neighbors=3, kernel=kernel, data=x).positions.shape
            (100, torch.Size([2, 3]))
        """
        samples = Samples.wrap(data)
        with engine_named(engine, kernel, samples) as ready:
            building.build(
                Path(folder), kernel, samples, dim=dim, error=error, seed=seed, normalization=normalization,
                has_previews=previews, resume=resume, overwrite=overwrite, engine=ready, progress=progress,
            )  # fmt: skip
        index = cls(folder)
        is_wanted = len(index) >= SEARCHED_FROM if search is None else search
        return index.build_search() if is_wanted and SEARCH not in index.about else index

    def append(
        self, kernel: GradientKernel, data: Any, *, engine: EngineName = "local", progress: bool = False
    ) -> Index:
        """The index with another data set added to it; after an interruption, the same call goes on.

        Args:
            kernel: the kernel it was built with.
            data: whatever `Samples` takes, with ids that are not in the index.
            engine: 'local' or 'ray', as in `build`.
            progress: whether to show a progress bar.

        Raises:
            TargetError: the index has targets, and these are of another kind, or none.
            WrongModelError, ChangedDataError: the kernel is another; an id is taken, or the data is not that which
                adding began with.
            IndexWriteError, BusyIndexError: it cannot be written, or would not fit on the disk.
        """
        samples = Samples.wrap(data)
        with engine_named(engine, kernel, samples) as ready:
            building.append(self.folder, kernel, samples, engine=ready, progress=progress)
        return Index(self.folder)

    def export(self, file: str | Path, *, overwrite: bool = False) -> int:
        """Write all rows to one Parquet file; how many. `Index.of_parquet` makes an index of it again.

        Raises:
            IndexExistsError, IndexWriteError: the file exists, or cannot be written.
        """
        return write_parquet(self.store, Path(file), overwrite=overwrite)

    @classmethod
    def of_parquet(cls, file: str | Path, folder: str | Path, *, overwrite: bool = False) -> Index:
        """An index in a folder, of a file that `export` wrote.

        Raises:
            NoIndexError, IndexFormatError: there is no such file, or it is something else.
            IndexExistsError, IndexWriteError: the folder cannot be written.
        """
        read_parquet(Path(file), Path(folder), overwrite=overwrite)
        return cls(folder)

    # ------------------------------------------------------------------------------------------------ questions

    def neighbors(
        self,
        queries: Any = None,
        *,
        ids: Sequence[Id] | None = None,
        n_neighbors: int = 10,
        kernel: GradientKernel | None = None,
        data: Any = None,
        n_candidates: int | None = None,
        is_exhaustive: bool = False,
    ) -> Neighbors:
        """The samples of the index that the network finds most similar to each query.

        With `kernel` and `data`, the true similarities of the best candidates are computed: they are exact, and only a
        neighbor whose sketch is not among the candidates' can be missed. Without, they are the cosines of sketches,
        and `error` of the result says how far they are off.

        Args:
            queries: whatever `Samples` takes. Where `data` is passed, too, a query that is a part of it (`data.take`,
                `data.first`, or by id where both were given ids) is not its own neighbor; all others are strangers.
            ids: ids of samples of the index, in place of queries; none of them is its own neighbor.
            n_neighbors: of each, k.
            kernel: the kernel the index was built with; queries that are inputs need it.
            data: the data the index was built from, to compute true similarities.
            n_candidates: samples whose true similarity is computed, for each query; at least 100 and 10 k where left
                out.
            is_exhaustive: whether all sketches are compared, also where there is an approximate search.

        Returns:
            `Neighbors`, [q k]; positions are rows of the index.

        Raises:
            WrongModelError: the kernel is another.
            ChangedDataError: the data is not what the index was built from.
            UnknownNameError: there is no sample with such an id.
        """
        k = checked_count("n_neighbors", n_neighbors)
        if (queries is None) == (ids is None):
            raise InputError("Pass queries, inputs whose neighbors are asked for, or ids of samples of the index.")
        samples = None if data is None else Samples.wrap(data)
        asked: Queries
        if ids is None:
            asked = SketchedQueries.of_inputs(self.store, queries, kernel, samples)
        else:
            if kernel is not None:
                self.check(kernel)
            if not ids:
                raise InputError("ids is empty: name the samples whose neighbors are asked for.")
            asked = Queries.of_rows(self.store, ids, self.rows_of(ids))
        if samples is None or kernel is None:
            values, rows = self._nearest(asked, k, is_exhaustive=is_exhaustive)
            return as_neighbors(asked, values, rows, self.ids, self.normalization, self.error)
        wanted = max(10 * k, N_CANDIDATES) if n_candidates is None else n_candidates
        n_candidates = checked_count("n_candidates", wanted, k)  # at least the neighbors asked for
        _, rows = self._nearest(asked, n_candidates, is_exhaustive=is_exhaustive)
        take = functools.partial(self.take, samples)
        values, rows = exactly(kernel, self.normalization, asked, rows, k, take)
        return as_neighbors(asked, values, rows, self.ids, self.normalization, None)

    def build_neighbors(
        self, n_neighbors: int = 10, *, max_bytes: int = 2**30, progress: bool = False
    ) -> NeighborTable:
        """The k nearest neighbors of every sample, by the cosines of sketches, kept as a table in the index.

        Block by block, in bounded memory; after an interruption the same call goes on.

        Args:
            n_neighbors: of each, k.
            max_bytes: of the sketches that are held at once.
            progress: whether to show a progress bar.

        Raises:
            InputError: it is no whole number above 0.
            IndexWriteError, BusyIndexError: the index cannot be written.
        """
        k = checked_count("n_neighbors", n_neighbors)
        if self.about.get(TABLE) == {"k": k, "n": len(self)} and self.store.n_rows(TABLE) == len(self):
            return self.neighbor_table()
        with Store.open(self.folder, for_writing=True) as store:
            fill_neighbors(store, k, max_bytes=max_bytes, progress=progress)
        return Index(self.folder).neighbor_table()

    def build_search(self, *, least_recall: float = 0.99) -> Index:
        """The index with an approximate search, for large ones: a scan of 100,000 sketches is fast enough.

        Its recall among 10 neighbors, before true similarities are computed, is measured on 100 random samples against
        a scan, with as many partitions looked into as it takes; `info` has it. Samples that are appended later are
        scanned until it is built again.

        Args:
            least_recall: that is asked for.

        Raises:
            InputError: there are fewer than 256 samples.
        """
        if len(self) < LEAST_ROWS:
            raise InputError(f"The index has {len(self)} samples: below {LEAST_ROWS} there is nothing to partition.")
        with Store.open(self.folder, for_writing=True) as store:
            build_search(store, least_recall)
        return Index(self.folder)

    def neighbor_table(self) -> NeighborTable:
        """The neighbors of every sample, as `build_neighbors` has kept them.

        Raises:
            IncompleteIndexError: it has not, or not of all samples.
        """
        n = self.store.n_rows(TABLE)
        if n != len(self) or self.about.get(TABLE, {}).get("n") != len(self):
            raise IncompleteIndexError(
                f"Index {str(self.folder)!r} has neighbors of {n} of its {len(self)} samples: call "
                "build_neighbors(), which goes on where it stopped."
            )
        parts = list(self.store.scan(TABLE, ["neighbors", "similarities"]))
        positions, values = (torch.cat([matrix_of(part[name]) for part in parts]) for name in parts[0].schema.names)
        return NeighborTable(self.ids, positions, values, self.error)

    def take(self, data: Any, rows: Sequence[int]) -> Batch:
        """The samples of these rows, from the data the index was built from, and compared with what it was then.

        Raises:
            ChangedDataError: the data is another.
        """
        return taken(self.store, Samples.wrap(data), rows)

    def _nearest(self, asked: Queries, k: int, *, is_exhaustive: bool) -> tuple[Tensor, Tensor]:
        how = self.about.get(SEARCH)
        if how is None or is_exhaustive:
            return nearest(self.sketches(), asked.units, k, asked.rows)
        return search(self.store, asked.units, k, asked.rows, how)

    def check(self, kernel: GradientKernel) -> None:
        """Raise unless a kernel is the one the index was built with.

        Raises:
            WrongModelError: it is another.
        """
        check_identity(kernel, self.about["kernel"], f"Index {str(self.folder)!r}")

    def verify(self) -> list[Damage]:
        """What is damaged: every file that is not, byte for byte, what was committed. Empty where all is well."""
        return [damage for _, damage in self.store.verify() if damage is not None]
