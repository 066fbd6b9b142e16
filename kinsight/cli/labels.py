"""kinsight labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kinsight.cli.loading import asked, index_of, kernel_of
from kinsight.cli.options import AskedIndex, OptionalData, OptionalModel, OptionalNormalization, Options, Similarity
from kinsight.cli.printing import print_rows


class How(StrEnum):
    """How labels are told by all others."""

    leave_one_out = "leave_one_out"
    votes = "votes"


def print_labels(
    options: Options,
    model: OptionalModel = None,
    data: OptionalData = None,
    method: Annotated[
        How, typer.Option(help="leave_one_out: a regression without each sample in turn; votes: by similarity^POWER.")
    ] = How.leave_one_out,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Earlier weights of the model, whose verdicts are averaged in; may be repeated."),
    ] = None,
    power: Annotated[float, typer.Option(help="Exponent of votes: higher listens to fewer neighbors.")] = 8.0,
    threshold: Annotated[
        float | None, typer.Option(help="Least probability of another label; 0.5, or 3 deviations, if left out.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show so many suspects at most.")] = None,
    fail_on: Annotated[
        int | None, typer.Option(min=1, help="Exit with 1 from so many suspects on, shown or not.")
    ] = None,
    normalization: OptionalNormalization = None,
    index: AskedIndex = None,
) -> None:
    """Labels that the neighborhood contradicts, and what it says instead.

    Labels that a network has memorized are found, too; even better with earlier checkpoints (--with).
    """
    from kinsight.errors import InputError
    from kinsight.labels import label_suspects

    how: dict[str, Any] = {
        "method": method.value, "n_suspects": top, "threshold": threshold, "power": power,
        "progress": not options.quiet,
    }  # fmt: skip
    facts: dict[str, Any] = {"method": method.value, **({"power": power} if method is How.votes else {})}
    if index is not None:
        if checkpoints:
            raise InputError("--with is of a MODEL; an index has the weights that it was built with.")
        opened = index_of(index, normalization, model, data)
        found, class_names = opened.label_suspects(**how), opened.about["class_names"]
        facts |= {"normalization": opened.normalization, "error": found.error}
    else:
        kernel, samples = asked(model, data, options)
        chosen = normalization or Similarity.flat
        earlier = [kernel_of(str(model), replace(options, checkpoint=path)) for path in checkpoints or []]
        found = label_suspects([*earlier, kernel], samples, normalization=chosen.value, **how)
        class_names = samples.class_names
        facts |= {"normalization": chosen.value}
    rows = (_with_names(row, class_names) for row in found.rows())
    facts |= {
        "n_networks": 1 + len(checkpoints or []),
        "task": found.task,
        "n_suspects": found.n_contradicted,
        "n_data": len(found.all_scores),
    }
    print_rows(rows, as_json=options.as_json, **facts)
    if fail_on is not None and found.n_contradicted >= fail_on:  # also those that --top leaves out
        raise typer.Exit(1)


def _with_names(row: dict[str, Any], class_names: Sequence[str] | None) -> dict[str, Any]:
    """The record of a suspect, with the names of its classes where the data has them."""
    numbers = {key: row[key] for key in ("given", "suggested")}
    if class_names is None or any(number not in range(len(class_names)) for number in numbers.values()):
        return row
    return {**row, **{f"{key}_name": class_names[number] for key, number in numbers.items()}}
