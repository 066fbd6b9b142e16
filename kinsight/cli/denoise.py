"""kinsight denoise."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinsight.cli.loading import asked, index_alone, samples_of
from kinsight.cli.options import AskedIndex, OptionalData, OptionalModel, Options, OutFile, Queries
from kinsight.cli.printing import print_answer
from kinsight.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor

N_PROBES = 64


class How(StrEnum):
    """How it is computed."""

    auto = "auto"
    exact = "exact"
    estimate = "estimate"


def print_denoising(
    options: Options,
    model: OptionalModel = None,
    data: OptionalData = None,
    queries: Queries = None,
    sample_weights: Annotated[
        str | None,
        typer.Option(help="Weights that samples had in training: npz: or csv: and a file with a number for each."),
    ] = None,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of training, as in torch.optim.SGD.")] = 0.0,
    loss_scale: Annotated[
        float | None,
        typer.Option(help="Factor of the squared errors in the loss; as in nn.MSELoss if left out."),
    ] = None,
    decayed: Annotated[
        list[str] | None,
        typer.Option(help="Parameters that decay, such as '*.weight'; may be given again. All if left out."),
    ] = None,
    method: Annotated[
        How, typer.Option(help="exact: matrices of all pairs; estimate: linear time, with errors; auto: by size.")
    ] = How.auto,
    n_probes: Annotated[int, typer.Option("--probes", min=2, help="Random probes of an estimate.")] = N_PROBES,
    index: AskedIndex = None,
    out: OutFile = None,
) -> None:
    """How much of the noise of its labels is left in what the network predicts, for values learned by least squares.

    Of an index: denoising factors, which need no equations solved, and nothing of how it was trained.
    """
    from kinsight.denoising.denoise import denoise

    if index is not None:
        of_training = {
            "--queries": queries, "--sample-weights": sample_weights, "--weight-decay": weight_decay,
            "--loss-scale": loss_scale, "--decayed": decayed,
            "--method": method is not How.auto, "--probes": n_probes != N_PROBES,
        }  # fmt: skip
        _check_unset(of_training)
        sums = index_alone(index, None, options, model, data).denoising_sums()
        print_answer(sums.rows(), options, out, summary=sums.summary(), method="sketches")
        return
    kernel, samples = asked(model, data, options)
    found = denoise(
        kernel, samples, None if queries is None else samples_of(queries, options),
        sample_weights=None if sample_weights is None else _numbers(sample_weights, options), weight_decay=weight_decay,
        loss_scale=loss_scale, decayed=_decaying(kernel.parameters, decayed), method=method.value, n_probes=n_probes,
        seed=options.seed, progress=not options.quiet,
    )  # fmt: skip
    fields = ("name", "value", "limit", "is_met")
    checks = [{name: getattr(check, name) for name in fields} for check in found.checks]
    for check in found.checks:
        if not check.is_met and not options.as_json:
            told = f"{check.name} is {check.value:.3g} (limit {check.limit:g}): {check.meaning}"
            print(f"warning: {told}", file=sys.stderr)
    print_answer(
        found.rows(), options, out, summary=found.summary(),
        noise=found.noise, noise_error=found.noise_error, degrees_of_freedom=found.degrees_of_freedom,
        is_credible=found.is_credible, method=found.method, checks=checks,
    )  # fmt: skip


def _numbers(source: str, options: Options) -> Tensor:
    """One number a sample, from a file of a data set that has nothing else.

    Raises:
        InputError: it has more.
    """
    from torch import Tensor

    found = samples_of(source, options)
    values = found.take(range(len(found))).inputs
    if not isinstance(values, Tensor) or values.numel() != len(found):
        raise InputError(f"--sample-weights {source}: name a file with one number for each sample, and nothing else.")
    return values.flatten()


def _check_unset(options: Mapping[str, Any]) -> None:
    """Raise where an option was passed that says nothing to sketches."""
    for name, value in options.items():
        if value:
            raise InputError(
                f"{name} says nothing to the sketches of --index: this asks them for denoising factors "
                "alone. Leave it out. Or leave --index out."
            )


def _decaying(parameters: Iterable[str], patterns: list[str] | None) -> list[str] | None:
    """Names that fit any of the patterns."""
    if not patterns:
        return None
    names = list(parameters)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownNameError(f"--decayed {pattern!r} fits no parameter: there are {', '.join(names[:8])}.")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
