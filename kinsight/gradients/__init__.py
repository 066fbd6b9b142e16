"""Per-sample gradients of one parameter, in the form that is cheapest, and the six operations on them.

Whatever a layer is, the gradients of c outputs over one parameter, for n samples, come in one of five forms:

    Built      the gradients themselves, [n c *shape]
    Factored   sum over positions t of (layer input) x (output gradient): nothing is multiplied out
    Convolved  the same for a convolution, its input kept as the image it was: patches overlap, pixels do not
    LookedUp   the same with a one-hot layer input, kept as the tokens: an embedding table
    Summed     several of the above: a parameter that is used more than once

Every form offers the same operations, all that the rest of kinsight is made of: `gram_block` of two, `self_blocks`
(K_nn, whose trace is the squared norm), `weighted_sum`, `dot`, `sketch` and `build`; and `mix`, a linear map of its
output axis. All of them are differentiable.

Tensors carry the axis letters of `kinsight.axes`: n m samples, c d outputs, t s positions, g groups,
i o features, k directions.
"""

from kinsight.gradients.base import Gradients
from kinsight.gradients.built import Built
from kinsight.gradients.convolved import Convolved, Geometry, unfold
from kinsight.gradients.factored import Factored, Product
from kinsight.gradients.looked_up import LookedUp
from kinsight.gradients.products import Products, add_gram_block, gram_block
from kinsight.gradients.summed import Summed, add_uses

__all__ = [
    "Built", "Convolved", "Factored", "Geometry", "Gradients", "LookedUp", "Product", "Products", "Summed",
    "add_gram_block", "add_uses", "gram_block", "unfold",
]  # fmt: skip
