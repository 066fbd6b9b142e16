"""What an index is asked about: its own samples by row, or inputs that are sketched as its samples were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinsight.errors import InputError
from kinsight.identity import check_identity
from kinsight.indexing.building import taken
from kinsight.indexing.rows import ROWS, matrix_of
from kinsight.indexing.store import Store
from kinsight.kernel import GradientKernel
from kinsight.namesakes import self_positions
from kinsight.samples import Id, Samples
from kinsight.sketch import Sketch, sketch

READ = 4096
"""Samples that are compared with what the index was built from at once."""


@dataclass(frozen=True, eq=False)
class Queries:
    """What is asked about, q samples.

    Args:
        ids: of them.
        sketches: as those of the index are, [q dim].
        rows: where they lie in the index themselves, [q]; -1 where they do not.
    """

    ids: tuple[Id, ...]
    sketches: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def units(self) -> Tensor:
        """The sketches, of length 1 or 0. [q dim]."""
        return units_of(self.sketches)

    @staticmethod
    def of_rows(store: Store, ids: Sequence[Id], rows: Sequence[int]) -> Queries:
        """Samples of an index, whose sketches are known."""
        values = matrix_of(store.take(ROWS, rows, ["sketch"])["sketch"]).float()
        return Queries(tuple(ids), values, torch.tensor(rows))


@dataclass(frozen=True, eq=False)
class SketchedQueries(Queries):
    """Inputs.

    Args:
        norms: of their gradients, over all outputs, [q].
        outputs: the output function's values, [q c].
        samples: they themselves.
    """

    norms: Tensor
    outputs: Tensor
    samples: Samples

    @staticmethod
    def of_inputs(store: Store, queries: Any, kernel: GradientKernel | None, data: Any) -> SketchedQueries:
        """Whatever `Samples` takes, sketched batch by batch; with the data of the index, parts of it are known as such.

        Raises:
            InputError: there is no kernel to do so.
            WrongModelError: it is another than the index was built with.
            ChangedDataError: the data is not what the index was built from.
        """
        if kernel is None:
            raise InputError("Queries that are inputs need kernel=, to sketch them as the index's samples were.")
        check_identity(kernel, store.about["kernel"], f"Index {str(store.folder)!r}")
        samples = Samples.wrap(queries)
        rows = torch.full((len(samples),), -1) if data is None else _rows_of(store, samples, Samples.wrap(data))
        dim, how = store.about["dim"], {name: store.about[name] for name in ("seed", "normalization")}
        parts: list[Sketch] = [
            sketch(kernel, batch, dim, **how) for batch in samples.batches(kernel.block_size(samples))
        ]
        values, norms, outputs = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("values", "norms", "outputs")
        )
        return SketchedQueries(samples.ids, values, rows, norms.double(), outputs, samples)


def _rows_of(store: Store, samples: Samples, data: Samples) -> Tensor:
    """Where samples lie in the data of an index, which is compared with what it was then: there, or at one sample."""
    rows = self_positions(samples, data)
    places = rows[rows >= 0].tolist() or [0]
    for start in range(0, len(places), READ):  # positions in other data would be rows of other samples
        taken(store, data, places[start : start + READ])
    return rows


def units_of(values: Tensor) -> Tensor:
    """Sketches divided by their lengths; zeros stay."""
    norms = values.norm(dim=1, keepdim=True)
    return values * torch.where(norms > 0, 1 / norms, 0.0)
