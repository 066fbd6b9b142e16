"""kinsight fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinsight.cli.loading import asked, index_alone
from kinsight.cli.options import (
    AskedIndex,
    FlatOrOfIndex,
    OptionalData,
    OptionalModel,
    OptionalTask,
    Options,
    OutFile,
    Similarity,
    flag,
)
from kinsight.cli.printing import print_answer

if TYPE_CHECKING:
    from kinsight.labels.votes import Task


def lines_of(path: Path | None) -> list[str] | None:
    """The lines of a text file; None where there is none."""
    return None if path is None else path.read_text(encoding="utf-8").splitlines()


def print_fit(
    options: Options,
    model: OptionalModel = None,
    data: OptionalData = None,
    power: Annotated[float, typer.Option(help="Of similarities: 8 hears close neighbors; 1 takes linear time.")] = 8.0,
    regime: Annotated[str | None, typer.Option(help="Only samples of this regime, the most pronounced first.")] = None,
    by_group: Annotated[
        bool,
        flag("--by-group", help="One row a class, or a group of --groups, in place of one a sample."),
    ] = False,
    groups: Annotated[
        Path | None, typer.Option(help="A text file that names the group of each sample, a line each.", exists=True)
    ] = None,
    normalization: FlatOrOfIndex = None,
    index: AskedIndex = None,
    task: OptionalTask = None,
    out: OutFile = None,
) -> None:
    """Which samples are learned with others, memorized, contradicted, underfit, ambiguous or alone."""
    from kinsight.errors import InputError, UnknownNameError
    from kinsight.fit import MEANINGS, fit_map

    if regime is not None and regime not in MEANINGS:
        raise UnknownNameError(f"--regime {regime}: there are {', '.join(MEANINGS)}.")
    if regime is not None and by_group:
        raise InputError("--regime is of samples, and --by-group has one row a class, with all regimes: ask for one.")
    named: Task | None = None if task is None else task.value
    if index is not None:
        opened = index_alone(index, normalization, options, model, data)
        found = opened.fit_map(power=power, groups=lines_of(groups), task=named, progress=not options.quiet)
        chosen = opened.normalization
    else:
        kernel, samples = asked(model, data, options)
        chosen = (normalization or Similarity.flat).value
        found = fit_map(
            kernel, samples, power=power, normalization=chosen, groups=lines_of(groups), task=named,
            progress=not options.quiet,
        )  # fmt: skip
    rows = found.by_group() if by_group else list(found.rows())
    columns = list(rows[0])
    if regime is not None:
        rows = [rows[place] for place in found.of(regime).tolist()]
    shares = {name: found.regimes.count(name) for name in MEANINGS}
    facts = {
        "normalization": chosen, "power": power, "error": found.error, "regimes": shares, "meanings": MEANINGS,
    }  # fmt: skip
    print_answer(rows, options, out, columns=columns, summary=found.summary(), **facts)
