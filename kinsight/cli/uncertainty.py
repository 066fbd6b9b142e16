"""kinsight uncertainty."""

from __future__ import annotations

from typing import Annotated

import typer

from kinsight.cli.loading import kernel_of, samples_of
from kinsight.cli.options import Data, Model, Options, OutFile
from kinsight.cli.printing import print_answer


def print_uncertainty(
    model: Model,
    data: Data,
    options: Options,
    queries: Annotated[
        str | None, typer.Option(help="Data that the network is asked about; DATA, what it learned from, if left out.")
    ] = None,
    out: OutFile = None,
) -> None:
    """How little of the data would move along if an answer were moved: the least sure first."""
    from kinsight.uncertainty import uncertainty

    kernel, samples = kernel_of(model, options), samples_of(data, options, limit=options.limit)
    around = None if queries is None else samples_of(queries, options)
    found = uncertainty(kernel, samples, around, progress=not options.quiet)
    records = list(found.rows())
    order = found.sums.nan_to_num(nan=float("inf")).argsort(stable=True).tolist()  # undefined ones last
    print_answer(
        [records[place] for place in order], options, out,
        summary=found.summary(), n_data=found.n_data,
    )  # fmt: skip
