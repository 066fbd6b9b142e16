"""A plain model with its inputs, and the plain way to its numbers: one sample at a time, ordinary autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinsight import reference
from kinsight.kernel import GradientKernel
from kinsight.samples import as_batch


def linear(c: int = 2) -> nn.Module:
    return nn.Linear(3, c)


X = torch.ones(4, 3)


def truth(kernel: GradientKernel, x: Tensor) -> dict[str, Tensor]:
    gradients = reference.per_sample_gradients(kernel.model, as_batch(x), kernel.output, kernel.parameters)
    return {
        "kernel": reference.kernel(gradients, gradients),
        "similarity": reference.similarity(gradients, gradients),
    }
