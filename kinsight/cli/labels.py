"""kinsight labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kinsight.cli.loading import asked, index_of
from kinsight.cli.options import AskedIndex, OptionalData, OptionalModel, OptionalNormalization, Options, Similarity
from kinsight.cli.printing import print_rows


def print_labels(
    options: Options,
    model: OptionalModel = None,
    data: OptionalData = None,
    power: Annotated[float, typer.Option(help="Exponent of the weights: higher listens to fewer neighbors.")] = 8.0,
    top: Annotated[int | None, typer.Option(min=1, help="Show so many suspects at most.")] = None,
    fail_on: Annotated[
        int | None, typer.Option(min=1, help="Exit with 1 from so many suspects on, shown or not.")
    ] = None,
    normalization: OptionalNormalization = None,
    index: AskedIndex = None,
) -> None:
    """Labels that the neighborhood contradicts, and what it says instead.

    Flat similarity over all logits, to the power 8, is known to find labels that the network has memorized.
    """
    from kinsight.labels import label_suspects

    how: dict[str, Any] = {"n_suspects": top, "power": power, "progress": not options.quiet}
    facts: dict[str, Any] = {"power": power}
    if index is not None:
        opened = index_of(index, normalization, model, data)
        found, class_names = opened.label_suspects(**how), opened.about["class_names"]
        facts |= {"normalization": opened.normalization, "error": found.error}
    else:
        kernel, samples = asked(model, data, options)
        chosen = normalization or Similarity.flat
        found = label_suspects(kernel, samples, normalization=chosen.value, **how)
        class_names = samples.class_names
        facts |= {"normalization": chosen.value}
    rows = (_with_names(row, class_names) for row in found.rows())
    facts |= {"task": found.task, "n_suspects": found.n_contradicted, "n_data": len(found.all_scores)}
    print_rows(rows, as_json=options.as_json, **facts)
    if fail_on is not None and found.n_contradicted >= fail_on:  # also those that --top leaves out
        raise typer.Exit(1)


def _with_names(row: dict[str, Any], class_names: Sequence[str] | None) -> dict[str, Any]:
    """The record of a suspect, with the names of its classes where the data has them."""
    numbers = {key: row[key] for key in ("given", "suggested")}
    if class_names is None or any(number not in range(len(class_names)) for number in numbers.values()):
        return row
    return {**row, **{f"{key}_name": class_names[number] for key, number in numbers.items()}}
