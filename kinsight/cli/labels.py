"""kinsight labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinsight.cli.loading import asked, check_unset, index_alone, index_of, kernels_of
from kinsight.cli.options import (
    AskedIndex,
    FlatOrOfIndex,
    OptionalData,
    OptionalModel,
    OptionalTask,
    Options,
    OutFile,
    Similarity,
)
from kinsight.cli.printing import print_answer
from kinsight.errors import InputError

if TYPE_CHECKING:
    from kinsight.index import Index
    from kinsight.labels.conflicts import LabelConflicts
    from kinsight.labels.suspects import LabelSuspects
    from kinsight.labels.votes import Task


POWER = 8.0
"""Exponent of votes, where none is asked for."""

NOT_OF_PAIRS = (
    "is of suspected labels, and --conflicts lists pairs of samples instead, for which it means nothing: leave one of "
    "the two out."
)


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
    others: Annotated[
        list[Path] | None,
        typer.Option(
            "--with-index", help="Index of the same data by earlier weights, beside --index; may be repeated."
        ),
    ] = None,
    power: Annotated[float, typer.Option(help="Exponent of votes: higher listens to fewer neighbors.")] = POWER,
    threshold: Annotated[
        float | None, typer.Option(help="Least probability of another label; 0.5, or 3 deviations, if left out.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show so many suspects, or pairs, at most.")] = None,
    fail_on: Annotated[
        int | None, typer.Option(min=1, help="Exit with 1 from so many suspects, or pairs, on, shown or not.")
    ] = None,
    normalization: FlatOrOfIndex = None,
    index: AskedIndex = None,
    conflicts: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Near-duplicates, from this similarity on, with different labels, instead."),
    ] = None,
    task: OptionalTask = None,
    out: OutFile = None,
) -> None:
    """Labels that the neighborhood contradicts, and what it says instead.

    Labels that a network has memorized are found, too; even better with earlier checkpoints (--with, --with-index).
    """
    _check_networks(checkpoints, others, index)
    if conflicts is not None:
        of_suspects = {
            "--with": bool(checkpoints), "--with-index": bool(others), "--method": method is not How.leave_one_out,
            "--power": power != POWER, "--threshold": threshold is not None,
        }  # fmt: skip
        check_unset(of_suspects, NOT_OF_PAIRS)
    asker = _Asker(options, index_alone(index, normalization, options, model, data) if index is not None else None)
    asker.task = None if task is None else task.value
    asker.others = [index_of(folder, normalization) for folder in others or []]
    if asker.index is None:
        asker.kernel, asker.samples = asked(model, data, options)
        asker.normalization = (normalization or Similarity.flat).value
        asker.earlier = [kernel for _, kernel in kernels_of(str(model), checkpoints or [], options)]
    if conflicts is not None:
        n_found = _print_conflicts(asker.conflicts(conflicts, top), asker.class_names, options, out)
    else:
        facts = {"method": method.value, **({"power": power} if method is How.votes else {}), **asker.facts()}
        found = asker.suspects(method=method.value, n_suspects=top, threshold=threshold, power=power)
        n_found = _print_suspects(found, asker.class_names, options, out, facts)
    if fail_on is not None and n_found >= fail_on:
        raise typer.Exit(1)


def _check_networks(checkpoints: list[Path] | None, others: list[Path] | None, index: Path | None) -> None:
    """Raise where several networks are named in a way that is not that of the first."""
    if checkpoints and index is not None:
        raise InputError(
            "--with is of a MODEL; an index has the weights that it was built with: name others with --with-index."
        )
    if others and index is None:
        raise InputError("--with-index is beside --index: name the index of the last weights there.")


@dataclass
class _Asker:
    """Who is asked: an index, or a kernel about samples."""

    options: Options
    index: Index | None
    kernel: Any = None
    samples: Any = None
    normalization: Any = None
    task: Task | None = None
    earlier: list[Any] = field(default_factory=list)
    others: list[Index] = field(default_factory=list)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Of the data."""
        names: Sequence[str] | None = (
            self.samples.class_names if self.index is None else self.index.about["class_names"]
        )
        return names

    def facts(self) -> dict[str, Any]:
        """What answers rest on."""
        if self.index is None:
            return {"normalization": self.normalization, "n_networks": 1 + len(self.earlier)}
        error = max(index.error for index in (self.index, *self.others))
        return {"normalization": self.index.normalization, "error": error, "n_networks": 1 + len(self.others)}

    def suspects(self, **how: Any) -> LabelSuspects:
        """The suspects."""
        from kinsight.labels.suspects import label_suspects

        how |= {"progress": not self.options.quiet, "task": self.task}
        if self.index is not None:
            return self.index.label_suspects(others=self.others, **how)
        return label_suspects([*self.earlier, self.kernel], self.samples, normalization=self.normalization, **how)

    def conflicts(self, least: float, n_conflicts: int | None) -> LabelConflicts:
        """Near-duplicates with different labels; so many at most."""
        from kinsight.labels.conflicts import label_conflicts

        how: dict[str, Any] = {"least": least, "progress": not self.options.quiet, "task": self.task}
        if n_conflicts is not None:
            how["n_conflicts"] = n_conflicts
        if self.index is not None:
            return self.index.label_conflicts(**how)
        return label_conflicts(self.kernel, self.samples, normalization=self.normalization, **how)


def _print_suspects(
    found: LabelSuspects, class_names: Sequence[str] | None, options: Options, out: Path | None, facts: dict[str, Any]
) -> int:
    """Print the suspects; how many there are, shown or not."""
    facts |= {"task": found.task, "n_suspects": found.n_contradicted, "n_data": len(found.all_scores)}
    columns = list(_with_names(dict.fromkeys(found.columns, 0), class_names))
    rows = (_with_names(row, class_names) for row in found.rows())
    print_answer(rows, options, out, columns=columns, summary=found.summary(), **facts)
    return found.n_contradicted


def _print_conflicts(
    found: LabelConflicts, class_names: Sequence[str] | None, options: Options, out: Path | None
) -> int:
    """Print the pairs; how many there are, shown or not."""
    facts = {
        "least": found.least, "n_conflicts": found.n_conflicts, "n_duplicates": found.n_duplicates,
        "error": found.error,
    }  # fmt: skip
    columns = list(_with_names({**dict.fromkeys(found.columns, 0), "labels": [0, 0]}, class_names))
    rows = (_with_names(row, class_names) for row in found.rows())
    print_answer(rows, options, out, columns=columns, summary=found.summary(), **facts)
    return found.n_conflicts


def _with_names(row: dict[str, Any], class_names: Sequence[str] | None) -> dict[str, Any]:
    """The record of a suspect, or of a pair, with the names of its classes where the data has them."""
    from kinsight.labels.votes import names_of_classes

    numbers = row["labels"] if "labels" in row else [row["given"], row["suggested"]]
    if class_names is None or not all(isinstance(number, int) for number in numbers):
        return row
    first, second = names_of_classes(numbers, class_names)
    if "labels" in row:
        return {**row, "names": [first, second]}
    return {**row, "given_name": first, "suggested_name": second}
