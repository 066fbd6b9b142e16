"""What an index holds, as it lies on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinsight.errors import IncompleteIndexError, TargetError, UnknownNameError
from kinsight.indexing.about import check_about
from kinsight.indexing.approximate import SEARCH
from kinsight.indexing.knn import sketches_of
from kinsight.indexing.rows import ROWS, ids_of, matrix_of
from kinsight.indexing.store import Store
from kinsight.normalization import Normalization
from kinsight.samples import Id


class Contents:
    """An index, opened to be read: for every sample its id, sketch, norm, outputs and target.

    Args:
        folder: where it is.
        partial: whether a half-built index is read as far as it is built.

    Raises:
        NoIndexError, IndexFormatError, DamagedIndexError: there is none that can be read.
        IncompleteIndexError: it is half built.
    """

    def __init__(self, folder: str | Path, *, partial: bool = False) -> None:
        self.folder = Path(folder)
        self.store = Store.open(self.folder)
        check_about(self.store)
        self.about = self.store.about
        n_expected = sum(part["n"] for part in self.about["parts"])
        if not partial and not all(part["is_complete"] for part in self.about["parts"]):
            is_first = len(self.about["parts"]) == 1
            how = "resume=True (--resume)" if is_first else "append() of the same data (--append)"
            raise IncompleteIndexError(
                f"Index {str(self.folder)!r} has {len(self):,} of {n_expected:,} samples: it is being built, or was "
                f"interrupted. Go on with {how}, or open what there is with partial=True."
            )
        self._ids: tuple[Id, ...] | None = None

    def __len__(self) -> int:
        return self.store.n_rows(ROWS)

    def info(self) -> dict[str, Any]:
        """What it was built from, how much of it is there, and how far its similarities are off."""
        about, parts = self.about, self.about["parts"]
        known = [part["error"] for part in parts if part["is_complete"]]
        worst = max(known, key=lambda error: float(error["cosine"])) if known else {}
        return {
            "folder": str(self.folder), "samples": len(self), "expected": sum(part["n"] for part in parts),
            "is_complete": all(part["is_complete"] for part in parts), "parts": len(parts),
            **{name: about["kernel"][name] for name in ("model", "output", "n_parameters", "weights")},
            "normalization": about["normalization"], "dim": about["dim"], "seed": about["seed"],
            "error": worst.get("cosine"), "error_of_sums": worst.get("inner"), "has_previews": about["has_previews"],
            "recall": about.get(SEARCH, {}).get("recall"),
            "bytes": sum(size for size, _ in self.store.files.values()), "files": len(self.store.files),
        }  # fmt: skip

    @property
    def dim(self) -> int:
        """Numbers in a sketch."""
        return int(self.about["dim"])

    @property
    def normalization(self) -> Normalization:
        """Which similarity its sketches estimate."""
        found: Normalization = self.about["normalization"]
        return found

    @property
    def error(self) -> float:
        """Root mean square error of the similarities of sketches, as measured; the largest of its parts."""
        known = [part["error"]["cosine"] for part in self.about["parts"] if part["is_complete"]]
        return float(max(known)) if known else 2 / self.dim**0.5

    @property
    def error_of_inner_products(self) -> tuple[float, float]:
        """Root mean square error of inner products of sketches, over all parts, and its standard error."""
        known = [(part["n"], part["error"]) for part in self.about["parts"] if part["is_complete"]]
        if not known:
            return self.dim**-0.5, self.dim**-0.5
        n = sum(size for size, _ in known)
        square, spread = (
            sum(size * error[name] ** 2 for size, error in known) / n for name in ("inner", "inner_standard_error")
        )
        return square**0.5, spread**0.5

    @property
    def excess(self) -> float:
        """How much larger the error of inner products is than that of a dense projection; at least 1."""
        known = [part["error"] for part in self.about["parts"] if part["is_complete"]]
        return max([1.0, *(float(error["inner"] / error["expected"]) for error in known if error["expected"])])

    @property
    def ids(self) -> tuple[Id, ...]:
        """One id a sample, in the order of rows."""
        if self._ids is None:
            parts = self.store.scan(ROWS, ["id", "is_number"])
            columns = ((part["id"].to_pylist(), part["is_number"].to_pylist()) for part in parts)
            self._ids = tuple(id_ for texts, are_numbers in columns for id_ in ids_of(texts, are_numbers))
        return self._ids

    @property
    def norms(self) -> Tensor:
        """|g(x)| of every sample, over all outputs. [n]."""
        return torch.cat([torch.tensor(part["norm"].to_numpy()) for part in self.store.scan(ROWS, ["norm"])])

    @property
    def targets(self) -> Tensor:
        """The targets, [n] or [n d].

        Raises:
            TargetError: the data had none, or parts had different ones.
        """
        kinds = {(str(part["target_shape"]), part["target_type"]) for part in self.about["parts"]}
        if all(kind is None for _, kind in kinds):
            raise TargetError("The index has no targets: build it from data with targets.")
        if len(kinds) > 1:
            told = " and ".join(sorted(f"{kind or 'none'} {shape if kind else ''}".strip() for shape, kind in kinds))
            raise TargetError(
                f"Parts of the index have targets of different kinds, {told} (type, and shape of one): build it from "
                "data that has the same of all."
            )
        shape, dtype = self.about["parts"][0]["target_shape"], getattr(torch, self.about["parts"][0]["target_type"])
        parts = [matrix_of(part["target"]) for part in self.store.scan(ROWS, ["target"])]
        return torch.cat(parts).reshape(-1, *shape).to(dtype)

    @property
    def outputs(self) -> Tensor:
        """The output function's values. [n c]."""
        return torch.cat([matrix_of(part["outputs"]) for part in self.store.scan(ROWS, ["outputs"])])

    @property
    def contents(self) -> list[bytes]:
        """A digest of every sample's inputs and target."""
        return [digest for part in self.store.scan(ROWS, ["content"]) for digest in part["content"].to_pylist()]

    def sketches(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, sketches [n dim], float32) of all samples, batch by batch."""
        return sketches_of(self.store)

    def rows_of(self, ids: Sequence[Id]) -> list[int]:
        """Rows of the samples with these ids.

        Raises:
            UnknownNameError: there is no such sample.
        """
        place = {id_: row for row, id_ in enumerate(self.ids)}
        missing = [id_ for id_ in ids if id_ not in place]
        if missing:
            raise UnknownNameError(
                f"There is no sample {missing[0]!r} in the index: ids go from {self.ids[0]!r} to {self.ids[-1]!r}."
            )
        return [place[id_] for id_ in ids]
