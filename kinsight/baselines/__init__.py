"""What else one would try: the same questions, answered without the network's gradients or without the network.

For suspected labels, `label_scores(data) -> [n]`, higher for labels more in doubt; for neighbors,
`scores(queries, data) -> [q n]`, higher for more similar. They are here to compare with, and keep to what is usual.
"""

from kinsight.baselines.cosines import InputCosine, PenultimateCosine
from kinsight.baselines.losses import LossValue, SelfInfluence
from kinsight.baselines.out_of_fold import OutOfFold

__all__ = ["InputCosine", "LossValue", "OutOfFold", "PenultimateCosine", "SelfInfluence"]
