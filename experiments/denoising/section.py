"""What docs/experiments.md says of the noise that is left in predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from experiments.tables import Record, provenance, table

RATIOS = (
    "means_kernel_fixed", "means_kernel_fixed_400_draws", "means_kernel_refit", "predictions", "predictions_of_test",
)  # fmt: skip

TEXT = """## Noise left in predictions

A small tanh network learns from noisy labels by how much a digit was turned or shifted. Over 20 draws of the noise:
the standard deviation of kernel-weighted means of noise over D s, with the kernel fixed and refit, and of predictions
over |H| s; 1 is as foretold. Intervals are 95 % bootstrap intervals over draws. The means of all samples move
together, so that 20 draws say little of them; 400, with the kernel fixed, say more. Beside them the error to the
truth: its rank correlation with the one foretold for each sample, and its size over that. "Believed" is whether all
checks of `kinsight.denoise` hold: what is foretold of a network that was stopped early, or has memorized its labels,
or misses what samples share, is not to be believed, and differs."""


def section(records: Sequence[Record]) -> Iterator[str]:
    """Noise left in predictions."""
    yield TEXT
    rows = []
    for record in records:
        seed = next(iter(record["seeds"].values()))
        errors = seed["errors"]
        rows.append(
            [
                record["setting"], *(_interval(seed[name]) for name in RATIOS), f"{seed['decomposition_off']:.0e}",
                f"{seed['estimated_noise']:.3g} of {seed['realized_noise']:.3g}",
                f"{errors['rank_correlation']:.2f}" if "rank_correlation" in errors else "–",
                f"{errors['rms_over_foretold']:.2f}" if "rms_over_foretold" in errors else "–",
                "yes" if seed["is_credible"] else "no: " + ", ".join(seed["failed"]),
            ]
        )  # fmt: skip
    yield table(
        ["setting", "means, fixed", "means, 400 draws", "means, refit", "predictions", "of test", "identity off",
         "noise estimated", "rank", "size", "believed"],
        rows,
    )  # fmt: skip
    yield "\n".join(f"- {record['setting']}: {provenance(record)}" for record in records)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
