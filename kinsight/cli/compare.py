"""kinsight compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kinsight.cli.loading import check_different, kernels_of, samples_of
from kinsight.cli.options import Data, Model, Normalization, Options, OutFile, Similarity, flag
from kinsight.cli.printing import print_answer
from kinsight.errors import InputError


def print_comparison(
    model: Model,
    data: Data,
    options: Options,
    checkpoints: Annotated[
        list[Path] | None, typer.Option("--with", help="Weights that are compared, in order; may be repeated.")
    ] = None,
    n_neighbors: Annotated[
        int, typer.Option("-k", "--n-neighbors", min=1, help="Nearest neighbors that are compared.")
    ] = 10,
    n_anchors: Annotated[int, typer.Option(min=4, help="Random samples whose neighbors are compared.")] = 256,
    n_others: Annotated[
        int, typer.Option(min=4, help="Random samples among which neighbors are looked for; results depend on it.")
    ] = 2048,
    least: Annotated[float, typer.Option(min=0, max=1, help="Share of neighbors that counts as the same.")] = 0.5,
    normalization: Normalization = Similarity.flat,
    by_sample: Annotated[
        bool,
        flag("--by-sample", help="Rows are samples, with their volatility, in place of pairs."),
    ] = False,
    figure: Annotated[
        Path | None, typer.Option(help="Write a figure of all networks against the last one to this .svg file.")
    ] = None,
    out: OutFile = None,
) -> None:
    """How far checkpoints, or trainings, agree on neighbors and density, and from when on neighbors can be trusted."""
    from kinsight.stability import compare

    if options.checkpoint is not None or not checkpoints or len(checkpoints) < 2:
        raise InputError("Name the weights that are compared with --with, two or more, and none with --checkpoint.")
    check_different(checkpoints)
    if figure is not None:
        from kinsight.explorer.trajectory import check_figure, write_trajectory

        check_figure(figure, len(checkpoints))

    samples = samples_of(data, options, limit=options.limit)
    found = compare(
        kernels_of(model, checkpoints, options), samples, n_neighbors=n_neighbors, n_anchors=n_anchors,
        n_others=n_others, least=least, normalization=normalization.value, seed=options.seed,
    )  # fmt: skip
    if figure is not None:
        write_trajectory(figure, found)
    print_answer(
        found.rows() if by_sample else found.pairs(), options, out,
        summary=found.summary(), normalization=normalization.value, n_neighbors=n_neighbors, n_anchors=found.n_anchors,
        n_others=found.n_others, mean_volatility=found.mean_volatility,
        mean_volatility_interval=found.mean_volatility_interval, trusted_from=found.trusted_from, rule=found.rule,
    )  # fmt: skip
