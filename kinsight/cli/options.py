"""Options: those that verbs share, declared once. A verb takes them as one argument, `options`."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from kinsight.errors import InputError


class Similarity(StrEnum):
    """Which similarity."""

    whitened = "whitened"
    flat = "flat"


class Labelling(StrEnum):
    """What labels are."""

    classification = "classification"
    regression = "regression"


class Precision(StrEnum):
    """Floating-point type the model and the data are converted to."""

    float32 = "float32"
    float64 = "float64"


def new_table(out: Path | None) -> Path | None:
    """The file, or an error before anything is computed: it is there, has no folder, or is of another kind."""
    if out is None:
        return None
    if out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {out}: rows are written to files that end in .parquet or .csv.")
    if out.exists():
        raise InputError(f"--out {out} is there already: take it away, or pass another name.")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}. Make it, or pass another name.")
    return out


def n_bytes(text: str) -> int:
    """The number of bytes that a text such as 512MB, 1.5GiB or 100000 means.

    Example:
        >>> n_bytes("512MB"), n_bytes("1.5GiB"), n_bytes("100000")
        (512000000, 1610612736, 100000)
    """
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) *(?:(?:([KMGT])(I?))?B)?", text.strip().upper())
    if found is not None:
        power = "KMGT".index(found[2]) + 1 if found[2] else 0
        number = int(Fraction(found[1]) * (1024 if found[3] else 1000) ** power)
        if number >= 1:
            return number
    raise typer.BadParameter(f"{text!r} is no number of bytes, such as 512MB, 2GiB or 1000000.")


flag = partial(typer.Option, metavar="")
"""An option that is there or not, and has no value to show the type of."""

_MODEL = "pkg.module:factory, or hf:PATH-or-ORG/NAME (local cache only)."
_DATA = "imagefolder:, csv:, npz: or hf: and a path; pkg.module:factory; mnist5k, fashion-mnist, digits."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
Data = Annotated[str, typer.Argument(metavar="DATA", help=_DATA)]
OptionalModel = Annotated[str | None, typer.Argument(metavar="MODEL", help=_MODEL)]
OptionalData = Annotated[str | None, typer.Argument(metavar="DATA", help=_DATA)]
Queries = Annotated[str | None, typer.Option(help="Data whose neighbors are asked for; DATA if left out.")]
_NORMALIZATION = (
    "whitened: outputs are decorrelated first, so that none drowns the others; flat: one cosine over the gradients of "
    "all outputs, cheaper for many. The same for a single output."
)

Normalization = Annotated[Similarity, typer.Option(help=_NORMALIZATION)]


def _or_of_index(similarity: Similarity) -> Any:
    """The option, where it says which similarity is meant if it is left out."""
    return typer.Option(help=_NORMALIZATION, show_default=f"that of --index; else {similarity}")


WhitenedOrOfIndex = Annotated[Similarity | None, _or_of_index(Similarity.whitened)]
FlatOrOfIndex = Annotated[Similarity | None, _or_of_index(Similarity.flat)]

OptionalTask = Annotated[
    Labelling | None,
    typer.Option(help="What labels are. By their type where left out: whole numbers, classes; floats, values."),
]

_INDEX = "Ask the sketches of this index, in its normalization: no MODEL, no DATA"

AskedIndex = Annotated[Path | None, typer.Option("--index", help=f"{_INDEX}.")]
QueriedIndex = Annotated[
    Path | None, typer.Option("--index", help=f"{_INDEX}; but with --queries, which MODEL has to sketch.")
]
Folder = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.")]
OutFile = Annotated[
    Path | None,
    typer.Option(
        "--out", callback=new_table, help="Write the rows to this .parquet or .csv file, which must not be there."
    ),
]
AsJson = Annotated[bool, flag("--json", help="One JSON document on stdout.")]

_shared = partial(typer.Option, rich_help_panel="Options of model and data")
_shared_flag = partial(_shared, metavar="")


@dataclass(frozen=True)
class Options:
    """What every verb takes that asks a network about data; the fields are options of the command line."""

    checkpoint: Annotated[Path | None, _shared(help="Weights: .safetensors, or a torch file of tensors.")] = None
    allow_pickle: Annotated[bool, _shared_flag("--allow-pickle", help="Run the code inside a pickled checkpoint.")] = (
        False
    )
    output: Annotated[str, _shared(help="What is differentiated: logits, one_vs_rest, probes:K, pooled:mean, ...")] = (
        "logits"
    )
    parameters: Annotated[list[str] | None, _shared(help="Only those whose name matches; may be repeated.")] = None
    device: Annotated[str, _shared(help="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    batch_size: Annotated[int | None, _shared(min=1, help="Samples in one pass; by memory where left out.")] = None
    max_bytes: Annotated[
        int | None,
        _shared(
            parser=n_bytes, metavar="<bytes>", show_default="1GiB",
            help="Bound on the memory that gradients are held in: 512MB, 2GiB, or a number.",
        ),
    ] = None  # fmt: skip
    dtype: Annotated[Precision | None, _shared(help="Read the data in this type, and convert the model to it.")] = None
    seed: Annotated[int, _shared(help="Of random probes, and of weights that no checkpoint sets.")] = 0
    workers: Annotated[int, _shared(min=0, help="Processes that load DATA, where it is read sample by sample.")] = 0
    limit: Annotated[
        int | None,
        _shared(min=1, help="Only the first so many samples of DATA; of one class, where it is sorted by class."),
    ] = None
    as_json: Annotated[bool, _shared_flag("--json", help="One JSON document on stdout.")] = False
    quiet: Annotated[bool, _shared_flag("--quiet", help="No progress on stderr.")] = False
    debug: Annotated[bool, _shared_flag("--debug", help="Show the traceback of an error.")] = False


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer reads it: its argument `options` replaced by the fields of `Options`, after its own."""
    hints = get_type_hints(Options, include_extras=True)
    names = [field.name for field in fields(Options)]

    @functools.wraps(verb)
    def parsed(**values: Any) -> None:
        shared = {name: values.pop(name) for name in names}
        verb(**values, options=Options(**shared))

    own = inspect.signature(verb, eval_str=True).parameters.values()
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own if each.name != "options"]
    parameters += [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Options)
    ]
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {each.name: each.annotation for each in parameters}
    return parsed
