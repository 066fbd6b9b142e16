"""How single samples are shown: a picture or a few words, the label, and what the network predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kinsight.batches import Batch, Id, leaves
from kinsight.errors import InputError
from kinsight.kernel import GradientKernel
from kinsight.samples import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Portrait:
    """What is shown of one sample.

    Args:
        id: its id.
        image: a picture of it, where there is one.
        text: what is shown where there is none: a preview, or its first values.
        label: its target in words; empty where there is none.
        prediction: what the network says; empty where that cannot be told.
        truth: the label that is known to be right; empty where none was passed.
    """

    id: Id
    image: Image | None = None
    text: str = ""
    label: str = ""
    prediction: str = ""
    truth: str = ""


@dataclass(frozen=True, eq=False)
class Painter:
    """Makes portraits of the samples of one data set.

    Args:
        kernel: whose model predicts.
        samples: the data set.
        is_classification: whether targets and predictions are classes.
        class_names: name of class i at i, where there are names.
        truth: targets that are known to be right, [n].
    """

    kernel: GradientKernel
    samples: Samples
    is_classification: bool
    class_names: Sequence[str] | None = None
    truth: Tensor | None = None

    def portraits(self, positions: Sequence[int]) -> dict[int, Portrait]:
        """A portrait of each of these samples, by position."""
        found: dict[int, Portrait] = {}
        for start in range(0, len(positions), _BATCH_SIZE):
            places = list(positions[start : start + _BATCH_SIZE])
            batch = self.samples.take(places)
            predictions = self._predictions(batch)
            for row, place in enumerate(places):
                found[place] = self._portrait(place, batch, row, None if predictions is None else predictions[row])
        return found

    def agreement(self) -> float:
        """Share of the samples whose class the network predicts; nan where it predicts none."""
        n_right = n = 0
        for batch in self.samples.batches():
            predictions = self._predictions(batch) if self.is_classification else None
            if predictions is None or batch.targets is None:
                return float("nan")
            n_right += int((predictions.cpu() == batch.targets.cpu()).sum())
            n += len(batch)
        return n_right / n

    def _predictions(self, batch: Batch) -> Tensor | None:
        """The class predicted for each sample [n], or the values predicted [n d]; None where there are none."""
        try:
            outputs = GradientKernel(self.kernel.model, "logits", parameters=list(self.kernel.parameters)).outputs(
                batch
            )
        except InputError:  # the model returns something that is not [n c]
            return None
        if self.is_classification:
            return outputs.argmax(dim=1) if outputs.shape[1] > 1 else None
        return outputs if self.samples.targets is not None else None

    def _portrait(self, place: int, batch: Batch, row: int, prediction: Tensor | None) -> Portrait:
        preview: Any = self.samples.preview(place)
        is_text = isinstance(preview, str)
        return Portrait(
            id=batch.ids[row],
            image=None if is_text else preview,
            text=preview if is_text else first_values(batch, row) if preview is None else "",
            label=self.words(None if batch.targets is None else batch.targets[row]),
            prediction=self.words(prediction),
            truth=self.words(None if self.truth is None else self.truth[place]),
        )

    def words(self, target: Tensor | None) -> str:
        """A target or a prediction in words; empty for None."""
        return "" if target is None else label_text(target, self.class_names if self.is_classification else None)


def label_text(target: Tensor, class_names: Sequence[str] | None = None) -> str:
    """A target in words: the name of a class, its number, or values.

    Example:
        >>> import torch
        >>> label_text(torch.tensor(1), ["cat", "dog"]), label_text(torch.tensor([0.5, 2.0]))
        ('dog', '0.5, 2')
    """
    if target.numel() != 1:
        values = target.flatten().tolist()
        return ", ".join(f"{value:.4g}" for value in values[:4]) + (", …" if len(values) > 4 else "")
    value = target.item()
    if isinstance(value, float):
        return f"{value:.4g}"
    index = int(value)
    return class_names[index] if class_names and 0 <= index < len(class_names) else str(index)


def first_values(batch: Batch, row: int, n_values: int = 6) -> str:
    """The first values of a sample's inputs, for where there is nothing better to show.

    Example:
        >>> import torch
        >>> first_values(Batch(torch.arange(16.0).view(2, 8)), 1, n_values=3)
        '8, 9, 10, …'
    """
    for _, leaf in leaves(batch.inputs):
        if isinstance(leaf, Tensor) and leaf.dim() and leaf[row].numel():
            values = leaf[row].flatten()
            shown = ", ".join(f"{value:.3g}" for value in values[:n_values].tolist())
            return shown + (", …" if len(values) > n_values else "")
    return ""
