"""Linear maps: a matrix applied at every position.

The gradient over W in z = a W, applied at positions t, is sum_t a_t g_t^T (g: gradient at z): it stays factored.
"""

from __future__ import annotations

from torch import Tensor

from kinsight.captures.capture import LayerCapture
from kinsight.gradients import Factored, Gradients
from kinsight.rules.elementwise import scaled, sum_to_weight


def addmm(capture: LayerCapture) -> Gradients | None:
    """beta b + alpha x W: what `nn.Linear` and `torch.addmm` become."""
    if capture.use.operand == 0:
        return sum_to_weight(capture, scaled(capture.output_gradients, capture.saved("beta")))
    inputs = capture.saved("mat1" if capture.use.operand == 2 else "mat2")
    return _matrix(
        capture, inputs, scaled(capture.output_gradients, capture.saved("alpha")), weight=capture.use.operand - 1
    )


def mm(capture: LayerCapture) -> Gradients | None:
    """x W, or W x."""
    inputs = capture.saved("self" if capture.use.operand == 1 else "mat2")
    return _matrix(capture, inputs, capture.output_gradients, weight=capture.use.operand)


def _matrix(capture: LayerCapture, inputs: Tensor, gradients: Tensor, *, weight: int) -> Gradients | None:
    """Product of two matrices, of which the weight is the first (0) or the second (1)."""
    if capture.layout.axis != 1 - weight:
        return None
    inputs = capture.layout.split(inputs)
    if weight == 0:  # [i positions], [o positions]
        inputs, gradients = inputs.transpose(-1, -2), gradients.transpose(-1, -2)
    return Factored(
        inputs=inputs.unsqueeze(2),
        output_gradients=gradients.unsqueeze(3),
        shape=capture.weight_shape,
        gradient_first=weight == 0,
    )


def bmm(capture: LayerCapture) -> Gradients | None:
    """A stack of matrices, each applied to its own rows: per-head or per-expert weights, and `einsum`."""
    weight = capture.use.operand
    if capture.layout.axis != 2 - weight:
        return None
    inputs = capture.saved_samples("self" if weight == 1 else "mat2")
    gradients = capture.output_gradients
    if weight == 1:  # [n g t i], [n c g t o]
        inputs, gradients = inputs.transpose(1, 2), gradients.transpose(2, 3)
    else:  # [n g i t], [n c g o t]
        inputs, gradients = inputs.permute(0, 3, 1, 2), gradients.permute(0, 1, 4, 2, 3)
    return Factored(inputs, gradients, capture.weight_shape, gradient_first=weight == 0)


def mv(capture: LayerCapture) -> Gradients | None:
    """x w, a matrix of inputs times a weight vector."""
    if capture.use.operand != 1 or capture.layout.axis != 0:
        return None
    inputs = capture.layout.split(capture.saved("self"))
    return Factored(
        inputs[:, :, None], capture.output_gradients[..., None, None], capture.weight_shape, gradient_first=False
    )


def linear(capture: LayerCapture) -> Gradients | None:
    """`nn.Linear` where a backend keeps it whole."""
    if capture.use.operand == 2:
        return sum_to_weight(capture, capture.output_gradients)
    if capture.use.operand != 1 or capture.layout.axis == len(capture.output_shape) - 1:
        return None
    inputs, gradients = capture.saved_samples("input"), capture.output_gradients
    return Factored(
        inputs.reshape(capture.n, -1, 1, inputs.shape[-1]),
        gradients.reshape(capture.n, gradients.shape[1], -1, 1, gradients.shape[-1]),
        capture.weight_shape,
        gradient_first=True,
    )
