"""Slopes of inner products of gradients over what they are made of, against autograd through multiplying out."""

import pytest
import torch
import torch.nn.functional as F

from kinsight.gradients import Factored
from kinsight.gradients.convolved import Convolved, Geometry
from kinsight.gradients.factored import Product

GEOMETRIES = [  # size of images, window, geometry
    ((9,), (3,), Geometry((2,), (1,), (2,), 1)),
    ((7, 6), (3, 2), Geometry((1, 2), (2, 0), (1, 1), 1)),
    ((8, 8), (3, 3), Geometry((3, 1), (1, 1), (1, 2), 2)),  # the last columns are in no window
    ((5, 4, 6), (2, 2, 3), Geometry((1, 1, 2), (1, 0, 1), (1, 2, 1), 2)),
]


@pytest.mark.parametrize(("size", "window", "geometry"), GEOMETRIES)
@pytest.mark.parametrize("k", [1, 2])
def test_slopes_of_convolved_gradients(
    size: tuple[int, ...], window: tuple[int, ...], geometry: Geometry, k: int
) -> None:
    n, c, o, i, g = 3, 2, 3, 2, geometry.groups
    images = torch.randn(n, k, g * i, *size, dtype=torch.float64)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    weight = torch.randn(g * o, i, *window, dtype=torch.float64)
    positions = convolve(
        images.flatten(0, 1), weight, None, geometry.stride, geometry.padding, geometry.dilation, g
    ).shape[2:]
    gradients = torch.randn(n, c, k, g, o, *positions, dtype=torch.float64)
    _check_slopes(Convolved(images, gradients, tuple(weight.shape), geometry))


@pytest.mark.parametrize("gradient_first", [True, False])
@pytest.mark.parametrize("g", [1, 2])
def test_slopes_of_factored_gradients(gradient_first: bool, g: int) -> None:
    n, c, t, i, o = 3, 2, 4, 5, 3
    inputs, gradients = torch.randn(n, t, g, i).double(), torch.randn(n, c, t, g, o).double()
    shape = (g * o, i) if gradient_first else (g * i, o)
    _check_slopes(Factored(inputs, gradients, shape, gradient_first))


def _check_slopes(layer: Product) -> None:
    """Against autograd through gradients that are multiplied out."""
    others = torch.randn(layer.n, layer.c, *layer.shape, dtype=torch.float64)
    of_inputs, of_gradients = layer.cotangents(others, of_inputs=True)
    assert of_inputs is not None
    leaves = [tensor.clone().requires_grad_() for tensor in layer.tensors]
    by_id = {id(old): new for old, new in zip(layer.tensors, leaves, strict=True)}
    followed = layer.with_tensors(lambda tensor: by_id[id(tensor)])
    wanted = torch.autograd.grad((followed.build() * others).sum(), leaves)
    for found, truth in zip((of_gradients, of_inputs), wanted, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    assert layer.cotangents(others, of_inputs=False)[0] is None
