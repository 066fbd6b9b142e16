"""Writes docs/experiments.md from experiments/results/*.json: `python -m experiments.page`; no number by hand."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.records import FOLDER

PAGE = Path(__file__).parent.parent / "docs" / "experiments.md"

T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantiles of Student's t by degrees of freedom."""

OURS = "kinsight, four checkpoints"

Record = Mapping[str, Any]

TITLE = """# Experiments

Written by `python -m experiments.page` from experiments/results; every record names its machine, its commits and the
command that does it again. Intervals are 95 % intervals of the mean over seeds (Student's t)."""

OF_LABELS = """## Label errors, found

A tenth of all labels is made wrong, a convolutional network of 106,122 parameters is trained until it says nearly all
labels as given, and every way gives each label a score. Symmetric: any other class; confused: the classes that a linear
classifier takes for each other. AUROC, the share of errors among the first 10, 12 and 20 % of the data, and the paired
difference of AUROC to kinsight with four checkpoints (after 5, 10 and 20 epochs and the last; chosen on other seeds),
bold where its interval is above 0. "Our regression" is the same leave-one-out regression on other features than
gradients; baselines "of four checkpoints" are means over the same networks. Seeds decide labels, folds, training, and
which images; of MNIST, all 5,000 there are."""

OF_NOISE = """## Noise left in predictions

A small tanh network learns from noisy labels by how much a digit was turned or shifted. Over 20 draws of the noise: the
standard deviation of kernel-weighted means of noise over D s, with the kernel fixed and refit, and of predictions over
|H| s; 1 is as foretold. The means of all samples move together, so that 20 draws say little of them; 400, with the
kernel fixed, say more. Beside them the error to the truth: its rank correlation with the one foretold for each sample,
and its size over that. "Believed" is whether all checks of `kinsight.denoise` hold: what is foretold of a network that
was stopped early, or has memorized its labels, or misses what samples share, is not to be believed, and differs."""


def stored() -> list[Record]:
    """All results, by name."""
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def page(records: Sequence[Record]) -> str:
    """The whole page."""
    parts = [TITLE]
    for question, section in SECTIONS.items():
        own = [record for record in records if record["question"] == question]
        if own:
            parts.append("\n\n".join(section(own)))
    return "\n\n".join(parts) + "\n"


def mean(values: Sequence[float]) -> str:
    """A mean, and half its interval where there is more than one value."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} ± {half_interval(values):.4f}"


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean."""
    return T[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5


def difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The mean of paired differences with its interval; bold where all of it is above 0."""
    off = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(off) < 2:
        return f"{off[0]:+.4f}"
    text = f"{statistics.fmean(off):+.4f} ± {half_interval(off):.4f}"
    return f"**{text}**" if statistics.fmean(off) > half_interval(off) else text


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(heading) + " |", "|" + "|".join(["---"] * len(heading)) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def provenance(record: Record) -> str:
    """Where the numbers come from."""
    commits = sorted({seed["commit"] for seed in record["seeds"].values()})
    machine = record["machine"]
    return (
        f"`{record['command']}`, seeds {', '.join(record['seeds'])}; commit {', '.join(commits)}; "
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}."
    )


def label_errors(records: Sequence[Record]) -> Iterator[str]:
    """Planted label errors."""
    yield OF_LABELS
    for record in records:
        seeds = list(record["seeds"].values())
        first = seeds[0]["ways"]

        def of(way: str, measure: str, seeds: Sequence[Any] = seeds) -> list[float]:
            return [seed["ways"][way][measure] for seed in seeds]

        rows = [
            [
                way, mean(of(way, "auroc")),
                *(f"{statistics.fmean(of(way, f'found_{share}')):.3f}" for share in SHARES),
                "" if way.startswith("kinsight") else difference(of(OURS, "auroc"), of(way, "auroc")),
            ]
            for way in sorted(first, key=lambda way: -statistics.fmean(of(way, "auroc")))
        ]  # fmt: skip
        yield f"### {record['setting']}\n\n{provenance(record)}"
        yield table(["way", "AUROC", "10 %", "12 %", "20 %", "kinsight ahead by"], rows)


SHARES = ("0.1", "0.12", "0.2")


def denoising(records: Sequence[Record]) -> Iterator[str]:
    """Noise left in predictions."""
    yield OF_NOISE
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


RATIOS = (
    "means_kernel_fixed", "means_kernel_fixed_400_draws", "means_kernel_refit", "predictions", "predictions_of_test",
)  # fmt: skip


OF_RATINGS = """## The noise of human ratings

A small network on the embeddings of a MiniLM encoder learns from one rating of each tweet how positive it is. Its
weight decay is chosen by generalized cross-validation. Told from these single ratings: the noise of ratings over the
spread of the raters of a text, 1 being right; what embeddings do not say of a text counts as noise, too. The rank
correlation over texts of the variance of labels around each with the spread of its raters, and the same by
penultimate cosines (power 8). The error to the mean of all other raters, of the single ratings and of predictions."""


def human_noise(records: Sequence[Record]) -> Iterator[str]:
    """The noise of human ratings."""
    yield OF_RATINGS
    names = {
        "estimated_noise": "noise told", "raters": "spread of raters", "estimated_over_raters": "told over spread",
        "rank_correlation": "rank correlation with the spread", "rank_correlation_penultimate": "the same, penultimate",
        "error_of_labels": "error of ratings", "error_of_predictions": "error of predictions",
        "error_of_predictions_of_test": "error of predictions, unseen texts",
    }  # fmt: skip
    for record in records:
        seeds = list(record["seeds"].values())
        yield provenance(record)
        yield table(["number", "mean"], [[name, mean([seed[key] for seed in seeds])] for key, name in names.items()])
        n_believed = sum(seed["is_credible"] for seed in seeds)
        yield (
            f"All checks of `kinsight.denoise` hold in {n_believed} of {len(seeds)} draws. Where misfit is not shared "
            "by neighbors, as what an encoder leaves out of a text, no check sees it, and it counts as noise."
        )


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


SECTIONS: dict[str, Callable[[Sequence[Record]], Iterator[str]]] = {
    "label_errors": label_errors, "denoising": denoising, "human_noise": human_noise,
}  # fmt: skip


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(stored()), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
