"""Sketches: without bias, within the error they promise, and the same wherever they are made."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from kinsight import GradientKernel, sketch
from kinsight.errors import InputError, NonFiniteError
from kinsight.gradients import Factored
from kinsight.gradients.projection import Projection
from kinsight.sketch import dim_for, error_of, measured_dim
from tests.zoo import ZOO, Case

MODELS = [pytest.param(case, id=case.name) for case in ZOO]

EXACT = 1e-11
"""Float64, sums of a few thousand terms."""

SHAPES = [(), (3,), (7, 5), (300, 3), (2, 3, 4), (5, 40, 3, 3), (1, 200), (4, 2, 150)]


BUCKETS = [4, 5, 6, 7, 6, 7, 8, 9, 12, 13, 14, 15, 15, 0, 1, 2, 10, 11, 12, 13, 3, 4, 5, 6]
SIGNS = [-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - truth).abs().max() / truth.abs().max())


def entries(projection: Projection, shape: tuple[int, ...], n_outputs: int = 1) -> torch.Tensor:
    """The projection as a matrix, entry by entry: built from its hashes alone. [c p dim]."""
    whole = projection.rows(shape, n_outputs).cross(projection.columns(shape))
    rows = torch.zeros(len(whole), projection.dim, dtype=torch.float64)
    rows[torch.arange(len(whole)), whole.buckets] = whole.signs.double()
    return rows.view(n_outputs, -1, projection.dim)


@pytest.mark.parametrize("dim", [1, 16, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_built_gradients_are_projected_entry_by_entry(shape: tuple[int, ...], dim: int) -> None:
    values = torch.randn(3, 2, *shape, dtype=torch.float64)
    projection = Projection(1, "w", dim)
    truth = torch.einsum(
        "ncp,cpd->nd", values.flatten(2) if shape else values[:, :, None], entries(projection, shape, 2)
    )
    assert error(projection.of_built(values), truth) < EXACT


@pytest.mark.parametrize("run", [1, 10**9], ids=["rolled", "scattered"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rolled_is_scattered(shape: tuple[int, ...], run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(3, 2, *shape, dtype=torch.float64)
    projection = Projection(1, "w", 64)
    monkeypatch.setattr("kinsight.gradients.costs.ROLLED", run)
    truth = torch.einsum(
        "ncp,cpd->nd", values.flatten(2) if shape else values[:, :, None], entries(projection, shape, 2)
    )
    assert error(projection.of_built(values), truth) < EXACT


@pytest.mark.parametrize("is_built", [True, False])
@pytest.mark.parametrize("gradient_first", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (6, 5, 1)], ids=str)
def test_factors_are_projected_as_what_they_make(
    shape: tuple[int, ...], groups: int, gradient_first: bool, is_built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinsight.gradients.factored.is_sketch_built", lambda **sizes: is_built)
    size = 6 // groups
    i, o = (5, size) if gradient_first else (size, 5)
    inputs, gradients = torch.randn(4, 7, groups, i).double(), torch.randn(4, 2, 7, groups, o).double()
    layer = Factored(inputs, gradients, shape, gradient_first)
    for dim in (4, 64):
        projection = Projection(0, "w", dim)
        truth = projection.of_built(layer.build())
        found, squares = layer.sketch_and_squares(projection)
        assert error(found, truth) < EXACT
        assert error(squares, layer.build().flatten(1).square().sum(dim=1)) < EXACT
        assert error(layer.sketch(projection), truth) < EXACT


def test_factors_that_meet_within_an_axis_are_built() -> None:
    layer = Factored(torch.randn(2, 3, 1, 6).double(), torch.randn(2, 1, 3, 1, 4).double(), (8, 3), True)
    projection = Projection(0, "w", 32)
    assert error(layer.sketch(projection), projection.of_built(layer.build())) < EXACT


@pytest.mark.parametrize("shape", [(64, 64), (64, 16, 4), (10, 3)], ids=str)
def test_no_two_entries_of_a_row_or_a_column_share_a_bucket(shape: tuple[int, ...]) -> None:
    projection, n_outputs = Projection(3, "w", 64), max(1, 64 // shape[0])
    buckets = projection.rows(shape, n_outputs).cross(projection.columns(shape)).buckets.view(n_outputs * shape[0], -1)
    for line in (*buckets, *buckets.T):
        assert len(line.unique()) == len(line)


def test_entries_share_buckets_no_more_often_than_at_random() -> None:
    dim, shape = 64, (200, 30, 9)  # more rows, and more columns, than buckets
    projections = [Projection(seed, "w", dim) for seed in range(20)]
    buckets = torch.stack([each.rows(shape, 2).cross(each.columns(shape)).buckets for each in projections])
    sizes = torch.zeros(20, dim, dtype=torch.float64).scatter_add(1, buckets, torch.ones_like(buckets).double())
    pairs = (sizes * (sizes - 1)).sum(dim=1) / (buckets.shape[1] * (buckets.shape[1] - 1))
    assert float((pairs * dim).max()) < 1.05


def test_buckets_and_signs_never_change() -> None:
    """An index is read by later versions: these numbers were printed once, and are the format."""
    projection, shape = Projection(7, "layer.weight", 16), (3, 2, 2)
    rows, columns = projection.rows(shape, 2), projection.columns(shape)
    assert rows.cross(columns).buckets.tolist() == BUCKETS
    assert rows.cross(columns).signs.tolist() == SIGNS
    assert projection.rows(shape, 1).cross(columns).buckets.tolist() == BUCKETS[:12]  # more outputs change no other
    assert projection.rows(shape, 2, 2).cross(projection.columns(shape, 2)).buckets.tolist() == BUCKETS


def test_the_projection_depends_on_seed_parameter_and_output() -> None:
    values = torch.randn(2, 1, 30, 30).double()
    own = Projection(0, "a", 64).of_built(values)
    assert error(Projection(1, "a", 64).of_built(values), own) > 0.1
    assert error(Projection(0, "b", 64).of_built(values), own) > 0.1
    second = Projection(0, "a", 64).of_built(torch.cat([torch.zeros_like(values), values], dim=1))
    assert error(second, own) > 0.1
    first = Projection(0, "a", 64).of_built(torch.cat([values, torch.zeros_like(values)], dim=1))
    assert error(first, own) < EXACT


@pytest.mark.parametrize("normalization", ["whitened", "flat"])
@pytest.mark.parametrize("case", MODELS)
def test_sketches_estimate_similarities(case: Case, normalization: str) -> None:
    """Off by less than 2 / sqrt(dim), root mean square over pairs and seeds; and no worse on average."""
    kernel, x, dim, seeds = GradientKernel(case.model(), case.outputs[0]), case.batch(6), 256, 8
    truth = kernel.similarity(x) if normalization == "whitened" else kernel.flat_similarity(x)
    off = ~torch.eye(6, dtype=torch.bool) & ~truth.isnan()
    values = [sketch(kernel, x, dim, seed=seed, normalization=normalization).values.double() for seed in range(seeds)]
    errors = torch.stack([(value @ value.T - truth)[off] for value in values])
    assert float(errors.square().mean().sqrt()) < 2 / dim**0.5


@pytest.mark.parametrize("output", ["logits", "one_vs_rest"])
def test_where_and_in_what_order_does_not_matter(output: str) -> None:
    case = next(case for case in ZOO if case.name == "convolutions")
    model, x = case.model(), case.batch(6)
    whole = sketch(GradientKernel(model, output), x, 128)
    order = [4, 0, 5, 1]
    part = sketch(GradientKernel(model, output, batch_size=1), x[order], 128)
    assert error(part.values, whole.values[order]) < 1e-6  # kept in float32
    assert error(part.norms, whole.norms[order]) < EXACT
    assert error(part.outputs, whole.outputs[order]) < EXACT


def test_norms_ranks_and_outputs_are_exact() -> None:
    case = next(case for case in ZOO if case.name == "convolutions")
    kernel, x = GradientKernel(case.model()), case.batch(5)
    found = sketch(kernel, x, 32)
    assert error(found.norms.square(), kernel.diag(x) * found.outputs.shape[1]) < EXACT
    assert found.ranks.tolist() == kernel.ranks(x).tolist()
    assert error(found.outputs, kernel.outputs(x)) < EXACT


def test_a_zero_gradient_has_a_zero_sketch() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    found = sketch(GradientKernel(model), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 8)
    assert found.norms[1] == 0
    assert found.ranks.tolist() == [1, 0]
    assert bool((found.values[1] == 0).all())
    assert math.isclose(float(found.values[0].norm()), 1, rel_tol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_extreme_gradients_are_sketched(scale: float) -> None:
    model = torch.nn.Linear(20, 1).eval()
    x = torch.randn(4, 20)
    plain, scaled = (
        sketch(GradientKernel(model, lambda y, factor=factor: y * factor), x, 64) for factor in (1.0, scale)
    )
    assert error(scaled.values, plain.values) < 1e-5
    assert error(scaled.norms / scale, plain.norms) < 1e-5


def test_nan_is_named() -> None:
    x = torch.randn(4, 3)
    x[2, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=r"1 of 4 samples are nan or inf: \[2\]"):
        sketch(GradientKernel(torch.nn.Linear(3, 1)), x, 8)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(("dim", "message"), [(0, "at least 1"), (3.5, "a whole number"), (2**40, "at most 1,048,576")])
def test_lengths_that_make_no_sense(dim: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sketch(GradientKernel(torch.nn.Linear(3, 1)), torch.randn(2, 3), dim)


@pytest.mark.usefixtures("without_type_checks")
def test_a_length_may_be_a_number_of_numpy() -> None:
    assert sketch(GradientKernel(torch.nn.Linear(3, 1)), torch.randn(2, 3), np.int64(8)).values.shape == (2, 8)


def test_dim_for_an_error() -> None:
    assert dim_for(0.03125) == 4096
    for error in (0.0, -1.0, 2.0, float("nan")):
        for length in (dim_for, partial(measured_dim, GradientKernel(torch.nn.Linear(3, 1)), torch.randn(5, 3))):
            with pytest.raises(InputError, match="between 0 and 2"):
                length(error)
    with pytest.raises(InputError, match=r"less than 0\.002"):
        dim_for(1e-6)


@pytest.mark.parametrize("error", [0.3, 0.1, 0.03, 0.01])
@pytest.mark.parametrize("name", ["convolutions", "mixer"])
def test_a_length_by_measure(name: str, error: float) -> None:
    case = next(case for case in ZOO if case.name == name)
    kernel, x = GradientKernel(case.model()), case.batch(12)
    dim = measured_dim(kernel, x, error)
    assert dim <= dim_for(error)
    assert dim == dim_for(error) or dim % 64 == 0
    others = case.batch(20, seed=9)
    assert error_of(sketch(kernel, others, dim).values, kernel.similarity(others))["inner"] < 1.3 * error


def test_a_network_of_few_parameters_needs_few_numbers() -> None:
    """Its errors jump: no two entries share a bucket where there are enough of them."""
    kernel, x = GradientKernel(torch.nn.Linear(3, 2)), torch.randn(20, 3)
    for error in (0.5, 0.1, 0.05, 0.02, 1e-3):
        assert measured_dim(kernel, x, error) <= 2048
    assert measured_dim(kernel, x[:2], 0.1) == dim_for(0.1)


def test_a_wrong_sign_would_be_noticed() -> None:
    """The planted fault: one sign turned over, and the projection is not that of its hashes."""
    values = torch.randn(3, 1, 6, 5).double()
    projection = Projection(0, "w", 16)
    matrix = entries(projection, (6, 5))
    matrix[0, 7] *= -1
    assert error(projection.of_built(values), torch.einsum("ncp,cpd->nd", values.flatten(2), matrix)) > 1e-3
