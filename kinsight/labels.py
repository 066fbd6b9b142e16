"""Suspected label errors: targets that the neighborhood, as the network sees it, contradicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kinsight.errors import InputError, TargetError, UnknownNameError
from kinsight.kernel import GradientKernel, Normalization
from kinsight.progress import progress_bar
from kinsight.samples import Id, Samples
from kinsight.stream import Pairs

Task = Literal["classification", "regression"]


@dataclass(frozen=True, eq=False)
class LabelSuspects:
    """Samples whose target the neighborhood contradicts, the most contradicted first.

    Args:
        ids: of the k suspects.
        positions: where they lie in the data, [k].
        scores: how strongly each is contradicted, [k]. Classification: the share of the neighborhood's weight on other
            labels, in [0, 1]. Regression: distance from the neighborhood's mean, in robust standard deviations.
        given: their targets, [k] or [k d].
        suggested: what the neighborhood says instead, [k] or [k d].
        supporter_ids: the neighbors that say so, the most similar first.
        supporter_positions: where these lie in the data, [k s]; -1 where there are fewer.
        supporter_similarities: [k s]; nan where there are fewer.
        all_scores: score of every sample of the data, [n]; nan where no neighbor has positive similarity.
        n_contradicted: number of suspects before `n_suspects` cut the list.
        task: 'classification' or 'regression'.
        error: root mean square error of the similarities, where they are estimates from sketches; None: exact.
    """

    ids: tuple[Id, ...]
    positions: Tensor
    scores: Tensor
    given: Tensor
    suggested: Tensor
    supporter_ids: tuple[tuple[Id, ...], ...]
    supporter_positions: Tensor
    supporter_similarities: Tensor
    all_scores: Tensor
    n_contradicted: int
    task: Task
    error: float | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a suspect: id, score, given, suggested, supporters."""
        columns = (self.ids, self.scores.tolist(), self.given.tolist(), self.suggested.tolist(), self.supporter_ids)
        for id_, score, given, suggested, supporters in zip(*columns, strict=True):
            yield {"id": id_, "score": score, "given": given, "suggested": suggested, "supporters": list(supporters)}


def label_suspects(
    kernel: GradientKernel,
    data: Any,
    *,
    n_suspects: int | None = None,
    threshold: float | None = None,
    power: float = 8.0,
    normalization: Normalization = "flat",
    n_supporters: int = 5,
    task: Task | None = None,
    progress: bool = False,
) -> LabelSuspects:
    """Targets that the neighborhood contradicts, each with the neighbors that say so and the label they suggest.

    Every other sample votes for its own target with weight k(x, x_j)^power; the sample itself is left out. The defaults
    are known to work on a network that has memorized its wrong labels: flat similarity over all logits, power 8.

    Args:
        kernel: the gradient kernel of the network, over all its logits.
        data: whatever `Samples` takes, with targets: integers [n] (classification), or floats [n] or [n d]
            (regression).
        n_suspects: at most so many; all above the threshold where left out.
        threshold: least score of a suspect, whose own label besides must not have the most votes; 0.5 (most of the
            weight disagrees) for classification and 3 (robust standard deviations) for regression where left out.
        power: exponent of the weights: higher listens to fewer neighbors.
        normalization: 'flat' or 'whitened' similarity.
        n_supporters: neighbors shown for each suspect.
        task: 'classification' or 'regression'; by the targets' type where left out.
        progress: whether to show a progress bar.

    Returns:
        `LabelSuspects`.

    Raises:
        TargetError: no targets, or of the wrong kind.
    """
    samples = Samples.wrap(data)

    def pairs(rows: Tensor | None) -> Iterator[tuple[slice, slice, Tensor]]:
        chosen = samples if rows is None else Samples(samples.take(rows))
        return kernel.similarity_blocks(chosen, None if rows is None else samples, normalization)

    return suspects_among(
        pairs, samples.ids, known_targets(samples), n_suspects=n_suspects, threshold=threshold, power=power,
        n_supporters=n_supporters, task=task, progress=progress,
    )  # fmt: skip


def suspects_among(
    pairs: Pairs,
    ids: Sequence[Id],
    targets: Tensor,
    *,
    n_suspects: int | None,
    threshold: float | None,
    power: float,
    n_supporters: int,
    task: Task | None,
    progress: bool,
) -> LabelSuspects:
    """The same, of samples whose similarities come block by block; see `label_suspects`."""
    _check_numbers(power, n_suspects=n_suspects, n_supporters=n_supporters)
    task = task or ("regression" if targets.is_floating_point() else "classification")
    votes, total = votes_of(pairs, _ballots(targets, task), power, progress=progress)
    scores, suggested = _judge(targets, votes, total, task)
    least = threshold if threshold is not None else _THRESHOLDS[task]
    order = scores.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    order = order[_is_contradicted(scores, targets, suggested, least, task)[order]]
    n_contradicted, order = len(order), order[:n_suspects]
    places, similarities = _supporters(pairs, targets, order, suggested, task, n_supporters)
    return LabelSuspects(
        ids=tuple(ids[place] for place in order.tolist()),
        positions=order,
        scores=scores[order],
        given=targets[order],
        suggested=suggested[order],
        supporter_ids=tuple(tuple(ids[place] for place in row if place >= 0) for row in places.tolist()),
        supporter_positions=places,
        supporter_similarities=similarities,
        all_scores=scores,
        n_contradicted=n_contradicted,
        task=task,
    )


_THRESHOLDS: dict[Task, float] = {"classification": 0.5, "regression": 3.0}


def _is_contradicted(scores: Tensor, targets: Tensor, suggested: Tensor, least: float, task: Task) -> Tensor:
    """Whether the score is above the threshold and, for classes, another label has more votes. [n]."""
    is_other = suggested != targets if task == "classification" else torch.ones_like(scores, dtype=torch.bool)
    return (scores > least) & is_other


def _check_numbers(power: float, **counts: int | None) -> None:
    if not power > 0:
        raise InputError(f"power is {power}: it must be positive.")
    for name, count in counts.items():
        if count is not None and count < 0:
            raise InputError(f"{name} is {count}: it is a number of samples, 0 for none.")


def known_targets(samples: Samples) -> Tensor:
    """The targets of all samples, [n] or [n d].

    Raises:
        TargetError: there are none, or some are nan or inf.
    """
    targets = samples.targets
    if targets is None:
        raise TargetError(
            "The data has no targets, so there is nothing to suspect. Pass Samples(inputs, targets), a Dataset of "
            "(input, target), or unpack=."
        )
    bad = ~torch.isfinite(targets.double().reshape(len(targets), -1)).all(dim=1)
    if bool(bad.any()):
        names = [samples.ids[place] for place in bad.nonzero().flatten().tolist()]
        raise TargetError(
            f"The targets of {len(names)} of {len(samples)} samples are nan or inf: {names[:5]}. A single one spoils "
            "the mean of every neighborhood it is in. Leave these samples out."
        )
    return targets


def check_classes(targets: Tensor) -> None:
    """Raise where targets are no class numbers.

    Raises:
        TargetError: they are no integers [n], or negative.
    """
    if targets.is_floating_point() or targets.dim() != 1:
        raise TargetError(
            f"Classification needs integer targets [n]; these are {str(targets.dtype).removeprefix('torch.')} "
            f"[{' '.join(map(str, targets.shape))}]. Use task='regression', or class numbers."
        )
    if int(targets.min()) < 0:
        raise TargetError(f"Class numbers start at 0; the smallest target is {int(targets.min())}.")


def _ballots(targets: Tensor, task: Task) -> Tensor:
    """What each sample votes with: one-hot labels [n classes], or its value [n d]."""
    if task == "classification":
        check_classes(targets)
        _, classes = torch.unique(targets.long(), return_inverse=True)
        return torch.nn.functional.one_hot(classes).double()
    if task != "regression":
        raise UnknownNameError(f"task {task!r} is unknown: use 'classification' or 'regression'.")
    return targets.double().reshape(len(targets), -1)


def votes_of(pairs: Pairs, ballots: Tensor, power: float, *, progress: bool) -> tuple[Tensor, Tensor]:
    """sum_j w_ij ballot_j [n b] and sum_j w_ij [n], over all j but i, with w = similarity^power."""
    votes = torch.zeros(len(ballots), ballots.shape[1], dtype=torch.float64)
    total = torch.zeros(len(ballots), dtype=torch.float64)
    with progress_bar("label suspects", len(ballots) ** 2, is_shown=progress) as advance:
        for r, c, block in pairs(None):
            similarities = block.cpu().double()
            is_self = torch.arange(c.start, c.stop) == torch.arange(r.start, r.stop)[:, None]
            weights = similarities.nan_to_num(nan=0.0).clamp(0, 1).masked_fill(is_self, 0.0).pow(power)
            votes[r] += weights @ ballots[c]
            total[r] += weights.sum(dim=1)
            advance(similarities.numel())
    return votes, total


def _judge(targets: Tensor, votes: Tensor, total: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Score of every sample, and what its neighborhood suggests."""
    shares = votes / total[:, None]
    if task == "classification":
        known, classes = torch.unique(targets.long(), return_inverse=True)
        own = shares.gather(1, classes[:, None])[:, 0]
        return 1 - own, known[votes.argmax(dim=1)].to(targets.dtype)
    distance = (targets.double().reshape(len(targets), -1) - shares).norm(dim=1)
    spread = 1.4826 * distance[~distance.isnan()].median() if bool((~distance.isnan()).any()) else torch.tensor(1.0)
    scale = torch.where(spread > 0, spread, 1.0)
    suggested = shares.reshape(targets.shape)
    return distance / scale, suggested.to(targets.dtype) if targets.is_floating_point() else suggested


def _supporters(
    pairs: Pairs, targets: Tensor, suspects: Tensor, suggested: Tensor, task: Task, k: int
) -> tuple[Tensor, Tensor]:
    """The most similar samples whose label is the suggested one (regression: the most similar samples). [s k] each."""
    k = min(k, len(targets))
    if not len(suspects) or k == 0:
        return torch.full((len(suspects), k), -1), torch.full((len(suspects), k), torch.nan, dtype=torch.float64)
    best = torch.full((len(suspects), k), -torch.inf, dtype=torch.float64)
    places = torch.full((len(suspects), k), -1)
    for r, c, block in pairs(suspects):
        found = torch.arange(c.start, c.stop)
        values = block.cpu().double().masked_fill(found == suspects[r, None], torch.nan)
        if task == "classification":
            values = values.masked_fill(targets[c] != suggested[suspects[r], None], torch.nan)
        values = torch.cat([best[r], values.nan_to_num(nan=-torch.inf)], dim=1)
        all_places = torch.cat([places[r], found.expand(values.shape[0], -1)], dim=1)
        top = values.topk(k, dim=1)
        best[r], places[r] = top.values, all_places.gather(1, top.indices)
    missing = best == -torch.inf
    return places.masked_fill(missing, -1), best.masked_fill(missing, torch.nan).clamp(-1, 1)
