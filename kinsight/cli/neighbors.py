"""kinsight neighbors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinsight.cli.loading import asked, index_of, kernel_of, positions_of, samples_of
from kinsight.cli.options import OptionalData, OptionalModel, OptionalNormalization, Options, Queries, Similarity
from kinsight.cli.printing import print_rows
from kinsight.errors import InputError

if TYPE_CHECKING:
    from kinsight.index import Index
    from kinsight.neighbors import Neighbors


def print_neighbors(
    options: Options,
    model: OptionalModel = None,
    data: OptionalData = None,
    queries: Queries = None,
    ids: Annotated[list[str] | None, typer.Option(help="Only these samples of the queries; may be repeated.")] = None,
    k: Annotated[int, typer.Option("-k", "--n-neighbors", min=1, help="Neighbors of each query.")] = 10,
    normalization: OptionalNormalization = None,
    index: Annotated[
        Path | None,
        typer.Option(
            help="Search this index; then compute the true similarities of what is found, if there are MODEL and DATA."
        ),
    ] = None,
) -> None:
    """The samples the network finds most similar to each query."""
    if index is not None:
        found = _from_index(index_of(index, normalization), model, data, queries, ids, k, options)
        facts = {"normalization": found.normalization, "error": found.error}
        print_rows(found.rows(), as_json=options.as_json, **facts)
        return
    from kinsight.neighbors import neighbors
    from kinsight.samples import Samples

    kernel, samples = asked(model, data, options)
    rows: Any = samples if queries is None else samples_of(queries, options)
    if ids:
        rows = Samples(rows.take(positions_of(rows, ids)))
    chosen = normalization or Similarity.whitened
    found = neighbors(kernel, rows, samples, k, normalization=chosen.value, progress=not options.quiet)
    print_rows(found.rows(), as_json=options.as_json, normalization=chosen.value)


def _from_index(
    index: Index,
    model: str | None,
    data: str | None,
    queries: str | None,
    ids: Sequence[str] | None,
    k: int,
    options: Options,
) -> Neighbors:
    """Neighbors of queries, or of samples of the index."""
    kernel = None if model is None else kernel_of(model, options)
    samples = None if data is None else samples_of(data, options, limit=options.limit)
    if queries is not None:
        if kernel is None:
            raise InputError("--queries are inputs: MODEL is needed to sketch them.")
        rows = samples_of(queries, options)
        chosen = rows.take(positions_of(rows, ids)) if ids else rows
        return index.neighbors(chosen, k=k, kernel=kernel, data=samples)
    if not ids:
        raise InputError("Whose neighbors? Name samples of the index with --ids, or pass --queries.")
    named = [index.ids[place] for place in positions_of(index, ids)]
    return index.neighbors(ids=named, k=k, kernel=kernel, data=samples)
