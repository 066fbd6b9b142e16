"""kinsight neighbors."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kinsight.cli.loading import kernel_of, positions_of, samples_of
from kinsight.cli.options import Data, Model, Normalization, Options, Queries, Similarity
from kinsight.cli.printing import print_rows


def print_neighbors(
    model: Model,
    data: Data,
    options: Options,
    queries: Queries = None,
    ids: Annotated[list[str] | None, typer.Option(help="Only these samples of the queries; may be repeated.")] = None,
    k: Annotated[int, typer.Option("-k", "--n-neighbors", min=1, help="Neighbors of each query.")] = 10,
    normalization: Normalization = Similarity.whitened,
) -> None:
    """The samples the network finds most similar to each query."""
    from kinsight.neighbors import neighbors
    from kinsight.samples import Samples

    kernel = kernel_of(model, options)
    samples = samples_of(data, options, limit=options.limit)
    asked: Any = samples if queries is None else samples_of(queries, options)
    if ids:
        asked = Samples(asked.take(positions_of(asked, ids)))
    found = neighbors(kernel, asked, samples, k, normalization=normalization.value, progress=not options.quiet)
    print_rows(found.rows(), as_json=options.as_json, normalization=normalization.value)
