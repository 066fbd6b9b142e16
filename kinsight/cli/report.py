"""kinsight report."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinsight.cli.loading import check_different, check_writable, index_of, kernel_of, kernels_of, samples_of
from kinsight.cli.options import Data, FlatOrOfIndex, Model, Options, Similarity, flag
from kinsight.cli.printing import print_rows
from kinsight.errors import InputError

if TYPE_CHECKING:
    from kinsight.kernel import GradientKernel
    from kinsight.normalization import Normalization
    from kinsight.samples import Samples
    from kinsight.stability import Stability


def make_report(
    model: Model,
    data: Data,
    options: Options,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    overwrite: Annotated[bool, flag("--overwrite", help="Replace the file if it is there.")] = False,
    queries: Annotated[str | None, typer.Option(help="Data whose neighbors are shown; else some of DATA.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
    n_queries: Annotated[int, typer.Option(min=0, help="Queries whose neighbors are shown.")] = 8,
    n_neighbors: Annotated[int, typer.Option("-k", "--n-neighbors", min=1, help="Neighbors shown of each.")] = 8,
    n_suspects: Annotated[int, typer.Option(min=0, help="Suspected labels shown.")] = 24,
    weight_decay: Annotated[
        float, typer.Option(min=0, help="Of training, as in torch.optim.SGD; for the noise of values.")
    ] = 0.0,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Weights of earlier checkpoints, in order, that are compared; may be repeated."),
    ] = None,
    normalization: FlatOrOfIndex = None,
    index: Annotated[
        Path | None,
        typer.Option(help="Take counts and suspects from this index of DATA, in its normalization, with their error."),
    ] = None,
) -> None:
    """One HTML file with neighbors, crowds and suspected labels, pictures inside; it opens offline."""
    from kinsight.explorer import write_report

    check_writable(out, overwrite=overwrite)
    check_checkpoints(checkpoints or [], options.checkpoint)
    opened = None if index is None else index_of(index, normalization)
    kernel, samples = kernel_of(model, options), samples_of(data, options, limit=options.limit)
    chosen = (normalization or Similarity.flat).value if opened is None else opened.normalization
    if opened is not None:
        opened.check(kernel)  # before other networks are compared
        opened.take(samples, [0])
    written = write_report(
        out,
        kernel,
        samples,
        queries=None if queries is None else samples_of(queries, options),
        n_queries=n_queries,
        n_neighbors=n_neighbors,
        n_suspects=n_suspects,
        weight_decay=weight_decay,
        normalization=chosen,
        index=opened,
        stability=compared(model, kernel, samples, checkpoints or [], chosen, options),
        title=title,
        progress=not options.quiet,
    )
    said = [str(headline) for headline in written.headlines]
    print_rows([{"path": str(written.path), "bytes": written.n_bytes}], as_json=options.as_json, headlines=said)


def check_checkpoints(checkpoints: list[Path], last: Path | None) -> None:
    """Raise where what is compared is not one training, told by name.

    Raises:
        InputError: there is no last checkpoint, or one is named twice.
    """
    if not checkpoints:
        return
    if last is None:
        raise InputError(
            "--with names checkpoints to compare: name the last one, of which the report is, --checkpoint."
        )
    check_different([*checkpoints, last])


def compared(
    model: str,
    kernel: GradientKernel,
    samples: Samples,
    checkpoints: list[Path],
    normalization: Normalization,
    options: Options,
) -> Stability | None:
    """What earlier checkpoints have in common with the one the report is of."""
    if not checkpoints:
        return None
    from kinsight.stability import MIN_ANCHORS, compare

    if len(samples) < MIN_ANCHORS:
        raise InputError(
            f"--with compares how checkpoints see the samples, and needs {MIN_ANCHORS} of them: the data has "
            f"{len(samples)}. Leave it out."
        )
    kernels = chain(kernels_of(model, checkpoints, options), [(str(options.checkpoint), kernel)])
    k = max(1, min(10, len(samples) - 1))
    return compare(
        kernels, samples, n_neighbors=k, normalization=normalization, seed=options.seed, progress=not options.quiet
    )
