"""kinsight density."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinsight.cli.loading import asked, index_of
from kinsight.cli.options import (
    AskedIndex,
    OptionalData,
    OptionalModel,
    OptionalNormalization,
    Options,
    OutFile,
    Similarity,
)
from kinsight.cli.printing import print_rows

if TYPE_CHECKING:
    from kinsight.density import Counts
    from kinsight.index import Index


class Kind(StrEnum):
    """Which neighbor count."""

    soft = "soft"
    hard = "hard"
    power = "power"


def print_density(
    options: Options,
    model: OptionalModel = None,
    data: OptionalData = None,
    kind: Annotated[
        Kind, typer.Option(help="soft: sum; hard: number above --threshold; power: of powers.")
    ] = Kind.soft,
    threshold: Annotated[float, typer.Option(help="Of the hard count.")] = 0.5,
    power: Annotated[float, typer.Option(help="Of the power count.")] = 8.0,
    no_self: Annotated[bool, typer.Option("--no-self", help="A sample does not count itself.")] = False,
    normalization: OptionalNormalization = None,
    index: AskedIndex = None,
    out: OutFile = None,
) -> None:
    """How crowded the data is around each sample, the loneliest first."""
    from kinsight.density import hard_count, power_count, soft_count

    if index is not None:
        opened = index_of(index, normalization, model, data)
        counts = _from_index(opened, kind, threshold, power, include_self=not no_self, progress=not options.quiet)
        _print(counts, kind, options, out)
        return
    kernel, samples = asked(model, data, options)
    how: dict[str, Any] = {
        "normalization": (normalization or Similarity.whitened).value,
        "include_self": not no_self, "progress": not options.quiet,
    }  # fmt: skip
    if kind is Kind.hard:
        counts = hard_count(kernel, samples, thresholds=threshold, **how)
    elif kind is Kind.power:
        counts = power_count(kernel, samples, power=power, **how)
    else:
        counts = soft_count(kernel, samples, **how)
    _print(counts, kind, options, out)


def _from_index(
    index: Index, kind: Kind, threshold: float, power: float, *, include_self: bool, progress: bool
) -> Counts:
    if kind is Kind.hard:
        return index.hard_count(threshold, include_self=include_self, progress=progress)
    if kind is Kind.power:
        return index.power_count(power, include_self=include_self, progress=progress)
    return index.soft_count(include_self=include_self)


def _print(counts: Counts, kind: Kind, options: Options, out: Path | None) -> None:
    """The loneliest first, undefined ones last; with standard errors where counts are estimates."""
    records = list(counts.rows())
    order = counts.order().tolist()
    undefined = sorted(set(range(len(counts))) - set(order))
    rows = (records[place] for place in [*order, *undefined])
    facts = {"kind": kind.value, "normalization": counts.normalization, "n_data": counts.n_data}
    print_rows(rows, as_json=options.as_json, is_quiet=options.quiet, out=out, summary=counts.summary(), **facts)
