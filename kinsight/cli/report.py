"""kinsight report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kinsight.cli.loading import check_writable, index_of, kernel_of, samples_of
from kinsight.cli.options import Data, Model, OptionalNormalization, Options, Similarity
from kinsight.cli.printing import print_rows


def make_report(
    model: Model,
    data: Data,
    options: Options,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    queries: Annotated[str | None, typer.Option(help="Data whose neighbors are shown; else some of DATA.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
    n_queries: Annotated[int, typer.Option(min=0, help="Queries whose neighbors are shown.")] = 8,
    n_neighbors: Annotated[int, typer.Option(min=1, help="Neighbors shown of each.")] = 8,
    n_suspects: Annotated[int, typer.Option(min=0, help="Suspected labels shown.")] = 24,
    weight_decay: Annotated[
        float, typer.Option(min=0, help="Of training, as in torch.optim.SGD; for the noise of values.")
    ] = 0.0,
    normalization: OptionalNormalization = None,
    index: Annotated[
        Path | None,
        typer.Option(help="Take counts and suspects from this index of DATA, in its normalization, with their error."),
    ] = None,
) -> None:
    """One HTML file with neighbors, crowds and suspected labels, pictures inside; it opens offline."""
    from kinsight.explorer import write_report

    check_writable(out, overwrite=overwrite)
    opened = None if index is None else index_of(index, normalization)
    kernel = kernel_of(model, options)
    written = write_report(
        out,
        kernel,
        samples_of(data, options, limit=options.limit),
        queries=None if queries is None else samples_of(queries, options),
        n_queries=n_queries,
        n_neighbors=n_neighbors,
        n_suspects=n_suspects,
        weight_decay=weight_decay,
        normalization=(normalization or Similarity.flat).value,
        index=opened,
        title=title,
        progress=not options.quiet,
    )
    said = [str(headline) for headline in written.headlines]
    print_rows([{"path": str(written.path), "bytes": written.n_bytes}], as_json=options.as_json, headlines=said)
