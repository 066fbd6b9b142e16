"""What other tools read: results as tables, a graph of neighbors, cleanlab's issues, the columns of a map."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kinsight.density import Counts
from kinsight.errors import IndexExistsError, IndexWriteError, InputError, SampleTypeError
from kinsight.indexing.knn import TABLE, NeighborTable
from kinsight.indexing.rows import ROWS
from kinsight.labels.suspects import LabelSuspects
from kinsight.labels.votes import names_of_classes
from kinsight.neighbors import Neighbors
from kinsight.samples import Id

if TYPE_CHECKING:
    from kinsight.index import Index


@runtime_checkable
class Result(Protocol):
    """Every result of this package. One that may have no rows names what they would have in `columns`."""

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """One record a sample, or a pair of samples."""


def as_table(result: Result) -> pa.Table:
    """The rows of a result as columns; `.to_pandas()` makes a data frame of them.

    Numbers in a column that has texts, too, such as ids of both kinds, become texts.

    Raises:
        SampleTypeError: it has no rows.
    """
    if not hasattr(result, "rows"):
        raise SampleTypeError(
            f"A {type(result).__name__} has no rows to write: export what is said of samples, such as counts, "
            "neighbors, suspected labels."
        )
    records = [dict(row) for row in result.rows()]
    names = list(records[0]) if records else list(getattr(result, "columns", ()))
    return pa.table({name: _column([record[name] for record in records]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(leaf) for leaf in _leaves(values)} - {type(None)}
    return pa.array(_as_texts(values) if str in kinds and len(kinds) > 1 else values)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _as_texts(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_texts(part) for part in value]
    return None if value is None else str(value)


def export(result: Result, path: str | Path, *, overwrite: bool = False) -> int:
    """Write the rows of a result to a file, .parquet or .csv by its name; how many. Lists are JSON in CSV.

    Raises:
        InputError: the name ends in something else.
        IndexExistsError, IndexWriteError: the file is there already, or cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{str(path)!r}: results are written to files that end in .parquet or .csv.")
    if path.exists() and not overwrite:
        raise IndexExistsError(f"{str(path)!r} is there already: pass overwrite=True to replace it, or another name.")
    if not path.parent.is_dir():
        raise IndexWriteError(f"{str(path)!r}: there is no folder {str(path.parent)!r}. Make it, or pass another name.")
    table, draft = as_table(result), path.with_name(f".{path.name}.draft")
    try:
        if path.suffix == ".parquet":
            pq.write_table(table, draft)
        else:
            with draft.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(table.column_names)
                writer.writerows(map(_cells, table.to_pylist()))
        os.replace(draft, path)
    except OSError as error:
        raise IndexWriteError(
            f"{str(path)!r} cannot be written: {error.strerror or error}. Nothing was changed: make room or give "
            "permission, or pass another name."
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return len(table)


def _cells(record: dict[str, Any]) -> list[Any]:
    return [json.dumps(value) if isinstance(value, list | dict) else value for value in record.values()]


def knn_graph(found: Neighbors | NeighborTable) -> Any:
    """The neighbors of every sample as a sparse matrix of distances 1 - similarity, nearest first: what cleanlab takes.

    `Datalab.find_issues(knn_graph=...)`, or anything of scikit-learn with `metric="precomputed"`.

    Args:
        found: `neighbors(kernel, data, data)`, or `Index.build_neighbors()`.

    Returns:
        `scipy.sparse.csr_matrix`, [n n], k entries a row, in the order of distance.

    Raises:
        InputError: some samples have fewer neighbors than others, or their neighbors are not among them.
        ImportError: scipy is not there.
    """
    from scipy.sparse import csr_matrix

    n, k = found.positions.shape
    n_short = int((found.positions < 0).any(dim=1).sum())
    if n_short:
        raise InputError(
            f"{n_short} of {n} samples have fewer than {k} neighbors (a zero gradient is like nothing): there is no "
            "graph with as many for each. Ask for fewer neighbors, or leave these samples out."
        )
    if isinstance(found, Neighbors) and not found.is_own:
        raise InputError(
            "The graph is of the neighbors of every sample among the same samples, in their order, and these "
            "queries are others: pass queries=data."
        )
    distances = (1 - found.similarities.double()).clamp(min=0).flatten().numpy()
    starts = torch.arange(0, n * k + 1, k)
    return csr_matrix((distances, found.positions.flatten().numpy(), starts.numpy()), shape=(n, n))


def cleanlab_issues(
    suspects: LabelSuspects | None = None, table: NeighborTable | None = None, *, least: float = 0.95
) -> pa.Table:
    """Columns under the names that cleanlab's Datalab has for them, where they mean the same; one row a sample.

    `is_label_issue`, `label_score` (1 is beyond doubt, 0 surely wrong), `given_label`, `predicted_label`, and
    `is_near_duplicate_issue`, `near_duplicate_score` (0 for a copy), `near_duplicate_sets`.

    Args:
        suspects: of `label_suspects`, all of them.
        table: the neighbors of every sample of an index of the same data.
        least: similarity from which on samples are near-duplicates.

    Raises:
        InputError: there is neither, they are of other samples, or the suspects were cut.
    """
    columns: dict[str, Any] = {}
    if suspects is not None:
        if len(suspects) < suspects.n_contradicted:
            raise InputError("The suspects were cut to the first ones: ask for all, without n_suspects.")
        is_suspect = torch.zeros(len(suspects.all_scores), dtype=torch.bool)
        is_suspect[suspects.positions] = True
        columns |= {
            "is_label_issue": is_suspect.numpy(),
            "label_score": _quality(suspects).numpy(),
            "given_label": suspects.all_given.tolist(),
            "predicted_label": suspects.all_suggested.tolist(),
        }
    if table is not None:
        is_near = (table.similarities >= least) & (table.positions >= 0)
        sets = [row[near].tolist() for row, near in zip(table.positions, is_near, strict=True)]
        nearest = table.similarities[:, 0].double().nan_to_num(nan=0.0)
        columns |= {
            "is_near_duplicate_issue": is_near.any(dim=1).numpy(),
            "near_duplicate_score": (1 - nearest).clamp(0, 1).numpy(),
            "near_duplicate_sets": pa.array(sets, pa.list_(pa.int64())),
        }
    if not columns:
        raise InputError("Pass suspects, a table of neighbors, or both.")
    if suspects is not None and table is not None:
        _check_same("suspects", suspects.all_ids, "neighbors", table.ids)
    return pa.table(columns)


def _check_same(what: str, ids: tuple[Id, ...], other: str, others: tuple[Id, ...]) -> None:
    """Raise unless two results are of the same samples, by id, in the same order."""
    if len(ids) != len(others):
        raise InputError(f"The {what} are of {len(ids)} samples, the {other} of {len(others)}.")
    place = next((place for place, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b), None)
    if place is not None:
        raise InputError(
            f"The {what} are of other samples than the {other}, or in another order: row {place} is {ids[place]!r} and "
            f"{others[place]!r}. What is true of one sample would be said of another: ask both about the same data."
        )


def _quality(suspects: LabelSuspects) -> Tensor:
    """From 0, surely wrong, to 1."""
    scores = suspects.all_scores.double()
    return 1 - scores if suspects.task == "classification" else (-scores / 3).exp()


def map_table(index: Index, suspects: LabelSuspects | None = None, counts: Counts | None = None) -> pa.Table:
    """One row a sample for a map of the data: what embedding-atlas opens, and columns for FiftyOne.

    `id`, `x`, `y` (the two directions in which gradients vary most), `label`; `neighbors` with `ids` (rows) and
    `distances`, where `build_neighbors` was called; `image` or `text`, where the index has previews; `suggested_label`
    and `label_score`, `count`, where they are passed. `embedding-atlas map.parquet --x x --y y --neighbors neighbors`.

    Rows are joined in their order: that they are the same is known by id, so of ids that are no more than numbers of
    rows only how many there are.

    Args:
        index: of the data.
        suspects: of `Index.label_suspects`.
        counts: such as `Index.soft_count()`.

    Raises:
        InputError: suspects or counts are of other samples, by id, or in another order.
    """
    if suspects is not None:
        _check_same("suspects", suspects.all_ids, "index", index.ids)
    if counts is not None:
        _check_same("counts", counts.ids, "index", index.ids)
    places = flattened(index)
    columns: dict[str, Any] = {
        "id": _column(list(index.ids)), "x": places[:, 0].numpy(), "y": places[:, 1].numpy(),
    }  # fmt: skip
    if index.about["parts"][0]["target_type"] is not None:
        columns["label"] = _named(index.targets, index.about["class_names"])
    if suspects is not None:
        columns["suggested_label"] = _named(suspects.all_suggested, index.about["class_names"])
        columns["label_score"] = _quality(suspects).numpy()
    if counts is not None:
        columns["count"] = (counts.values if counts.values.dim() == 1 else counts.values[:, 0]).numpy()
    if index.about.get(TABLE, {}).get("n") == len(index):
        columns["neighbors"] = _neighbor_column(index.neighbor_table())
    return pa.table({**columns, **_preview_columns(index)})


def flattened(index: Index) -> Tensor:
    """Where each sample lies on a map: along the two directions in which unit gradients vary most. [n 2].

    Those of the sketches: two principal components. Each sign is that which makes the largest value positive.
    """
    n, total = 0, torch.zeros(index.dim, dtype=torch.float64)
    moments = torch.zeros(index.dim, index.dim, dtype=torch.float64)
    for _, values in index.sketches():
        n, total = n + len(values), total + values.double().sum(dim=0)
        moments += (values.T @ values).double()
    center = total / n
    _, vectors = torch.linalg.eigh(moments / n - center[:, None] * center)
    axes = vectors[:, -2:].flip(1)
    found = torch.cat([(values.double() - center) @ axes for _, values in index.sketches()])
    if found.shape[1] < 2:
        found = torch.nn.functional.pad(found, (0, 1))
    strongest = found.gather(0, found.abs().argmax(dim=0, keepdim=True))
    return found * torch.where(strongest < 0, -1.0, 1.0)


def _named(labels: Tensor, class_names: list[str] | None) -> pa.Array:
    numbers = labels.tolist()
    is_classes = labels.dim() == 1 and not labels.is_floating_point()
    return pa.array(names_of_classes(numbers, class_names) if is_classes else numbers)


def _neighbor_column(table: NeighborTable) -> pa.Array:
    rows = [
        {"ids": [place for place in places if place >= 0], "distances": [1 - each for each in values if each == each]}
        for places, values in zip(table.positions.tolist(), table.similarities.double().tolist(), strict=True)
    ]
    return pa.array(rows, pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float64()))]))


def _preview_columns(index: Index) -> dict[str, pa.Array]:
    if not index.about["has_previews"]:
        return {}
    shown = [row or {} for part in index.store.scan(ROWS, ["preview"]) for row in part["preview"].to_pylist()]
    found: dict[str, pa.Array] = {}
    if any(each.get("png") for each in shown):
        images = [{"bytes": each["png"]} if each.get("png") else None for each in shown]
        found["image"] = pa.array(images, pa.struct([("bytes", pa.binary())]))
    if any(each.get("text") for each in shown):
        found["text"] = pa.array([each.get("text") for each in shown], pa.string())
    return found
