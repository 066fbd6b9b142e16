"""kinsight neighbors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinsight.cli.loading import asked, index_alone, index_of, kernel_of, positions_of, samples_of
from kinsight.cli.options import (
    OptionalData,
    OptionalModel,
    Options,
    OutFile,
    Queries,
    Similarity,
    WhitenedOrOfIndex,
)
from kinsight.cli.printing import print_answer
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
    normalization: WhitenedOrOfIndex = None,
    index: Annotated[
        Path | None,
        typer.Option(
            help="Search this index; then compute the true similarities of what is found, if there are MODEL and DATA."
        ),
    ] = None,
    duplicates: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Instead: groups of samples of --index that are so similar, at least."),
    ] = None,
    hubs: Annotated[
        int | None, typer.Option(min=1, help="Instead: so many samples of --index that are neighbors of most others.")
    ] = None,
    out: OutFile = None,
) -> None:
    """The samples the network finds most similar to each query."""
    if index is not None:
        is_alone = queries is None and model is None and data is None
        opened = index_alone(index, normalization, options, model, data) if is_alone else index_of(index, normalization)
        if is_alone and not ids:
            _print_of_all(opened, k, duplicates, hubs, options, out)
            return
        if duplicates is None and hubs is None:
            found = _from_index(opened, model, data, queries, ids, k, options)
            facts: dict[str, Any] = {"normalization": found.normalization, "error": found.error}
            print_answer(found.rows(), options, out, columns=found.columns, summary=found.summary(), **facts)
            return
    if duplicates is not None or hubs is not None:
        raise InputError(
            "--duplicates and --hubs are of all samples of an index: pass --index, and nothing to compare."
        )
    from kinsight.neighbors import neighbors
    from kinsight.samples import Samples

    kernel, samples = asked(model, data, options)
    rows: Any = samples if queries is None else samples_of(queries, options)
    if ids:
        rows = Samples(rows.take(positions_of(rows, ids)))
    chosen = normalization or Similarity.whitened
    found = neighbors(kernel, rows, samples, k, normalization=chosen.value, progress=not options.quiet)
    print_answer(found.rows(), options, out, columns=found.columns, summary=found.summary(), normalization=chosen.value)


def _print_of_all(
    index: Index, k: int, duplicates: float | None, hubs: int | None, options: Options, out: Path | None
) -> None:
    """Neighbors of every sample of an index, which keeps them; or what these say of the data."""
    if duplicates is not None and hubs is not None:
        raise InputError("--duplicates and --hubs are two questions: ask one at a time.")
    table = index.build_neighbors(k, progress=not options.quiet)
    facts: dict[str, Any] = {"normalization": index.normalization, "error": index.error}
    rows: Iterable[dict[str, Any]] = table.rows()
    columns: tuple[str, ...] = table.columns
    summary = table.summary()
    if duplicates is not None:
        groups = table.duplicates(duplicates)
        n_samples = sum(map(len, groups))
        summary = (
            f"{len(groups):,} groups of {n_samples:,} samples are connected by similarities of {duplicates} or more."
        )
        rows = ({"group": number, "id": table.ids[row]} for number, group in enumerate(groups) for row in group)
        columns = ("group", "id")
    elif hubs is not None:
        rows = ({"id": table.ids[row], "neighbor_of": count} for row, count in table.hubs(hubs))
        facts |= {"n_neighbors": k, "skewness": table.skewness}
        columns = ("id", "neighbor_of")
    print_answer(rows, options, out, columns=columns, summary=summary, **facts)


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
        return index.neighbors(chosen, n_neighbors=k, kernel=kernel, data=samples)
    named = [index.ids[place] for place in positions_of(index, ids)] if ids else index.ids
    return index.neighbors(ids=named, n_neighbors=k, kernel=kernel, data=samples)
