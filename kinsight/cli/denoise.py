"""kinsight denoise."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from kinsight.cli.loading import asked, check_unset, fitting, index_alone, samples_of
from kinsight.cli.options import AskedIndex, OptionalData, OptionalModel, Options, OutFile
from kinsight.cli.printing import print_answer
from kinsight.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from kinsight.samples import Samples

N_PROBES = 64

NOT_OF_SKETCHES = (
    "says nothing to the sketches of --index: this asks them for denoising factors alone. Leave it out. Or leave "
    "--index out."
)


class How(StrEnum):
    """How it is computed."""

    auto = "auto"
    exact = "exact"
    estimate = "estimate"


SampleWeights: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Weights that samples had in training: csv: and a file with a column of numbers, or npz: and one with an "
        "array x; by ids where it has some."
    ),
]


def print_denoising(
    options: Options,
    model: OptionalModel = None,
    data: OptionalData = None,
    queries: Annotated[str | None, typer.Option(help="Samples that are asked about; DATA if left out.")] = None,
    sample_weights: SampleWeights = None,
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
    n_probes: Annotated[int, typer.Option("--n-probes", min=2, help="Random probes of an estimate.")] = N_PROBES,
    index: AskedIndex = None,
    out: OutFile = None,
) -> None:
    """How much of the noise of its labels is left in what the network predicts, for values learned by least squares.

    Of an index: denoising factors, which need no equations solved, and nothing of how it was trained.
    """
    from kinsight.denoising.denoise import denoise

    if index is not None:
        of_training = {
            "--queries": queries is not None, "--sample-weights": sample_weights is not None,
            "--weight-decay": weight_decay != 0, "--loss-scale": loss_scale is not None, "--decayed": bool(decayed),
            "--method": method is not How.auto, "--n-probes": n_probes != N_PROBES,
        }  # fmt: skip
        check_unset(of_training, NOT_OF_SKETCHES)
        sums = index_alone(index, None, options, model, data).denoising_sums()
        print_answer(sums.rows(), options, out, summary=sums.summary(), method="sketches")
        return
    if decayed and not weight_decay:
        raise InputError("--decayed says what decays, and --weight-decay how much: pass both.")
    kernel, samples = asked(model, data, options)
    found = denoise(
        kernel, samples, None if queries is None else samples_of(queries, options),
        sample_weights=None if sample_weights is None else _weights(sample_weights, samples, options),
        weight_decay=weight_decay, loss_scale=loss_scale,
        decayed=fitting(kernel.parameters, decayed, "--decayed") if decayed else None,
        method=method.value, n_probes=n_probes, seed=options.seed, progress=not options.quiet,
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


def _weights(source: str, samples: Samples, options: Options) -> Tensor:
    """A number for each sample, from a file of a data set that has nothing else; found by id where it has ids.

    Raises:
        InputError: it has more than a number for each, or has none for a sample.
    """
    from torch import Tensor

    given = samples_of(source, options, limit=options.limit)
    batch = given.take(range(len(given)))
    values = batch.inputs
    if not isinstance(values, Tensor) or values.numel() != len(given) or batch.targets is not None:
        raise InputError(f"--sample-weights {source}: name a file with one number for each sample, and nothing else.")
    if given.numbered_by is not None:
        return values.flatten()
    place = {name: position for position, name in enumerate(given.ids)}
    missing = [name for name in samples.ids if name not in place]
    if missing:
        raise InputError(
            f"--sample-weights {source} has ids, and lacks those of {len(missing)} of {len(samples)} samples, such as "
            f"{missing[0]!r}: name every sample, or leave ids out, with weights in the order of the data."
        )
    return values.flatten()[[place[name] for name in samples.ids]]
