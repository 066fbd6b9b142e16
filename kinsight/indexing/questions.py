"""What an index is asked without a pass through the network: counts, means of labels, suspected labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinsight.averages import Averages, Labels
from kinsight.density import Counts, Thresholds, thresholds_of
from kinsight.differentiation.unit_gradients import warn_undefined
from kinsight.errors import InputError
from kinsight.fit import Around, FitMap, Splits, check_comparable, groups_of, mapped
from kinsight.indexing.audits import HELD, cosines, hard_counts, power_counts, soft_counts
from kinsight.indexing.building import check_size, taken
from kinsight.indexing.contents import Contents
from kinsight.indexing.denoising_sums import DenoisingSums, denoising_sums
from kinsight.indexing.queries import SketchedQueries
from kinsight.indexing.sketched import averages_of, check_kernel_known, support_of
from kinsight.kernel import GradientKernel
from kinsight.kernel_products import Weighting
from kinsight.labels.conflicts import LEAST, LabelConflicts, conflicts_among
from kinsight.labels.leave_one_out import by_features
from kinsight.labels.suspects import LabelSuspects, MeanVerdict, Method, check_questions, suspects_among
from kinsight.labels.votes import Ballots, Task, ask_about_classes, check_power, check_targets, shares_of
from kinsight.outputs import OutputFunction, kind_of_output
from kinsight.progress import progress_bar
from kinsight.samples import Samples
from kinsight.uncertainty import Support


class Questions(Contents):
    """An index, opened to be asked about its samples. All answers come from sketches, with their errors.

    Args:
        folder: where it is.
        partial: whether a half-built index is read as far as it is built.
    """

    def soft_count(
        self,
        queries: Any = None,
        *,
        kernel: GradientKernel | None = None,
        data: Any = None,
        include_self: bool = True,
    ) -> Counts:
        """The soft count of every sample, from sketches: two passes over them, none through the network. [n].

        Unbiased, with its standard error; `kinsight.soft_count(kernel, data)` is exact, and linear in time, too.

        Args:
            queries: whatever `Samples` takes: what is counted around, in place of the samples of the index; needs
                `kernel`, to sketch them.
            kernel: the kernel that the index was built with.
            data: what it was built from: a query that is a part of it (`data.take`, `data.first`, or by id where both
                were given ids) then counts itself. All others are strangers.
            include_self: whether a sample counts itself.

        Raises:
            WrongModelError: the kernel is another.
            ChangedDataError: the data is not what the index was built from.
        """
        asked = self._asked(queries, kernel, data)
        values, error = soft_counts(self.store, self.excess, asked, include_self=include_self)
        ids = self.ids if asked is None else asked.ids
        warn_undefined([ids[row] for row in values.isnan().nonzero().flatten().tolist()])
        return Counts(ids, values, len(self), self.normalization, include_self, "sketches", error)

    def hard_count(
        self,
        queries: Any = None,
        *,
        thresholds: Thresholds = 0.5,
        kernel: GradientKernel | None = None,
        data: Any = None,
        include_self: bool = True,
        progress: bool = False,
    ) -> Counts:
        """The hard count of every sample, or query, from the cosines of sketches: [n], or [n k] for k thresholds.

        Its error is what follows from cosines whose errors are normal, as large as the index's, and partly common.
        Copies have cosines a few roundings below 1, and are not above a threshold that is as close to 1. See
        `soft_count` for what `queries`, `kernel` and `data` are.

        Raises:
            InputError: there are no thresholds, or one is nan.
        """
        taus, is_single = thresholds_of(thresholds)
        asked = self._asked(queries, kernel, data)
        count = functools.partial(hard_counts, taus=taus)
        counts = self._counts(count, asked, include_self=include_self, progress=progress)
        return counts.column(0) if is_single else counts

    def power_count(
        self,
        queries: Any = None,
        *,
        power: float = 8.0,
        kernel: GradientKernel | None = None,
        data: Any = None,
        include_self: bool = True,
        progress: bool = False,
    ) -> Counts:
        """The power count of every sample, or query, from the cosines of sketches. [n].

        Its error is no standard error, but a bound, `is_bound`: half of what it changes by when all cosines are off by
        the index's error, one way or the other. See `soft_count` for what `queries`, `kernel` and `data` are.

        Raises:
            InputError: the power is not positive.
        """
        asked = self._asked(queries, kernel, data)
        count = functools.partial(power_counts, power=power)
        counts = self._counts(count, asked, include_self=include_self, progress=progress)
        return replace(counts.column(0), is_bound=True)

    def _counts(
        self,
        count: Callable[..., tuple[Tensor, Tensor]],
        asked: SketchedQueries | None,
        *,
        include_self: bool,
        progress: bool,
    ) -> Counts:
        ids = self.ids if asked is None else asked.ids
        with progress_bar("counting", len(self) * len(ids), is_shown=progress) as advance:
            values, error = count(
                self.store, error=self.error, queries=asked, include_self=include_self, advance=advance
            )
        warn_undefined([ids[row] for row in values[:, 0].isnan().nonzero().flatten().tolist()])
        return Counts(ids, values, len(self), self.normalization, include_self, "sketches", error)

    def _asked(self, queries: Any, kernel: GradientKernel | None, data: Any) -> SketchedQueries | None:
        if queries is None:
            if kernel is not None or data is not None:
                raise InputError(
                    "kernel= and data= are for queries=, and there are none: the index answers for its own samples "
                    "from what is in it. Pass queries, or leave both out."
                )
            return None
        asked = SketchedQueries.of_inputs(self.store, queries, kernel, data)
        if data is not None:
            check_size(self.store, Samples.wrap(data))
        own = asked.rows[asked.rows >= 0].tolist()
        for start in range(0, len(own), HELD):  # positions in other data would be rows of other samples
            taken(self.store, Samples.wrap(data), own[start : start + HELD])
        return asked

    def denoising_sums(self) -> DenoisingSums:
        """Sums of the kernel and of its square around every sample: what denoising factors are made of.

        From sketches, in time linear in their number, with standard errors.

        Raises:
            InputError: the sketches are of whitened gradients of several outputs, which say nothing of the kernel.
        """
        check_kernel_known(self, "Denoising sums")
        return denoising_sums(self.store, self.ids, self.norms, *self.error_of_inner_products, self.excess)

    def label_suspects(
        self,
        *,
        others: Sequence[Contents] = (),
        method: Method = "leave_one_out",
        n_suspects: int | None = None,
        threshold: float | None = None,
        power: float = 8.0,
        n_supporters: int = 5,
        task: Task | None = None,
        progress: bool = False,
    ) -> LabelSuspects:
        """Targets that the neighborhood contradicts, by sketches; see `kinsight.label_suspects`.

        'leave_one_out' takes time linear in the number of samples. The index's normalization counts: 'flat' is known to
        work on networks that have memorized wrong labels. `others` are indexes of the same data and other networks,
        such as earlier checkpoints: verdicts are averaged, and the error is that of the worst.

        Raises:
            TargetError: the index has no targets, or of the wrong kind.
            InputError: another index is of other data, or of another similarity; a number is out of range.
        """
        ballots, pairs = self._ballots(task), functools.partial(cosines, self.store)
        check_questions(method, power, threshold, ballots.task, n_suspects=n_suspects, n_supporters=n_supporters)
        for other in others:
            self._check_same_data(other)
        total = MeanVerdict(len(self), ballots.n_columns)
        for index in (self, *others):
            if method == "votes":
                found = shares_of(functools.partial(cosines, index.store), ballots, power, progress=progress)
            else:
                found = by_features(index.sketches, ballots.part(slice(0, len(self)))).values
            total.add(found)
        return suspects_among(
            pairs, self.ids, ballots, total.values, method=method, n_suspects=n_suspects, threshold=threshold,
            n_supporters=n_supporters, error=max(index.error for index in (self, *others)),
        )  # fmt: skip

    def label_conflicts(
        self,
        *,
        least: float = LEAST,
        n_conflicts: int = 1000,
        least_difference: float = 1.0,
        task: Task | None = None,
        progress: bool = False,
    ) -> LabelConflicts:
        """Near-duplicates with different labels, by the cosines of sketches; see `kinsight.label_conflicts`."""
        return conflicts_among(
            functools.partial(cosines, self.store), self.ids, self._ballots(task), least=least,
            n_conflicts=n_conflicts, least_difference=least_difference, precision=torch.float32, error=self.error,
            progress=progress,
        )  # fmt: skip

    def averages(
        self,
        queries: Any = None,
        *,
        kernel: GradientKernel | None = None,
        data: Any = None,
        weighting: Weighting | None = None,
        include_self: bool = True,
        task: Task | None = None,
    ) -> Averages:
        """Means of labels, and of what the network says, around every sample, or query, weighted by similarity.

        From sketches, in linear time; `weights` and `labels` have standard errors. See `kinsight.averages`.

        Args:
            queries, kernel, data: what is averaged around, in place of the samples of the index; see `soft_count`.
            weighting: the index's similarity where left out; or the 'kernel' itself, which denoising is about: shifts
                and residuals are those of self-denoising then, for one output.
            include_self: whether a sample that is in the data counts itself.
            task: 'classification' or 'regression'; by the targets' type where left out.

        Raises:
            TargetError: the index has no targets, or of the wrong kind.
            InputError: the sketches are of another similarity, or say nothing of the kernel.
        """
        if weighting == "kernel":
            check_kernel_known(self, "Averages weighted by the kernel")
        elif weighting not in (None, self.normalization):
            raise InputError(
                f"weighting is {weighting!r}, and the index is of {self.normalization!r} similarity: leave it out, or "
                "pass 'kernel'."
            )
        asked = self._asked(queries, kernel, data)
        chosen = self.normalization if weighting is None else weighting
        return averages_of(self, self._labels(task), asked, weighting=chosen, include_self=include_self)

    def uncertainty(
        self, queries: Any = None, *, kernel: GradientKernel | None = None, data: Any = None, progress: bool = False
    ) -> Support:
        """How uncertain the network is of every sample, or query, from the cosines of sketches.

        See `kinsight.uncertainty`, and `soft_count` for what `queries`, `kernel` and `data` are.

        Raises:
            InputError: the index is of several outputs.
        """
        return support_of(self, self._asked(queries, kernel, data), is_signed=False, progress=progress)

    def signed_support(self, queries: Any = None, *, kernel: GradientKernel | None = None, data: Any = None) -> Support:
        """sum_y k(x, y) / k(x, x) for every sample, or query, from sketches, in linear time.

        See `kinsight.signed_support`, and `soft_count` for what `queries`, `kernel` and `data` are.

        Raises:
            InputError: the index is of several outputs.
        """
        return support_of(self, self._asked(queries, kernel, data), is_signed=True, progress=False)

    def fit_map(
        self,
        *,
        power: float = 8.0,
        groups: Sequence[Any] | Tensor | np.ndarray | None = None,
        least_count: float | None = None,
        most_variance: float = 0.5,
        most_disagreement: float = 0.5,
        most_residual: float = 0.5,
        task: Task | None = None,
        progress: bool = False,
    ) -> FitMap:
        """Which samples are learned with others, memorized alone, underfit, or ambiguous; see `kinsight.fit_map`.

        From the cosines of sketches of all pairs; for a power of 1 in linear time.

        Raises:
            TargetError: no targets, or the network says something that cannot be compared with them.
        """
        check_power(power)
        splits = Splits(least_count, most_variance, most_disagreement, most_residual)
        labels = self._labels(task)
        check_comparable(labels)
        if power == 1:
            around = Around.by_averages(averages_of(self, labels, weighting=self.normalization, include_self=False))
        else:
            said = labels.said(self.outputs.double())
            assert said is not None
            pairs = functools.partial(cosines, self.store)
            around = Around.by_votes(pairs, labels, said, power, progress=progress)
            warn_undefined([self.ids[row] for row in (self.norms == 0).nonzero().flatten().tolist()])
        names = self.about["class_names"]
        named = groups_of(groups, self.targets, labels, names)
        return replace(mapped(self.ids, labels, around, splits, named), error=self.error)

    def _check_same_data(self, other: Contents) -> None:
        """Raise where verdicts of another index would be of other samples, or of another similarity."""
        is_other = {
            "other samples, by id,": other.ids != self.ids,
            "another similarity": other.normalization != self.normalization,
            "other targets": other.targets.tolist() != self.targets.tolist(),
            "other inputs": other.contents != self.contents,
        }
        reason = next((reason for reason, is_so in is_other.items() if is_so), None)
        if reason is not None:
            raise InputError(
                f"Index {str(other.folder)!r} has {reason} than {str(self.folder)!r}: verdicts of the two are not of "
                "the same. Pass indexes of the same data that differ in the network alone."
            )

    def _known_targets(self) -> Tensor:
        targets = self.targets
        check_targets(targets, self.ids)
        return targets

    def _kind(self) -> type[OutputFunction]:
        return kind_of_output(self.about["kernel"]["output"].partition("(")[0])

    def _ballots(self, task: Task | None) -> Ballots:
        targets = self._known_targets()
        ask_about_classes(targets, task, self._kind(), lambda: self.outputs.shape[1])
        return Ballots.of(targets, task)

    def _labels(self, task: Task | None) -> Labels:
        return Labels.among(self._known_targets(), self.outputs.shape[1], self._kind(), task)
