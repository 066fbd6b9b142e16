"""kinsight index."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kinsight.cli.loading import kernel_of, samples_of
from kinsight.cli.options import Data, Model, Normalization, Options, Similarity, flag
from kinsight.cli.printing import print_facts, print_rows


class Engine(StrEnum):
    """Where the work runs."""

    local = "local"
    ray = "ray"


def make_index(
    model: Model,
    data: Data,
    options: Options,
    out: Annotated[Path, typer.Option(help="Folder of the index.")] = Path("index"),
    error: Annotated[float, typer.Option(help="Root mean square error of a similarity that is asked for.")] = 0.05,
    dim: Annotated[int | None, typer.Option(min=1, help="Numbers in a sketch; by --error if left out.")] = None,
    normalization: Normalization = Similarity.whitened,
    no_previews: Annotated[bool, flag("--no-previews", help="Keep nothing to show samples by.")] = False,
    search: Annotated[
        bool | None,
        flag("--search/--no-search", help="Approximate search; else from 200,000 on."),
    ] = None,
    resume: Annotated[bool, flag("--resume", help="Go on where an earlier build stopped.")] = False,
    append: Annotated[bool, flag("--append", help="Add DATA to the index that is there.")] = False,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace an index that is there.")] = False,
    engine: Annotated[
        Engine, typer.Option(help="local: in this process; ray: on a cluster, or processes of this machine.")
    ] = Engine.local,
    dry_run: Annotated[bool, flag("--dry-run", help="Say what it will take, and write nothing.")] = False,
) -> None:
    """Build an index of the data once, to ask it many times: neighbors, counts, label suspects."""
    from kinsight.errors import InputError
    from kinsight.index import Index
    from kinsight.indexing.manifest import MANIFEST

    if append and (resume or overwrite):
        raise InputError("--append goes on by itself where it stopped: it takes neither --resume nor --overwrite.")
    kernel = kernel_of(model, options)
    samples = samples_of(data, options, limit=options.limit)
    if dry_run:
        from kinsight.plan import plan

        there = Index(out, partial=True).dim if append or (resume and (out / MANIFEST).exists()) else dim
        print_rows(
            [dataclasses.asdict(plan(kernel, samples, question="index", error=error, dim=there))],
            as_json=options.as_json,
        )
        return
    if append:
        index = Index(out, partial=True).append(kernel, samples, engine=engine.value, progress=not options.quiet)
        index = index.build_search() if search else index
    else:
        index = Index.build(
            out, kernel, samples, dim=dim, error=error, seed=options.seed, normalization=normalization.value,
            previews=not no_previews, search=search, resume=resume, overwrite=overwrite, engine=engine.value,
            progress=not options.quiet,
        )  # fmt: skip
    print_facts(index.info(), as_json=options.as_json)
