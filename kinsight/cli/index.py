"""kinsight index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kinsight.cli.loading import kernel_of, samples_of
from kinsight.cli.options import Data, Model, Normalization, Options, Similarity
from kinsight.cli.printing import print_facts


def make_index(
    model: Model,
    data: Data,
    options: Options,
    out: Annotated[Path, typer.Option(help="Folder of the index.")] = Path("index"),
    error: Annotated[float, typer.Option(help="Root mean square error of a similarity that is asked for.")] = 0.05,
    dim: Annotated[int | None, typer.Option(min=1, help="Numbers in a sketch; by --error if left out.")] = None,
    normalization: Normalization = Similarity.whitened,
    no_previews: Annotated[bool, typer.Option("--no-previews", help="Keep nothing to show samples by.")] = False,
    search: Annotated[bool, typer.Option("--search", help="Also an approximate search, for large indexes.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier build stopped.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add DATA to the index that is there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
) -> None:
    """Build an index of the data once, to ask it many times: neighbors, counts, label suspects."""
    from kinsight.errors import InputError
    from kinsight.index import Index

    if append and (resume or overwrite):
        raise InputError("--append goes on by itself where it stopped: it takes neither --resume nor --overwrite.")
    kernel = kernel_of(model, options)
    samples = samples_of(data, options, limit=options.limit)
    if append:
        index = Index(out, partial=True).append(kernel, samples, progress=not options.quiet)
    else:
        index = Index.build(
            out, kernel, samples, dim=dim, error=error, seed=options.seed, normalization=normalization.value,
            previews=not no_previews, resume=resume, overwrite=overwrite, progress=not options.quiet,
        )  # fmt: skip
    if search:
        index = index.build_search()
    print_facts(index.info(), as_json=options.as_json)
