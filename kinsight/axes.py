"""Axis letters, and the array types built from them.

n, m   samples            c, d   outputs           p   parameters
t, s   positions a layer is applied at             g   groups of a convolution
i, o   features in, out   k      directions, neighbors, probes
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Outputs = Float[Tensor, "n c"]
"""The output function's values."""

GramBlock = Float[Tensor, "n m"]
"""A rectangle of kernel values or similarities."""

OutputBlocks = Float[Tensor, "n m c d"]
"""One [c d] block a pair of samples."""

SelfBlocks = Float[Tensor, "n c c"]
"""K(x, x) of every sample of a batch."""

PerSample = Float[Tensor, " n"]
"""One number a sample."""

Mixing = Float[Tensor, "n a c"]
"""A linear map of the output axis, one a sample."""

Tokens = Int[Tensor, "n t"]
"""Rows of an embedding table, looked up at every position."""

Mask = Bool[Tensor, " n"]
"""A yes or no for every sample."""
