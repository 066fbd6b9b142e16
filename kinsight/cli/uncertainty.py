"""kinsight uncertainty."""

from __future__ import annotations

from typing import Annotated

import typer

from kinsight.cli.loading import asked, index_asked, samples_of
from kinsight.cli.options import OptionalData, OptionalModel, Options, OutFile, QueriedIndex
from kinsight.cli.printing import print_answer


def print_uncertainty(
    options: Options,
    model: OptionalModel = None,
    data: OptionalData = None,
    queries: Annotated[
        str | None, typer.Option(help="Data that the network is asked about; DATA, what it learned from, if left out.")
    ] = None,
    index: QueriedIndex = None,
    out: OutFile = None,
) -> None:
    """How little of the data would move along if an answer were moved: the least sure first."""
    from kinsight.uncertainty import uncertainty

    if index is not None:
        opened, queried = index_asked(index, None, options, model, data, queries)
        found = opened.uncertainty(**queried, progress=not options.quiet)
    else:
        kernel, samples = asked(model, data, options)
        around = None if queries is None else samples_of(queries, options)
        found = uncertainty(kernel, samples, around, progress=not options.quiet)
    records = list(found.rows())
    order = found.sums.nan_to_num(nan=float("inf")).argsort(stable=True).tolist()  # undefined ones last
    print_answer(
        [records[place] for place in order], options, out,
        summary=found.summary(), n_data=found.n_data,
    )  # fmt: skip
