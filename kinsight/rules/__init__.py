"""Layer rules: how each family of layers turns what it left behind into per-sample gradients over its weight.

A rule is a pure, differentiable function of a `LayerCapture`. It returns the gradients over the weight as the layer
took it, in one of the forms of `kinsight.gradients`, or None where this variant is not its own; then the parameter
takes the generic path, which is exact too. The key is the name of the autograd node.
"""

from __future__ import annotations

from kinsight.captures.capture import LayerCapture, Rule
from kinsight.gradients import Gradients
from kinsight.rules import conv, elementwise, embedding, linear, norm

RULES: dict[str, Rule] = {
    "Addmm": linear.addmm,
    "Mm": linear.mm,
    "Bmm": linear.bmm,
    "Mv": linear.mv,
    "Linear": linear.linear,
    "Convolution": conv.convolution,
    "Embedding": embedding.embedding,
    "NativeBatchNorm": norm.batch_norm,
    "NativeGroupNorm": norm.group_norm,
    "NativeLayerNorm": norm.layer_norm,
    "FusedRmsNorm": norm.rms_norm,
    "PreluKernel": elementwise.prelu,
    "Add": elementwise.add,
    "Sub": elementwise.sub,
    "Mul": elementwise.mul,
    "Div": elementwise.div,
    "Expand": elementwise.expand,
    "Repeat": elementwise.repeat,
}


def register_rule(node_name: str, rule: Rule) -> None:
    """Use `rule` for the autograd node `node_name` (without 'Backward0'): 'Addmm', 'Convolution', ...

    The proof of coverage checks what the rule returns, as it does for the rules that are built in.
    """
    RULES[node_name] = rule


def apply_rule(capture: LayerCapture) -> Gradients | None:
    """The gradients over a use's weight, or None where no rule applies."""
    rule = RULES.get(capture.use.name)
    if rule is None or capture.output_gradients.is_complex():  # a real weight that meets complex data
        return None
    gradients: Gradients | None = rule(capture)
    return gradients
