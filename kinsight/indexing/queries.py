"""What an index is asked about: its own samples by row, or inputs that are sketched as its samples were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kinsight.errors import InputError
from kinsight.identity import check_identity
from kinsight.indexing.rows import ROWS, matrix_of
from kinsight.indexing.store import Store
from kinsight.kernel import GradientKernel
from kinsight.namesakes import self_positions
from kinsight.samples import Id, Samples
from kinsight.sketch import Sketch, sketch


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
    """Inputs. Their `rows` are as the data says that was passed, and is not compared with what it was.

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
        """
        if kernel is None:
            raise InputError("Queries that are inputs need kernel=, to sketch them as the index's samples were.")
        check_identity(kernel, store.about["kernel"], f"Index {str(store.folder)!r}")
        samples = Samples.wrap(queries)
        rows = torch.full((len(samples),), -1) if data is None else self_positions(samples, Samples.wrap(data))
        if samples.is_stream:  # which is read once, and not again for every group of neighbors
            samples = Samples(samples.take(range(len(samples))))
        dim, how = store.about["dim"], {name: store.about[name] for name in ("seed", "normalization")}
        parts: list[Sketch] = [
            sketch(kernel, batch, dim, **how) for batch in samples.batches(kernel.block_size(samples))
        ]
        values, norms, outputs = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("values", "norms", "outputs")
        )
        return SketchedQueries(samples.ids, values, rows, norms.double(), outputs, samples)


def units_of(values: Tensor) -> Tensor:
    """Sketches divided by their lengths; zeros stay."""
    norms = values.norm(dim=1, keepdim=True)
    return values * torch.where(norms > 0, 1 / norms, 0.0)
