"""What stands where on the report's page: findings in words, round numbers and pictures. No computation, no HTML."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from kinsight.explorer.findings import Findings
from kinsight.explorer.noise import noise_fields
from kinsight.explorer.pictures import chart, data_uri, written
from kinsight.explorer.portraits import Portrait
from kinsight.explorer.regimes import fit_fields
from kinsight.explorer.volatility import stability_fields
from kinsight.labels.suspects import LabelSuspects

Fields: TypeAlias = dict[str, Any]
"""What the template reads."""

SMALL_SIDE = 64
"""Images up to so many pixels are shown with their pixels sharp."""

_NAMES_SHOWN = 6


@dataclass(frozen=True)
class Headline:
    """One finding in a nutshell.

    Args:
        number: the number, as it is written.
        text: what it counts.
    """

    number: str
    text: str

    def __str__(self) -> str:
        return f"{self.number} {self.text}"


def headlines(findings: Findings) -> tuple[Headline, ...]:
    """The findings that stand at the top of the page, the most important first."""
    return tuple(_headlines(findings))


def _headlines(findings: Findings) -> Iterator[Headline]:
    subject, check = findings.subject, findings.check
    if check is not None:
        rate = "" if math.isnan(check.auroc) else f" (AUROC {check.auroc:.3f} over all samples)"
        text = f"labels known to be wrong are among the {check.n_shown} suspects shown{rate}"
        yield Headline(f"{check.n_found} of {check.n_wrong}", text)
    if findings.suspects is not None:
        n = findings.suspects.n_contradicted
        what = "labels are contradicted by all other samples together"
        if not subject.is_classification:
            what = "values lie more than 3 robust standard deviations from what their neighborhood says"
        yield Headline(f"{n:,}", f"of {subject.n_samples:,} {what}")
    if (share := _share_alike(findings)) is not None:
        yield Headline(f"{share:.0%}", "of the neighbors shown have the label of their query")
    values = findings.counts.values[findings.counts.order()].tolist()
    if values:
        text = f"is the median soft count; the loneliest sample has {written(values[0])}"
        yield Headline(written(statistics.median(values)), f"{text}, the most crowded {written(values[-1])}")
    if not math.isnan(subject.agreement):
        yield Headline(f"{subject.agreement:.1%}", "of the labels are what the network itself predicts")
    if n_undefined := len(findings.undefined_ids):
        yield Headline(f"{n_undefined:,}", "samples have a zero gradient, so their similarity is undefined")


def _share_alike(findings: Findings) -> float | None:
    """Share of the neighbors shown that have the label of their query."""
    if findings.neighbors is None or not findings.subject.is_classification:
        return None
    pairs = [
        findings.portraits[place].label == query.label
        for query, places in zip(findings.queries, findings.neighbors.positions.tolist(), strict=True)
        for place in places
        if place >= 0 and query.label
    ]
    return sum(pairs) / len(pairs) if pairs else None


def page_of(findings: Findings) -> Fields:
    """What the template reads, under the name `page`."""
    subject = findings.subject
    samples = {place: _sample(portrait) for place, portrait in findings.portraits.items()}
    everyone = [*samples.values(), *(queries := [_sample(query) for query in findings.queries])]
    return {
        "title": findings.title,
        "lede": f"{subject.n_samples:,} samples, as {subject.model_name} sees them: which it treats as alike, how "
        "crowded the data is around each, and which labels their neighborhood contradicts.",
        "is_wordy": not any(sample["uri"] for sample in everyone),
        "is_classification": subject.is_classification,
        "n_samples": f"{subject.n_samples:,}",
        "tiles": headlines(findings),
        "facts": list(_facts(findings)),
        "rows": list(_rows(findings, queries, samples)),
        "chart": chart(findings.counts.values.tolist(), "soft counts"),
        "lonely": _counted(findings, samples, findings.lonely),
        "crowded": _counted(findings, samples, findings.crowded),
        "suspects_intro": _suspects_intro(findings.suspects),
        "scores": _scores(findings.suspects),
        "scores_are": _scores_are(findings.suspects),
        "because": _because(findings.suspects),
        "suspects": [] if findings.suspects is None else list(_cards(findings, findings.suspects, samples)),
        "no_suspects": findings.no_suspects or "No label is contradicted by most of its neighborhood.",
        "fit": None if findings.fit is None else fit_fields(findings.fit, findings.examples, samples),
        "no_fit": findings.no_fit,
        "noise": None if findings.noise is None else noise_fields(findings.noise, findings.noisy, samples),
        "no_noise": findings.no_noise,
        "stability": None
        if findings.stability is None
        else stability_fields(findings.stability, findings.volatile, samples),
        "label_use": "Labels enter only where labels are judged."
        if subject.output != "loss"
        else "The output is the loss, so each sample’s own label enters its gradient.",
        "routes": list(_routes(findings)),
        "undefined": _undefined(findings),
        "terms": list(_terms(findings)),
    }


def _sample(portrait: Portrait) -> Fields:
    """One sample, as the template shows it."""
    id_ = f"#{portrait.id}" if isinstance(portrait.id, int) else portrait.id
    image = portrait.image
    return {
        "id": id_,
        "uri": None if image is None else data_uri(image),
        "is_small": image is not None and max(image.size) <= SMALL_SIDE,
        "text": portrait.text,
        "label": portrait.label,
    }


def _facts(findings: Findings) -> Iterator[tuple[str, str]]:
    subject = findings.subject
    yield "Network", subject.model_name
    yield "Parameters compared", f"{subject.n_parameters:,} in {len(subject.sizes)} tensors"
    yield "Output", subject.output.replace("_", " ")
    yield "Similarity", subject.normalization
    yield "Samples", f"{subject.n_samples:,}"
    if subject.dim is not None:
        yield "Counts and suspects", f"from an index, {subject.dim:,} numbers a sample"


def _rows(findings: Findings, queries: list[Fields], samples: dict[int, Fields]) -> Iterator[Fields]:
    found = findings.neighbors
    if found is None:
        return
    places, similarities = found.positions.tolist(), found.similarities.tolist()
    for portrait, query, row, values in zip(findings.queries, queries, places, similarities, strict=True):
        told = portrait.label or "Query"
        yield {
            "query": query,
            "heading": told,
            "detail": f"network says {portrait.prediction}" if portrait.prediction else "",
            "neighbors": [
                {
                    "sample": samples[place],
                    "similarity": value,
                    "differs": findings.subject.is_classification
                    and bool(portrait.label)
                    and samples[place]["label"] != portrait.label,
                }
                for place, value in zip(row, values, strict=True)
                if place >= 0
            ],
        }


def _counted(findings: Findings, samples: dict[int, Fields], places: Iterable[int]) -> list[Fields]:
    values, errors = findings.counts.values, findings.counts.error
    counts = [written(float(values[place]), None if errors is None else float(errors[place])) for place in places]
    return [{"sample": samples[place], "count": count} for place, count in zip(places, counts, strict=True)]


def _suspects_intro(suspects: LabelSuspects | None) -> str:
    if suspects is None or suspects.task == "classification":
        return (
            "Each label is told by all other samples, by how similar they are to the network, without the sample "
            "itself. A suspect is a sample of which they say another label: look at it, not every suspect is wrong."
        )
    return (
        "Each value is told by all other samples, by how similar they are to the network, without the sample itself. "
        "A suspect lies far from what they say: look at it, not every suspect is wrong."
    )


def _scores(suspects: LabelSuspects | None) -> Fields | None:
    return None if suspects is None else chart(suspects.all_scores.tolist(), "scores of labels")


def _scores_are(suspects: LabelSuspects | None) -> str:
    if suspects is not None and suspects.task == "regression":
        return "how far each label is from what the others say, in robust standard deviations"
    return "probability that each label is another one; most are near 0"


def _because(suspects: LabelSuspects | None) -> str:
    if suspects is not None and suspects.task == "regression":
        return "The most similar samples"
    return "The most similar samples with the suggested label"


def _cards(findings: Findings, suspects: LabelSuspects, samples: dict[int, Fields]) -> Iterator[Fields]:
    names = {place: findings.portraits[place] for place in suspects.positions.tolist()}
    columns = (
        suspects.positions.tolist(),
        suspects.scores.tolist(),
        findings.suggestions,
        suspects.supporter_positions.tolist(),
        suspects.supporter_similarities.tolist(),
    )
    for place, score, suggested, supporters, similarities in zip(*columns, strict=True):
        portrait = names[place]
        is_wrong = bool(portrait.truth) and portrait.truth != portrait.label
        truth = f"known error: {portrait.truth}" if is_wrong else "no known error"
        reason = f"All other samples give {score:.1%} to other labels."
        if suspects.task == "regression":
            reason = f"{score:.1f} robust standard deviations from what all other samples say."
        yield {
            "sample": samples[place],
            "given": portrait.label,
            "suggested": suggested,
            "reason": reason + (f" The network itself says {portrait.prediction}." if portrait.prediction else ""),
            "badge": truth if portrait.truth else "",
            "is_wrong": is_wrong,
            "supporters": [
                {"sample": samples[supporter], "similarity": value}
                for supporter, value in zip(supporters, similarities, strict=True)
                if supporter >= 0
            ],
        }


def _routes(findings: Findings) -> Iterator[Fields]:
    """Parameters by the route of their gradients."""
    by_route: dict[str, list[str]] = {}
    for name, route in findings.subject.routes.items():
        by_route.setdefault(route, []).append(name)
    for route, names in by_route.items():
        yield {
            "name": route,
            "shown": names[:_NAMES_SHOWN],
            "n_more": max(len(names) - _NAMES_SHOWN, 0),
            "n_entries": f"{sum(findings.subject.sizes[name] for name in names):,}",
        }


def _undefined(findings: Findings) -> str:
    ids = findings.undefined_ids
    if not ids:
        return "Every sample’s similarity is defined: no gradient is zero."
    more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
    return (
        f"{len(ids):,} samples have a zero gradient, so that nothing is similar to them; they are left out of all "
        f"counts: {', '.join(map(str, ids[:10]))}{more}."
    )


def _terms(findings: Findings) -> Iterator[Fields]:
    yield {
        "name": "Gradient kernel",
        "text": "How far a small step of training on one sample would move the outputs of another, for every pair of "
        "outputs.",
        "formula": "K(x, y) = J(x) J(y)ᵀ, with J the gradients of the outputs over the parameters",
    }
    if findings.subject.normalization == "flat":
        yield {
            "name": "Similarity, flat",
            "text": "The kernel summed over the outputs, divided by the lengths of both samples’ gradients. For one "
            "output it is the cosine of the two gradients.",
            "formula": "k(x, y) = Tr K(x, y) / √(Tr K(x, x) · Tr K(y, y)), between −1 and 1",
        }
    else:
        yield {
            "name": "Similarity, whitened",
            "text": "The kernel after each sample’s outputs are turned and scaled so that they move independently. For "
            "one output it is the cosine of the two gradients.",
            "formula": "k(x, y) = Tr(K(x, x)^−½ K(x, y) K(y, y)^−½) / √(rank(x) · rank(y)), between −1 and 1",
        }
    yield {
        "name": "Soft count",
        "text": "The sum of a sample’s similarities to all samples, itself included."
        + (" Here estimated from an index; after ± stands the standard error." if findings.subject.dim else ""),
        "formula": "N(x) = Σⱼ k(x, xⱼ)",
    }
    is_regression = findings.suspects is not None and findings.suspects.task == "regression"
    said = "what all other samples say of it: a regression over their similarities that never saw the sample itself"
    yield {
        "name": "Suspect score",
        "text": f"The distance between a sample’s value and {said}; in robust standard deviations."
        if is_regression
        else f"The probability that a sample’s label is another one, by {said}; calibrated against the labels given.",
        "formula": "|y − f₋ᵢ(xᵢ)| / spread" if is_regression else "1 − p(given label), p from f₋ᵢ(xᵢ)",
    }
