"""kinsight fit."""

from __future__ import annotations

from typing import Annotated

import typer

from kinsight.cli.loading import kernel_of, samples_of
from kinsight.cli.options import Data, Model, OptionalNormalization, Options, OutFile, Similarity
from kinsight.cli.printing import print_rows


def print_fit(
    model: Model,
    data: Data,
    options: Options,
    power: Annotated[float, typer.Option(help="Of similarities: 8 hears close neighbors; 1 takes linear time.")] = 8.0,
    regime: Annotated[str | None, typer.Option(help="Only samples of this regime, the most pronounced first.")] = None,
    by_group: Annotated[bool, typer.Option("--by-group", help="One row a class, in place of one a sample.")] = False,
    normalization: OptionalNormalization = None,
    out: OutFile = None,
) -> None:
    """Which samples are learned with others, memorized, contradicted, underfit, ambiguous or alone."""
    from kinsight.errors import UnknownNameError
    from kinsight.fit import MEANINGS, fit_map

    if regime is not None and regime not in MEANINGS:
        raise UnknownNameError(f"--regime {regime}: there are {', '.join(MEANINGS)}.")
    kernel, samples = kernel_of(model, options), samples_of(data, options, limit=options.limit)
    chosen = normalization or Similarity.flat
    found = fit_map(kernel, samples, power=power, normalization=chosen.value, progress=not options.quiet)
    rows = found.by_group() if by_group else list(found.rows())
    if regime is not None and not by_group:
        rows = [rows[place] for place in found.of(regime).tolist()]
    shares = {name: found.regimes.count(name) for name in MEANINGS}
    facts = {"normalization": chosen.value, "power": power, "regimes": shares, "meanings": MEANINGS}
    print_rows(rows, as_json=options.as_json, is_quiet=options.quiet, out=out, summary=found.summary(), **facts)
