"""Loading: kernels and samples from what stands on the command line."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinsight.cli.options import Options, Precision, Similarity
from kinsight.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from kinsight.index import Index
    from kinsight.kernel import GradientKernel
    from kinsight.samples import Samples


def kernel_of(model: str, options: Options) -> GradientKernel:
    """The kernel of the model that a string names."""
    import torch

    from kinsight.kernel import GradientKernel
    from kinsight.sources import load_model

    torch.manual_seed(options.seed)
    weights = None if options.checkpoint is None else str(options.checkpoint)
    network = load_model(model, checkpoint=weights, device=options.device, allow_pickle=options.allow_pickle)
    if options.dtype is not None:
        network = network.to(getattr(torch, options.dtype.value))
    names = [name for name, _ in network.named_parameters()]
    chosen = fitting(names, options.parameters, "--parameters") if options.parameters else None
    limits: dict[str, Any] = {} if options.max_bytes is None else {"max_bytes": options.max_bytes}
    output = _output(options.output, options.seed)
    return GradientKernel(network, output, parameters=chosen, batch_size=options.batch_size, **limits)


def kernels_of(model: str, checkpoints: Iterable[Path], options: Options) -> Iterator[tuple[str, GradientKernel]]:
    """The kernels of one model with the weights of several checkpoints, by their paths, one at a time."""
    for path in checkpoints:
        yield str(path), kernel_of(model, replace(options, checkpoint=path))


def check_unset(is_given: Mapping[str, bool], why: str) -> None:
    """Raise where an option was passed that means nothing to what is asked.

    Args:
        is_given: by its name.
        why: what follows the name.

    Raises:
        InputError: one was.
    """
    for name in is_given:
        if is_given[name]:
            raise InputError(f"{name} {why}")


def check_different(checkpoints: Sequence[Path]) -> None:
    """Raise where the same weights would be compared with themselves.

    Raises:
        InputError: a file is named twice.
    """
    if len({path.resolve() for path in checkpoints}) < len(checkpoints):
        raise InputError(f"Weights are {', '.join(map(str, checkpoints))}: name each of them once.")


def samples_of(source: str, options: Options, *, limit: int | None = None) -> Samples:
    """The samples that a string names, in the precision asked for: numbers are not rounded to another one first."""
    import torch

    from kinsight.sources import load_samples

    with _default_dtype(options.dtype):
        samples = load_samples(source, limit=limit).read_by(options.workers)
    return samples if options.dtype is None else samples.to_dtype(getattr(torch, options.dtype.value))


@contextmanager
def _default_dtype(dtype: Precision | None) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(before if dtype is None else getattr(torch, dtype.value))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def asked(model: str | None, data: str | None, options: Options) -> tuple[GradientKernel, Samples]:
    """The kernel and the samples that are compared where no index is asked.

    Raises:
        InputError: one of them is not named.
    """
    if model is None or data is None:
        raise InputError("MODEL and DATA are needed to compare samples; without them, ask an index: --index FOLDER.")
    return kernel_of(model, options), samples_of(data, options, limit=options.limit)


def index_alone(
    folder: Path, normalization: Similarity | None, options: Options, model: str | None, data: str | None
) -> Index:
    """The index of a folder, where nothing but its sketches is asked.

    Raises:
        InputError: it is of another normalization, or something was passed that means nothing to sketches.
    """
    if model is not None or data is not None:
        raise InputError("This asks the sketches of --index alone: leave MODEL and DATA out. Or leave --index out.")
    for field in fields(Options):
        if field.name not in ("as_json", "quiet", "debug") and getattr(options, field.name) not in (field.default, []):
            raise InputError(
                f"--{field.name.replace('_', '-')} says how a network is asked about data, and this asks the "
                "sketches of --index alone, as they were built: leave it out. Or leave --index out."
            )
    return index_of(folder, normalization)


def index_asked(
    folder: Path,
    normalization: Similarity | None,
    options: Options,
    model: str | None,
    data: str | None,
    queries: str | None,
) -> tuple[Index, dict[str, Any]]:
    """The index of a folder, and what it is asked about: its own samples, or queries, as its methods take them.

    Raises:
        InputError: queries, and no model to sketch them; or something was passed that means nothing.
    """
    if queries is None:
        return index_alone(folder, normalization, options, model, data), {}
    if model is None:
        raise InputError("--queries are inputs: MODEL is needed to sketch them.")
    if data is None and options.limit is not None:
        raise InputError("--limit is of DATA, and there is none beside --queries: leave it out.")
    index = index_of(folder, normalization)
    known = None if data is None else samples_of(data, options, limit=options.limit)
    return index, {"queries": samples_of(queries, options), "kernel": kernel_of(model, options), "data": known}


def index_of(folder: Path, normalization: Similarity | None) -> Index:
    """The index of a folder.

    Raises:
        InputError: it is of another normalization than was asked for.
    """
    from kinsight.index import Index

    index = Index(folder)
    if normalization is not None and normalization.value != index.normalization:
        raise InputError(
            f"Index {str(folder)!r} is of {index.normalization} similarity, not {normalization.value}: leave "
            f"--normalization out, or build one with --normalization {normalization.value}."
        )
    return index


def positions_of(samples: Samples | Index, ids: Iterable[str]) -> list[int]:
    """Where the samples with these ids, as texts, lie."""
    place = {str(name): position for position, name in enumerate(samples.ids)}
    missing = [name for name in ids if name not in place]
    if missing:
        raise UnknownNameError(
            f"There is no sample {missing[0]!r}: ids go from {samples.ids[0]!r} to {samples.ids[-1]!r}."
        )
    return [place[name] for name in ids]


def check_writable(out: Path, *, overwrite: bool) -> None:
    """Refuse before anything is computed."""
    if not out.parent.is_dir():
        raise InputError(f"There is no folder {out.parent}. Make it, or pass another --out.")
    if out.is_dir():
        raise InputError(f"{out} is a folder. Pass the name of a file as --out.")
    if out.exists() and not overwrite:
        raise InputError(f"--out {out} is there already: pass --overwrite to replace it, or another name.")


def fitting(parameters: Iterable[str], patterns: Sequence[str], option: str) -> list[str]:
    """Names of the parameters that fit any of the patterns.

    Raises:
        UnknownNameError: one fits none.
    """
    names = list(parameters)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UnknownNameError(
                f"{option} {pattern!r} fits no parameter: there are {len(names)}, "
                f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}."
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
