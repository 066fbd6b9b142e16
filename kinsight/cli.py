"""The command line: parse, call one library function, print.

Results go to stdout: a table in a terminal, tab-separated lines in a pipe, one JSON document with --json. Progress and
warnings go to stderr. Exit status: 0 done, 1 findings with --fail-on, 2 usage, data or configuration, 130 interrupted.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinsight.errors import InputError, KinsightError, KinsightWarning, UnknownNameError

if TYPE_CHECKING:
    from torch import nn

    from kinsight.kernel import GradientKernel
    from kinsight.samples import Samples

app = typer.Typer(
    name="kinsight",
    help="See your data as your network sees it: similarity, neighbors, density, label suspects.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_TABLE_ENDS = 20


class Normalization(StrEnum):
    """Which similarity."""

    whitened = "whitened"
    flat = "flat"


class Kind(StrEnum):
    """Which neighbor count."""

    soft = "soft"
    hard = "hard"
    power = "power"


class Precision(StrEnum):
    """Floating-point type the model and the data are converted to."""

    float32 = "float32"
    float64 = "float64"


Model = Annotated[str, typer.Argument(help="pkg.module:factory, or hf:PATH-or-ORG/NAME (local cache only).")]
Data = Annotated[
    str,
    typer.Argument(
        help="imagefolder:, csv:, npz: or hf: and a path; pkg.module:factory; mnist5k, fashion-mnist, digits."
    ),
]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: .safetensors, or a torch file of tensors.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Run the code inside a pickled checkpoint.")]
Output = Annotated[str, typer.Option(help="What is differentiated: logits, one_vs_rest, probes:K, pooled:mean, ...")]
Parameters = Annotated[list[str] | None, typer.Option(help="Only parameters whose name matches; may be repeated.")]
Similarity = Annotated[Normalization, typer.Option(help="Which similarity.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples in one pass; by memory where left out.")]
Dtype = Annotated[Precision | None, typer.Option(help="Convert model and data to this type.")]
Seed = Annotated[int, typer.Option(help="Of random probes, and of weights that no checkpoint sets.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many samples.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """See your data as your network sees it."""
    if version:
        from importlib import metadata

        try:
            print(f"kinsight {metadata.version('kinsight')}")
        except metadata.PackageNotFoundError:
            print("kinsight, run from a folder it is not installed from")
        raise typer.Exit


@app.command("neighbors")
def print_neighbors(
    model: Model,
    data: Data,
    queries: Annotated[str | None, typer.Option(help="Data whose neighbors are asked for; DATA if left out.")] = None,
    ids: Annotated[list[str] | None, typer.Option(help="Only these samples of the queries; may be repeated.")] = None,
    k: Annotated[int, typer.Option("-k", "--n-neighbors", min=1, help="Neighbors of each query.")] = 10,
    checkpoint: Checkpoint = None,
    allow_pickle: AllowPickle = False,
    output: Output = "logits",
    parameters: Parameters = None,
    normalization: Similarity = Normalization.flat,
    device: Device = "auto",
    batch_size: BatchSize = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    limit: Limit = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The samples the network finds most similar to each query."""
    from kinsight.neighbors import neighbors
    from kinsight.samples import Samples

    kernel = _kernel(model, checkpoint, allow_pickle, output, parameters, device, batch_size, dtype, seed)
    samples = _samples(data, limit, dtype)
    asked: Any = samples if queries is None else _samples(queries, None, dtype)
    if ids:
        asked = Samples(asked.take(_positions(asked, ids)))
    found = neighbors(kernel, asked, samples, k, normalization=normalization.value, progress=not quiet)
    _print(found.rows(), as_json=as_json, normalization=normalization.value)


@app.command("density")
def print_density(
    model: Model,
    data: Data,
    kind: Annotated[
        Kind, typer.Option(help="soft: sum; hard: number above --threshold; power: of powers.")
    ] = Kind.soft,
    threshold: Annotated[float, typer.Option(help="Of the hard count.")] = 0.5,
    power: Annotated[float, typer.Option(help="Of the power count.")] = 8.0,
    no_self: Annotated[bool, typer.Option("--no-self", help="A sample does not count itself.")] = False,
    checkpoint: Checkpoint = None,
    allow_pickle: AllowPickle = False,
    output: Output = "logits",
    parameters: Parameters = None,
    normalization: Similarity = Normalization.whitened,
    device: Device = "auto",
    batch_size: BatchSize = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    limit: Limit = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """How crowded the data is around each sample, the loneliest first."""
    from kinsight.density import hard_count, power_count, soft_count

    kernel = _kernel(model, checkpoint, allow_pickle, output, parameters, device, batch_size, dtype, seed)
    options: dict[str, Any] = {
        "normalization": normalization.value,
        "include_self": not no_self,
        "progress": not quiet,
    }
    samples = _samples(data, limit, dtype)
    if kind is Kind.hard:
        counts = hard_count(kernel, samples, thresholds=threshold, **options)
    elif kind is Kind.power:
        counts = power_count(kernel, samples, power=power, **options)
    else:
        counts = soft_count(kernel, samples, **options)
    values = counts.values.tolist()
    order = counts.order().tolist()
    undefined = sorted(set(range(len(values))) - set(order))
    rows = ({"id": counts.ids[place], "count": values[place]} for place in [*order, *undefined])
    _print(rows, as_json=as_json, kind=kind.value, normalization=normalization.value, n_data=counts.n_data)


@app.command("labels")
def print_labels(
    model: Model,
    data: Data,
    power: Annotated[float, typer.Option(help="Exponent of the weights: higher listens to fewer neighbors.")] = 8.0,
    top: Annotated[int | None, typer.Option(min=1, help="Show so many suspects at most.")] = None,
    fail_on: Annotated[
        int | None, typer.Option(min=1, help="Exit with 1 from so many suspects on, shown or not.")
    ] = None,
    checkpoint: Checkpoint = None,
    allow_pickle: AllowPickle = False,
    output: Output = "logits",
    parameters: Parameters = None,
    normalization: Similarity = Normalization.flat,
    device: Device = "auto",
    batch_size: BatchSize = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    limit: Limit = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Labels that the neighborhood contradicts, and what it says instead."""
    from kinsight.labels import label_suspects

    kernel = _kernel(model, checkpoint, allow_pickle, output, parameters, device, batch_size, dtype, seed)
    samples = _samples(data, limit, dtype)
    found = label_suspects(
        kernel, samples, n_suspects=top, power=power, normalization=normalization.value, progress=not quiet
    )
    n_suspects = found.n_contradicted  # also those that --top leaves out
    rows = (_with_names(row, samples.class_names) for row in found.rows())
    _print(rows, as_json=as_json, task=found.task, n_suspects=n_suspects, n_data=len(samples), power=power)
    if fail_on is not None and n_suspects >= fail_on:
        raise typer.Exit(1)


@app.command("report")
def make_report(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    queries: Annotated[str | None, typer.Option(help="Data whose neighbors are shown; else some of DATA.")] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
    n_queries: Annotated[int, typer.Option(min=0, help="Queries whose neighbors are shown.")] = 8,
    n_neighbors: Annotated[int, typer.Option(min=1, help="Neighbors shown of each.")] = 8,
    n_suspects: Annotated[int, typer.Option(min=0, help="Suspected labels shown.")] = 24,
    checkpoint: Checkpoint = None,
    allow_pickle: AllowPickle = False,
    output: Output = "logits",
    parameters: Parameters = None,
    normalization: Similarity = Normalization.flat,
    device: Device = "auto",
    batch_size: BatchSize = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    limit: Limit = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """One HTML file with neighbors, crowds and suspected labels, pictures inside; it opens offline."""
    from kinsight.explorer import write_report

    _check_writable(out, overwrite)
    kernel = _kernel(model, checkpoint, allow_pickle, output, parameters, device, batch_size, dtype, seed)
    written = write_report(
        out,
        kernel,
        _samples(data, limit, dtype),
        queries=None if queries is None else _samples(queries, None, dtype),
        n_queries=n_queries,
        n_neighbors=n_neighbors,
        n_suspects=n_suspects,
        normalization=normalization.value,
        title=title,
        progress=not quiet,
    )
    said = [str(headline) for headline in written.headlines]
    _print([{"path": str(written.path), "bytes": written.n_bytes}], as_json=as_json, headlines=said)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors of ours are one line on stderr and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, "")  # factories of the current folder can be named
    with warnings.catch_warnings():
        warnings.simplefilter("always", KinsightWarning)
        warnings.showwarning = _show_warning  # catch_warnings puts the old one back
        try:
            status = app(given, prog_name="kinsight", standalone_mode=False) or 0
        except (typer.Abort, KeyboardInterrupt):
            status = 130
        except Exception as error:
            if "--debug" in given and not hasattr(error, "show"):
                raise
            _show_error(error)
            status = 2
    if status == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(status)


def _show_error(error: Exception) -> None:
    """One line for errors of ours and the system's; click's own, about usage; and a hint for what nobody expected."""
    show: Callable[[], None] | None = getattr(error, "show", None)
    if show is not None:
        show()
        return
    message = _printable(" ".join(str(error).split()))
    if not isinstance(error, KinsightError | OSError):
        message = f"unexpected {type(error).__name__}: {message} (--debug shows where)"
    print(f"error: {message}", file=sys.stderr)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    print(f"warning: {_printable(str(message))}", file=sys.stderr)


def _samples(source: str, limit: int | None, dtype: Precision | None) -> Samples:
    import torch

    from kinsight.sources import load_samples

    samples = load_samples(source, limit=limit)
    return samples if dtype is None else samples.to_dtype(getattr(torch, dtype.value))


def _positions(samples: Samples, ids: Iterable[str]) -> list[int]:
    place = {str(name): position for position, name in enumerate(samples.ids)}
    missing = [name for name in ids if name not in place]
    if missing:
        raise UnknownNameError(
            f"There is no sample {missing[0]!r}: ids go from {samples.ids[0]!r} to {samples.ids[-1]!r}."
        )
    return [place[name] for name in ids]


def _kernel(
    model: str,
    checkpoint: Path | None,
    allow_pickle: bool,
    output: str,
    parameters: Sequence[str] | None,
    device: str,
    batch_size: int | None,
    dtype: Precision | None,
    seed: int,
) -> GradientKernel:
    import torch

    from kinsight.kernel import GradientKernel
    from kinsight.sources import load_model

    torch.manual_seed(seed)
    weights = None if checkpoint is None else str(checkpoint)
    network = load_model(model, checkpoint=weights, device=device, allow_pickle=allow_pickle)
    if dtype is not None:
        network = network.to(getattr(torch, dtype.value))
    chosen = _parameters(network, parameters) if parameters else None
    return GradientKernel(network, _output(output, seed), parameters=chosen, batch_size=batch_size)


def _parameters(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the parameters that match any of the patterns."""
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UnknownNameError(
                f"--parameters {pattern}: no parameter of the {type(network).__name__} has such a name. It has "
                f"{len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}."
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _output(text: str, seed: int) -> Any:
    """'logits' and other names as they are; 'probes:16' and 'pooled:mean' with their argument."""
    from kinsight import outputs

    name, _, argument = text.partition(":")
    if name == "probes":
        if argument and not argument.isdigit():
            raise UnknownNameError(f"--output {text}: after 'probes:' comes a number, as in probes:16.")
        return outputs.probes(k=int(argument or 16), seed=seed)
    if name == "pooled" and argument in ("", "mean", "sum", "center"):
        return outputs.pooled(argument or "mean")  # type: ignore[arg-type]
    return text


def _check_writable(out: Path, overwrite: bool) -> None:
    """Refuse before anything is computed."""
    if not out.parent.is_dir():
        raise InputError(f"There is no folder {out.parent}. Make it, or pass another --out.")
    if out.is_dir():
        raise InputError(f"{out} is a folder. Pass the name of a file as --out.")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists. Pass --overwrite to replace it, or another --out.")


def _with_names(row: dict[str, Any], class_names: Sequence[str] | None) -> dict[str, Any]:
    """The record of a suspect, with the names of its classes where the data has them."""
    numbers = {key: row[key] for key in ("given", "suggested")}
    if class_names is None or any(number not in range(len(class_names)) for number in numbers.values()):
        return row
    return {**row, **{f"{key}_name": class_names[number] for key, number in numbers.items()}}


def _print(rows: Iterable[Mapping[str, Any]], *, as_json: bool, **facts: Any) -> None:
    """Rows as one JSON document with the facts about them, as a table in a terminal, else as tab-separated lines."""
    listed = [dict(row) for row in rows]
    try:
        if as_json:
            print(json.dumps(_plain({**facts, "rows": listed}), allow_nan=False))
        elif sys.stdout.isatty():
            _print_table(listed)
        elif listed:
            print("\t".join(listed[0]))
            for row in listed:
                print("\t".join(map(_cell, row.values())))
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table for reading; of many rows the first and the last."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        Console().print("nothing found")
        return
    table = Table(*rows[0])
    n_left_out = len(rows) - 2 * _TABLE_ENDS
    ends = [rows] if n_left_out <= 1 else [rows[:_TABLE_ENDS], rows[-_TABLE_ENDS:]]
    for end in ends:
        for row in end:
            table.add_row(*(Text(_cell(value)) for value in row.values()))
        table.add_section()
    Console().print(table)
    if len(ends) > 1:
        print(f"{n_left_out:,} rows between them are not shown; a pipe or --json gets all.", file=sys.stderr)


def _cell(value: Any) -> str:
    """A value in one cell: no line breaks, no tabs, nothing that a terminal would obey."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return _printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _printable(text: str) -> str:
    """Text with control characters written out: ids come from files, and a terminal obeys what it is sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
