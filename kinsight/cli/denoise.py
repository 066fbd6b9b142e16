"""kinsight denoise."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated

import typer

from kinsight.cli.loading import kernel_of, samples_of
from kinsight.cli.options import Data, Model, Options, OutFile, Queries
from kinsight.cli.printing import print_answer


class How(StrEnum):
    """How it is computed."""

    auto = "auto"
    exact = "exact"
    estimate = "estimate"


def print_denoising(
    model: Model,
    data: Data,
    options: Options,
    queries: Queries = None,
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
    n_probes: Annotated[int, typer.Option("--probes", min=2, help="Random probes of an estimate.")] = 64,
    out: OutFile = None,
) -> None:
    """How much of the noise of its labels is left in what the network predicts, for values learned by least squares."""
    from kinsight.denoising import denoise

    kernel, samples = kernel_of(model, options), samples_of(data, options, limit=options.limit)
    found = denoise(
        kernel, samples, None if queries is None else samples_of(queries, options), weight_decay=weight_decay,
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


def _decaying(parameters: Iterable[str], patterns: list[str] | None) -> list[str] | None:
    """Names that fit any of the patterns."""
    if not patterns:
        return None
    from kinsight.errors import UnknownNameError

    names = list(parameters)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownNameError(f"--decayed {pattern!r} fits no parameter: there are {', '.join(names[:8])}.")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
