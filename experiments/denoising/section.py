"""What docs/experiments.md says of the noise that is left in predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from experiments.tables import Record, provenance, table

RATIOS = (
    "means_kernel_fixed", "means_kernel_fixed_400_draws", "means_kernel_refit", "predictions", "predictions_of_test",
)  # fmt: skip

TEXT = """## Noise left in predictions

A small tanh network learns from noisy labels by how much a digit was turned or shifted. Over 20 draws of the noise:
the standard deviation of kernel-weighted means of noise over D s, with the kernel fixed and refit, and of predictions
over |H| s; 1 is as foretold. Intervals are 95 % bootstrap intervals over draws. The means of all samples move
together, so that 20 draws say little of them; 400, with the kernel fixed, say more. Last, the same deviation of
predictions over D s, which is not what is left in them: the shift carries noise, too."""

ERRORS = """### Errors, foretold and measured

The noise of labels as estimated without clean ones, and as it is; and for each sample the error of its prediction to
the truth against the one foretold: its rank correlation, its size over what was foretold, and how many errors are
within 1.96 of it (95 % if it is calibrated), of the samples that were learned from and of new ones. "Believed" is
whether all checks of `kinsight.denoise` hold: what is foretold of a network that was stopped early, or has memorized
its labels, or misses what samples share, is not to be believed, and differs."""


def section(records: Sequence[Record]) -> Iterator[str]:
    """Noise left in predictions."""
    seeds = [(record["setting"], next(iter(record["seeds"].values()))) for record in records]
    yield TEXT
    yield table(
        ["setting", "means, fixed", "means, 400 draws", "means, refit", "predictions", "of test", "identity off",
         "predictions over D s"],
        [
            [name, *(_interval(seed[ratio]) for ratio in RATIOS), f"{seed['decomposition_off']:.0e}",
             f"{seed['predictions_by_factor']['ratio']:.2g}"]
            for name, seed in seeds
        ],
    )  # fmt: skip
    yield ERRORS
    yield table(
        ["setting", "noise estimated", "rank", "size", "within 1.96", "rank, new", "size, new", "within 1.96, new",
         "believed"],
        [
            [name, f"{seed['estimated_noise']:.3g} of {seed['realized_noise']:.3g}".replace("nan", "–"),
             *_calibration(seed["errors"]), *_calibration(seed["errors_of_test"]),
             "yes" if seed["is_credible"] else "no: " + ", ".join(seed["failed"])]
            for name, seed in seeds
        ],
    )  # fmt: skip
    yield provenance(*records)


def _calibration(errors: Mapping[str, float]) -> Iterator[str]:
    """Rank correlation, size and share within 1.96; nothing of the kind where no noise could be told."""
    forms = {"rank_correlation": "{:.2f}", "rms_over_foretold": "{:.2f}", "within_1.96": "{:.0%}"}
    told = (form.format(errors.get(name, math.nan)) for name, form in forms.items())
    return ("–" if "nan" in text else text.replace("%", " %") for text in told)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
