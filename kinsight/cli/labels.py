"""kinsight labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinsight.cli.loading import asked, index_of, kernel_of
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
    from kinsight.conflicts import LabelConflicts
    from kinsight.index import Index
    from kinsight.labels import LabelSuspects


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
    conflicts: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Near-duplicates, from this similarity on, with different labels, instead."),
    ] = None,
    out: OutFile = None,
) -> None:
    """Labels that the neighborhood contradicts, and what it says instead.

    Labels that a network has memorized are found, too; even better with earlier checkpoints (--with).
    """
    from kinsight.errors import InputError

    if checkpoints and index is not None:
        raise InputError("--with is of a MODEL; an index has the weights that it was built with.")
    asker = _Asker(options, index_of(index, normalization, model, data) if index is not None else None)
    if asker.index is None:
        asker.kernel, asker.samples = asked(model, data, options)
        asker.normalization = (normalization or Similarity.flat).value
        asker.earlier = [kernel_of(str(model), replace(options, checkpoint=path)) for path in checkpoints or []]
    if conflicts is not None:
        _print_conflicts(asker.conflicts(conflicts), options, out)
        return
    found = asker.suspects(method=method.value, n_suspects=top, threshold=threshold, power=power)
    rows = (_with_names(row, asker.class_names) for row in found.rows())
    facts: dict[str, Any] = {
        "method": method.value, **({"power": power} if method is How.votes else {}), **asker.facts(),
        "n_networks": 1 + len(asker.earlier), "task": found.task, "n_suspects": found.n_contradicted,
        "n_data": len(found.all_scores),
    }  # fmt: skip
    print_rows(rows, as_json=options.as_json, is_quiet=options.quiet, out=out, summary=found.summary(), **facts)
    if fail_on is not None and found.n_contradicted >= fail_on:  # also those that --top leaves out
        raise typer.Exit(1)


@dataclass
class _Asker:
    """Who is asked: an index, or a kernel about samples."""

    options: Options
    index: Index | None
    kernel: Any = None
    samples: Any = None
    normalization: Any = None
    earlier: list[Any] = field(default_factory=list)

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
            return {"normalization": self.normalization}
        return {"normalization": self.index.normalization, "error": self.index.error}

    def suspects(self, **how: Any) -> LabelSuspects:
        """The suspects."""
        from kinsight.labels import label_suspects

        how["progress"] = not self.options.quiet
        if self.index is not None:
            return self.index.label_suspects(**how)
        return label_suspects([*self.earlier, self.kernel], self.samples, normalization=self.normalization, **how)

    def conflicts(self, least: float) -> LabelConflicts:
        """Near-duplicates with different labels."""
        from kinsight.conflicts import label_conflicts

        how: dict[str, Any] = {"least": least, "progress": not self.options.quiet}
        if self.index is not None:
            return self.index.label_conflicts(**how)
        return label_conflicts(self.kernel, self.samples, normalization=self.normalization, **how)


def _print_conflicts(found: LabelConflicts, options: Options, out: Path | None) -> None:
    facts = {"least": found.least, "n_conflicts": found.n_conflicts, "n_duplicates": found.n_duplicates}
    print_rows(
        found.rows(),
        as_json=options.as_json,
        is_quiet=options.quiet,
        out=out,
        summary=found.summary(),
        error=found.error,
        **facts,
    )


def _with_names(row: dict[str, Any], class_names: Sequence[str] | None) -> dict[str, Any]:
    """The record of a suspect, with the names of its classes where the data has them."""
    numbers = {key: row[key] for key in ("given", "suggested")}
    if class_names is None or any(number not in range(len(class_names)) for number in numbers.values()):
        return row
    return {**row, **{f"{key}_name": class_names[number] for key, number in numbers.items()}}
