"""Embedding tables: the gradient at each position goes to the looked-up row."""

from __future__ import annotations

from kinsight.captures.capture import LayerCapture
from kinsight.gradients import Gradients, LookedUp


def embedding(capture: LayerCapture) -> Gradients | None:
    """`nn.Embedding`. The padding row gets no gradient.

    With `scale_grad_by_freq` autograd itself divides by how often a token occurs in the whole batch, which is
    no sample's gradient: left to the generic path, one sample at a time.
    """
    axis = capture.layout.axis
    if capture.saved("scale_grad_by_freq") or axis == len(capture.output_shape) - 1:
        return None
    indices = capture.saved("indices")
    padding = capture.saved("padding_idx")
    if padding not in (-1, 2**64 - 1):
        indices = indices.where(indices != padding, -1)
    gradients = capture.output_gradients
    return LookedUp(
        tokens=capture.layout.split(indices).reshape(capture.n, -1),
        output_gradients=gradients.reshape(capture.n, gradients.shape[1], -1, gradients.shape[-1]),
        shape=capture.weight_shape,
    )
