"""kinsight density."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinsight.cli.loading import asked, index_asked, samples_of
from kinsight.cli.options import (
    OptionalData,
    OptionalModel,
    Options,
    OutFile,
    QueriedIndex,
    Similarity,
    WhitenedOrOfIndex,
    flag,
)
from kinsight.cli.printing import print_answer
from kinsight.errors import InputError

if TYPE_CHECKING:
    from kinsight.density import Counts


POWER = 8.0
"""Of the power count, where none is asked for."""


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
    queries: Annotated[str | None, typer.Option(help="Data that is counted around; DATA if left out.")] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(help="Of the hard count, 0.5 if left out; may be repeated.")
    ] = None,
    power: Annotated[float, typer.Option(help="Of the power count.")] = POWER,
    no_self: Annotated[bool, flag("--no-self", help="A sample does not count itself.")] = False,
    normalization: WhitenedOrOfIndex = None,
    index: QueriedIndex = None,
    out: OutFile = None,
) -> None:
    """How crowded the data is around each sample, the loneliest first."""
    how: dict[str, Any] = {"include_self": not no_self}
    is_given = (("--threshold", bool(threshold), Kind.hard), ("--power", power != POWER, Kind.power))
    for name, is_so, its_kind in is_given:
        if is_so and kind is not its_kind:
            raise InputError(f"{name} is of the {its_kind.value} count: pass --kind {its_kind.value}, or leave it out.")
    if threshold:
        how["thresholds"] = threshold if len(threshold) > 1 else threshold[0]
    if kind is Kind.power:
        how["power"] = power
    if index is not None:
        if kind is not Kind.soft:
            how["progress"] = not options.quiet
        opened, queried = index_asked(index, normalization, options, model, data, queries)
        counts_of: dict[Kind, Callable[..., Counts]] = {
            Kind.soft: opened.soft_count, Kind.hard: opened.hard_count, Kind.power: opened.power_count,
        }  # fmt: skip
        counts = counts_of[kind](**queried, **how)
    else:
        counts = _of_kernel(model, data, queries, normalization, options, kind, how)
    _print(counts, kind, threshold, options, out)


def _of_kernel(
    model: str | None,
    data: str | None,
    queries: str | None,
    normalization: Similarity | None,
    options: Options,
    kind: Kind,
    how: dict[str, Any],
) -> Counts:
    from kinsight.density import hard_count, power_count, soft_count

    kernel, samples = asked(model, data, options)
    around = None if queries is None else samples_of(queries, options)
    how |= {"normalization": (normalization or Similarity.whitened).value, "progress": not options.quiet}
    counts: dict[Kind, Callable[..., Counts]] = {
        Kind.soft: soft_count, Kind.hard: hard_count, Kind.power: power_count,
    }  # fmt: skip
    return counts[kind](kernel, samples, around, **how)


def _print(counts: Counts, kind: Kind, thresholds: list[float] | None, options: Options, out: Path | None) -> None:
    """The loneliest first, undefined ones last; with standard errors where counts are estimates."""
    records = list(counts.rows())
    order = counts.order().tolist()
    undefined = sorted(set(range(len(counts))) - set(order))
    rows = (records[place] for place in [*order, *undefined])
    facts: dict[str, Any] = {"kind": kind.value, "normalization": counts.normalization, "n_data": counts.n_data}
    if kind is Kind.hard and thresholds:
        facts["thresholds"] = thresholds
    print_answer(rows, options, out, summary=counts.summary(), **facts)
