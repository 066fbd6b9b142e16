"""Labels and outputs, averaged around every sample with the kernel as weight; in time linear in the number of samples.

    s_i = sum_j k_ij    E_k[a]_i = sum_j k_ij a_j / s_i    V_k[y]_i = E_k[|y|^2]_i - |E_k[y]_i|^2

with k a similarity or the kernel itself. Labels are centered first: second moments of uncentered ones cancel away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kinsight.differentiation.unit_gradients import warn_undefined
from kinsight.errors import UnknownNameError
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.kernel_products import LEAST_SHARE, KernelProducts, Weighting, kernel_products
from kinsight.labels.votes import Task, known_targets, task_of
from kinsight.namesakes import self_positions
from kinsight.outputs import OutputFunction
from kinsight.plan import n_outputs_of
from kinsight.samples import Id, Samples, queries_of


@dataclass(frozen=True, eq=False)
class Averages:
    """Means around every sample, weighted by the kernel.

    Args:
        ids: of the samples, n of them.
        weights: s_i, the sum of a sample's weights, [n].
        shares: kappa_i, that sum over what it would be if all gradients were parallel, in [-1, 1], [n]. Where it is
            within a thousandth of 0, all that is divided by it is nan; where it is negative, averages are no means.
        labels: E_k[y], [n d]; of classes the share of each.
        variances: V_k[y], summed up over axes, [n]; can be negative where weights are of both signs.
        predictions: E_k[f], [n d]: of what the network says, in the axes of labels; None where it says something else.
        shifts: f_i - E_k[f]_i, [n d].
        residuals: E_k[f - y], [n d]: 0 at a stationary point of the squared error, for the kernel itself.
        own: f_i, [n d].
        classes: the label of each axis, where labels are classes.
        weighting: the kernel.
        n_data: number of samples averaged over.
        weights_error: standard error of `weights`, [n], where they are estimates from sketches; None: exact.
        labels_error: of `labels`, [n d]; None: exact.
    """

    ids: tuple[Id, ...]
    weights: Tensor
    shares: Tensor
    labels: Tensor
    variances: Tensor
    predictions: Tensor | None
    shifts: Tensor | None
    residuals: Tensor | None
    own: Tensor | None
    classes: tuple[int, ...] | None
    weighting: Weighting
    n_data: int
    weights_error: Tensor | None = None
    labels_error: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record a sample."""
        names = ("weight", "share", "label", "variance", "prediction", "shift", "residual")
        values = (
            self.weights, self.shares, self.labels, self.variances, self.predictions, self.shifts, self.residuals,
        )  # fmt: skip
        columns = {name: value.tolist() for name, value in zip(names, values, strict=True) if value is not None}
        for row, id_ in enumerate(self.ids):
            yield {"id": id_, **{name: column[row] for name, column in columns.items()}}

    def summary(self) -> str:
        """In words."""
        known = ~self.labels.isnan().any(dim=1)
        if not bool(known.any()):
            return "Around no sample is there a mean: all sums of weights are as good as 0."
        text = (
            "For half of the samples, the variance of labels around them is below "
            f"{float(self.variances[known].median()):.3g}"
        )
        if self.residuals is not None:
            typical = float(self.residuals[known].norm(dim=1).median())
            text += f", and what the network says is off labels by {typical:.3g}, on average around them"
        counted = (
            (int((~known).sum()), "weights cancel, and nothing is said"),
            (int((self.weights[known] < 0).sum()), "weights are negative in sum, and means are none"),
            (int((self.variances[known] < 0).sum()), "variances are negative, and say nothing"),
        )
        notes = [f"for {n:,} of {len(self):,} samples {what}" for n, what in counted if n]
        return "; ".join([text, *notes]) + "."


def averages(
    kernel: GradientKernel,
    data: Any,
    queries: Any = None,
    *,
    weighting: Weighting = "whitened",
    include_self: bool = True,
    task: Task | None = None,
    progress: bool = False,
) -> Averages:
    """Means of labels, and of what the network says, around every sample; their variance; what is left of residuals.

    For labels that are classes the network says probabilities, if the outputs are as many logits as there are classes;
    for values, its outputs, if they are as many and no combinations or transformations of what it says, as probes and
    one_vs_rest are.

    Args:
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes, with targets: classes [n], or values [n] or [n d].
        queries: the samples averaged around; the data itself where left out.
        weighting: 'whitened' or 'flat' similarity, or the 'kernel' itself, which denoising is about.
        include_self: whether a sample that is in the data counts itself.
        task: 'classification' or 'regression'; by the targets' type where left out.
        progress: whether to show a progress bar.

    Returns:
        `Averages`.

    Raises:
        TargetError: no targets, or of the wrong kind.
        UnknownNameError: there is no such task, or weighting.

    Example:
        >>> data = Samples(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), torch.tensor([1.0, 1.0, 4.0]))
        >>> averages(GradientKernel(torch.nn.Linear(2, 1)), data).labels  # of lonely samples most of all their own
        tensor([[1.3088],
                [1.2030],
                [3.1978]], dtype=torch.float64)

    Reference:
        Charpiat, Girard, Felardos, Tarabalka (2019), "Input Similarity from the Neural Network Perspective".
    """
    check_kernel(kernel)
    if weighting not in ("whitened", "flat", "kernel"):
        raise UnknownNameError(f"weighting {weighting!r} is unknown: use 'whitened', 'flat' or 'kernel'.")
    samples = Samples.wrap(data)
    asked = queries_of(samples, data, queries)
    labels = Labels.of(kernel, samples, task)
    return averages_among(
        kernel, samples, labels, None if asked is samples else asked, weighting=weighting, include_self=include_self,
        progress=progress,
    )  # fmt: skip


def averages_among(
    kernel: GradientKernel,
    samples: Samples,
    labels: Labels,
    queries: Samples | None,
    *,
    weighting: Weighting,
    include_self: bool,
    progress: bool,
) -> Averages:
    """The same, of samples whose labels are at hand; see `averages`."""
    asked = samples if queries is None else queries

    def columns(rows: slice | Tensor, outputs: Tensor) -> Tensor:
        return labels.columns(rows, outputs.double())

    found = kernel_products(kernel, samples, columns, labels.n_columns, queries, weighting=weighting, progress=progress)
    warn_undefined([asked.ids[row] for row in (found.lengths == 0).nonzero().flatten().tolist()])
    values = found.values
    if not include_self:
        places = self_positions(asked, samples)
        own = columns(places.clamp(min=0), found.outputs) * (found.lengths.square() * (places >= 0))[:, None]
        values = values - own
    return labels.averaged(values, found, asked.ids, weighting, len(samples))


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a data set, centered, and what the network says in their place.

    Args:
        values: [n d], float64; of classes one-hot.
        center: their mean, [d].
        classes: the label of each axis, where labels are classes.
        kind: 'values', 'logits', 'logit' (of class 1 of two), or None where the network says something else.
    """

    values: Tensor
    center: Tensor
    classes: tuple[int, ...] | None
    kind: Literal["values", "logits", "logit"] | None

    @staticmethod
    def of(kernel: GradientKernel, samples: Samples, task: Task | None) -> Labels:
        """Those of a data set.

        Raises:
            TargetError: there are none, or they are not of the kind that the task needs.
        """
        return Labels.among(known_targets(samples), n_outputs_of(kernel, samples), kernel.output, task)

    @staticmethod
    def among(targets: Tensor, c: int, output: OutputFunction | type[OutputFunction], task: Task | None) -> Labels:
        """Of targets [n] or [n d], for networks of c outputs of that kind.

        Raises:
            TargetError: they are not of the kind that the task needs.
            UnknownNameError: there is no such task.
        """
        if task_of(targets, task) == "regression":
            values = targets.double().reshape(len(targets), -1)
            is_said = output.is_values and c == values.shape[1]
            return Labels(values, values.mean(dim=0), None, "values" if is_said else None)
        most = int(targets.max())
        kind: Literal["logits", "logit"] | None = None
        if output.is_logits and c > max(most, 1):
            kind, classes = "logits", torch.arange(c)
        elif output.is_logits and c == 1 and most <= 1:
            kind, classes = "logit", torch.arange(2)
        else:
            classes = torch.unique(targets.long())
        values = (targets.long()[:, None] == classes).double()
        return Labels(values, values.mean(dim=0), tuple(classes.tolist()), kind)

    @property
    def d(self) -> int:
        """Axes of a label."""
        return self.values.shape[1]

    @property
    def n_columns(self) -> int:
        """Of what is averaged."""
        return 1 + self.d + (self.classes is None) + 2 * self.d * (self.kind is not None)

    def said(self, outputs: Tensor) -> Tensor | None:
        """What the network says, in the axes of labels, [n c] -> [n d]."""
        if self.kind == "logits":
            return outputs.softmax(dim=1)
        if self.kind == "logit":
            return torch.cat([1 - outputs.sigmoid(), outputs.sigmoid()], dim=1)
        return outputs if self.kind == "values" else None

    def columns(self, rows: slice | Tensor, outputs: Tensor) -> Tensor:
        """1, labels, their square where they are values, predictions and residuals of some samples. [n m]."""
        labels = self.values[rows].to(outputs.device)
        center = self.center.to(outputs.device)
        parts = [torch.ones_like(labels[:, :1]), labels - center]
        if self.classes is None:
            parts.append((labels - center).square().sum(dim=1, keepdim=True))
        said = self.said(outputs)
        if said is not None:
            parts += [said - center, said - labels]
        return torch.cat(parts, dim=1)

    def averaged(
        self,
        sums: Tensor,
        found: KernelProducts,
        ids: tuple[Id, ...],
        weighting: Weighting,
        n_data: int,
        errors: Tensor | None = None,
    ) -> Averages:
        """The averages, of the sums of all columns, and of their standard errors. [n m] each."""
        weights, d = sums[:, 0], self.d
        shares = weights / (found.lengths * found.total_length)
        divisor = weights.masked_fill(~(shares.abs() >= LEAST_SHARE), torch.nan)
        means = sums / divisor[:, None]
        labels, rest = means[:, 1 : 1 + d] + self.center, means[:, 1 + d :]
        if self.classes is None:
            variances, rest = rest[:, 0] - means[:, 1 : 1 + d].square().sum(dim=1), rest[:, 1:]
        else:
            variances = 1 - labels.square().sum(dim=1)
        own = self.said(found.outputs.double())
        predictions = None if own is None else rest[:, :d] + self.center
        return Averages(
            ids=ids, weights=weights, shares=shares, labels=labels, variances=variances,
            predictions=predictions, shifts=None if own is None or predictions is None else own - predictions,
            residuals=None if own is None else rest[:, d:], own=own, classes=self.classes, weighting=weighting,
            n_data=n_data, weights_error=None if errors is None else errors[:, 0],
            labels_error=None if errors is None else _of_means(means, divisor, errors)[:, 1 : 1 + d],
        )  # fmt: skip


def _of_means(means: Tensor, divisor: Tensor, errors: Tensor) -> Tensor:
    """Standard errors of quotients of sums, to first order; errors of the two are taken for independent. [n m]."""
    return (errors.square() + (means * errors[:, :1]).square()).sqrt() / divisor.abs()[:, None]
