"""kinsight plan."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Annotated

import typer

from kinsight.cli.loading import kernel_of, samples_of
from kinsight.cli.options import Data, Model, Options
from kinsight.cli.printing import print_rows


class Question(StrEnum):
    """What would be asked."""

    gram = "gram"
    similarity = "similarity"
    soft_count = "soft_count"
    index_ = "index"  # str has a method of that name


def print_plan(
    model: Model,
    data: Data,
    options: Options,
    queries: Annotated[str | None, typer.Option(help="Rows of the pairs; DATA if left out.")] = None,
    question: Annotated[
        Question,
        typer.Option(
            help="gram: kernel values of all pairs; similarity: all pairs, as neighbors, votes, hard and power counts "
            "need them (the regression of labels takes more: time cubic in their number); soft_count: density; "
            "index: an index, with result_bytes on disk."
        ),
    ] = Question.similarity,
    error: Annotated[float, typer.Option(help="Root mean square error asked of an index.")] = 0.05,
    dim: Annotated[int | None, typer.Option(min=1, help="Numbers in a sketch; by --error if left out.")] = None,
) -> None:
    """Memory, passes and time of a question, before it is asked: a few samples are tried for some seconds."""
    from kinsight.plan import plan

    kernel = kernel_of(model, options)
    samples = samples_of(data, options, limit=options.limit)
    asked = None if queries is None else samples_of(queries, options)
    found = plan(kernel, samples, asked, question=question.value, error=error, dim=dim)
    print_rows([dataclasses.asdict(found)], as_json=options.as_json)
