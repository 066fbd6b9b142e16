"""What docs/experiments.md says of the noise of human ratings."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from experiments.tables import Record, difference, half_interval, mean, provenance, table

TEXT = """## The noise of human ratings

A small network on the embeddings of a MiniLM encoder learns from one rating of each tweet how positive it is. Its
weight decay is chosen by generalized cross-validation. Told from these single ratings: the noise of ratings over the
spread of the raters of a text, 1 being right; what embeddings do not say of a text counts as noise, too. The rank
correlation over texts of the variance of labels around each with the spread of its raters, and the same by
penultimate cosines (power 8). The error to the mean of all other raters, of the single ratings and of predictions."""


def section(records: Sequence[Record]) -> Iterator[str]:
    """The noise of human ratings."""
    yield TEXT
    names = {
        "estimated_noise": "noise told", "raters": "spread of raters", "estimated_over_raters": "told over spread",
        "rank_correlation": "rank correlation with the spread", "rank_correlation_penultimate": "the same, penultimate",
        "error_of_labels": "error of ratings", "error_of_predictions": "error of predictions",
        "error_of_predictions_of_test": "error of predictions, unseen texts",
    }  # fmt: skip
    for record in records:
        seeds = list(record["seeds"].values())
        yield provenance(record)
        rows = [[name, mean([seed[key] for seed in seeds])] for key, name in names.items()]
        ours, theirs = ([seed[key] for seed in seeds] for key in ("rank_correlation", "rank_correlation_penultimate"))
        yield table(["number", "mean"], [*rows, ["rank correlation, ahead of penultimate", difference(ours, theirs)]])
        ratios = [seed["estimated_over_raters"] for seed in seeds]
        low, high = (statistics.fmean(ratios) + sign * half_interval(ratios) for sign in (-1, 1))
        if low > 1.15 or high < 0.85:
            yield f"The noise told is not within 15 % of the raters' spread: {low:.2f} to {high:.2f} times as large."
        n_believed = sum(seed["is_credible"] for seed in seeds)
        yield (
            f"All checks of `kinsight.denoise` hold in {n_believed} of {len(seeds)} draws. Where misfit is not shared "
            "by neighbors, as what an encoder leaves out of a text, no check sees it, and it counts as noise."
        )
