"""How alike the pairs of a batch are to the network, and which way its parameters are to move to make them more so.

With u(x) unit gradients, k(x, y) = u(x) . u(y), and w symmetric, the gradient of sum_nm w_nm k(x_n, x_m) is that of
2 sum_n u(x_n) . T_n with T_n = sum_m w_nm u(x_m) held fixed: one side of a Gram block needs a graph, and any number of
samples is done part by part. Where groups are alike, T_n is the sum over a group: pairs are never looked at, and memory
does not grow with their number.
"""

from __future__ import annotations

import torch
from torch import nn

from kinsight.batches import Batch
from kinsight.kernel import GradientKernel
from kinsight.normalization import Normalization
from kinsight.training.by_groups import from_groups
from kinsight.training.by_pairs import from_pairs
from kinsight.training.pairs import Pairing
from kinsight.training.parts import Cost, Enforced, Parts


def enforce(
    kernel: GradientKernel,
    batch: Batch,
    pairing: Pairing,
    cost: Cost,
    normalization: Normalization,
    trained: list[nn.Parameter],
    *,
    by_groups: bool,
) -> Enforced:
    """What the pairs of a batch cost, and its gradient.

    Args:
        kernel: of the network, as it will be used.
        batch: n samples, on its device.
        pairing: their pairs.
        cost: of these.
        normalization: which similarity.
        trained: the parameters that are moved; none: only what is seen.
        by_groups: from sums over groups, without looking at pairs.
    """
    found = Enforced([None] * len(trained))
    if not _has_pairs(pairing, cost):
        return found
    if by_groups:
        from_groups(found, kernel, batch, pairing, normalization, trained)
        return found
    parts = Parts(kernel, batch, normalization, trained)
    is_defined = torch.cat([parts.fixed(number).is_defined for number in range(len(parts.places))])
    found.undefined = (~is_defined).nonzero().flatten().tolist()
    pairing = pairing.without(~is_defined)
    found.n_alike = pairing.n_alike
    if _has_pairs(pairing, cost):
        from_pairs(found, parts, pairing, cost, trained)
    return found


def _has_pairs(pairing: Pairing, cost: Cost) -> bool:
    return pairing.n >= 2 and (pairing.n_alike > 0 or cost.dissimilar_weight > 0)
