"""kinsight density."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from kinsight.cli.loading import kernel_of, samples_of
from kinsight.cli.options import Data, Model, Normalization, Options, Similarity
from kinsight.cli.printing import print_rows


class Kind(StrEnum):
    """Which neighbor count."""

    soft = "soft"
    hard = "hard"
    power = "power"


def print_density(
    model: Model,
    data: Data,
    options: Options,
    kind: Annotated[
        Kind, typer.Option(help="soft: sum; hard: number above --threshold; power: of powers.")
    ] = Kind.soft,
    threshold: Annotated[float, typer.Option(help="Of the hard count.")] = 0.5,
    power: Annotated[float, typer.Option(help="Of the power count.")] = 8.0,
    no_self: Annotated[bool, typer.Option("--no-self", help="A sample does not count itself.")] = False,
    normalization: Normalization = Similarity.whitened,
) -> None:
    """How crowded the data is around each sample, the loneliest first."""
    from kinsight.density import hard_count, power_count, soft_count

    kernel = kernel_of(model, options)
    samples = samples_of(data, options, limit=options.limit)
    how: dict[str, Any] = {
        "normalization": normalization.value, "include_self": not no_self, "progress": not options.quiet,
    }  # fmt: skip
    if kind is Kind.hard:
        counts = hard_count(kernel, samples, thresholds=threshold, **how)
    elif kind is Kind.power:
        counts = power_count(kernel, samples, power=power, **how)
    else:
        counts = soft_count(kernel, samples, **how)
    values = counts.values.tolist()
    order = counts.order().tolist()
    undefined = sorted(set(range(len(values))) - set(order))
    rows = ({"id": counts.ids[place], "count": values[place]} for place in [*order, *undefined])
    facts = {"kind": kind.value, "normalization": normalization.value, "n_data": counts.n_data}
    print_rows(rows, as_json=options.as_json, **facts)
