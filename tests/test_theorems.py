"""What the mathematics promises, on random networks: definitions, identities, theorems."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kinsight import outputs
from kinsight.kernel import GradientKernel
from kinsight.whitening import best_rotation_trace, spectrum
from tests.test_engine import EXACT, error
from tests.zoo import ZOO

SEEDS = st.integers(0, 10_000)


def network(seed: int, n_outputs: int, *, bias: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, n_outputs, bias=bias))
    return layers.double().eval()


def inputs(seed: int, n: int = 5) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))


@settings(max_examples=25)
@given(SEEDS)
def test_squared_similarity_is_the_product_of_influences(seed: int) -> None:
    kernel, x = GradientKernel(network(seed, 1)), inputs(seed)
    influence = kernel.influence(x)
    assert error(influence * influence.T, kernel.similarity(x) ** 2) < 1e-9


@settings(max_examples=15)
@given(SEEDS)
def test_influence_is_what_a_real_step_does(seed: int) -> None:
    model, x = network(seed, 1), inputs(seed, 4)
    influence = GradientKernel(model).influence(x)
    errors = []
    for size in (1e-3, 1e-4):
        moved = torch.empty(4, 4, dtype=torch.float64)
        for n in range(4):
            gradient = torch.autograd.grad(model(x[n]).sum(), list(model.parameters()))
            norm = sum(float(g.square().sum()) for g in gradient)
            before = model(x).detach()[:, 0]
            with torch.no_grad():
                for parameter, g in zip(model.parameters(), gradient, strict=True):
                    parameter += size * g / norm
                moved[n] = (model(x)[:, 0] - before) / size
                for parameter, g in zip(model.parameters(), gradient, strict=True):
                    parameter -= size * g / norm
        errors.append(float((moved - influence).abs().max()))
    assert errors[1] < max(0.2 * errors[0], 1e-8)  # O(step): ten times smaller, up to the second order


@settings(max_examples=15)
@given(SEEDS)
def test_the_influence_matrix_is_what_the_smallest_step_does(seed: int) -> None:
    model, x = network(seed, 3), inputs(seed, 2)
    kernel = GradientKernel(model)
    influence = kernel.influence(x[:1], x[1:])[0, 0]
    jacobian = torch.cat([v.flatten(2) for v in kernel.gradients(x).build().values()], dim=2)
    wanted = torch.randn(3, dtype=torch.float64)
    step = torch.linalg.pinv(jacobian[0]) @ wanted  # the smallest step that moves f(x) by `wanted`
    assert error(jacobian[1] @ step, influence @ wanted) < 1e-8


@settings(max_examples=15)
@given(SEEDS)
def test_whitening(seed: int) -> None:
    kernel, x = GradientKernel(network(seed, 3)), inputs(seed)
    c = 3
    own = kernel.blocks(x)
    roots = spectrum(torch.stack([own[n, n] for n in range(5)]), torch.float64).power(-0.5)
    whitened = torch.einsum("nab,nmbc,mcd->nmad", roots, own, roots)
    identity = torch.eye(c, dtype=torch.float64)
    for n in range(5):
        assert error(whitened[n, n], identity) < 1e-8
    assert float(whitened.abs().max()) < 1 + 1e-9
    frobenius = whitened.flatten(2).norm(dim=2)
    assert float(frobenius.max()) < c**0.5 + 1e-9
    similarity = kernel.similarity(x)
    assert error(similarity, whitened.diagonal(dim1=2, dim2=3).sum(dim=2) / c) < 1e-8
    away = (whitened - identity).flatten(2).norm(dim=2)
    assert bool((away**2 <= 2 * c * (1 - similarity) + 1e-9).all())
    assert bool((1 - similarity <= away / c**0.5 + 1e-9).all())


@settings(max_examples=15)
@given(SEEDS)
def test_similarity_is_a_positive_semidefinite_cosine(seed: int) -> None:
    for output in ("logits", "log_probs", "centered_logits"):
        kernel, x = GradientKernel(network(seed, 3), output), inputs(seed, 7)
        for values in (kernel.similarity(x), kernel.flat_similarity(x)):
            assert float(values.abs().max()) <= 1
            assert error(values.diagonal(), torch.ones(7)) < 1e-9
            assert float(torch.linalg.eigvalsh(values)[0]) > -1e-9
            assert error(values.T, values) < 1e-12


def test_ranks_are_reported() -> None:
    x = inputs(0)
    assert GradientKernel(network(0, 3)).ranks(x).tolist() == [3] * 5
    assert GradientKernel(network(0, 3), "log_probs").ranks(x).tolist() == [2] * 5
    assert GradientKernel(network(0, 3), "centered_logits").ranks(x).tolist() == [2] * 5
    assert GradientKernel(network(0, 3), lambda f: torch.cat([f, f], dim=1)).ranks(x).tolist() == [3] * 5
    for dtype in (torch.float32, torch.float64):
        for output in ("log_probs", "centered_logits"):
            kernel = GradientKernel(network(0, 3).to(dtype), output)
            assert kernel.ranks(x.to(dtype)).tolist() == [2] * 5


def test_repeated_outputs_do_not_change_the_similarity() -> None:
    model, x = network(1, 3), inputs(1)
    twice = GradientKernel(model, lambda f: torch.cat([f, 2 * f], dim=1))
    assert error(twice.similarity(x), GradientKernel(model).similarity(x)) < 1e-8


@settings(max_examples=15)
@given(SEEDS)
def test_rotation_similarity_does_not_see_invertible_maps_of_the_outputs(seed: int) -> None:
    model, x = network(seed, 2), inputs(seed)
    maps = torch.randn(2, 2, dtype=torch.float64) + 3 * torch.eye(2, dtype=torch.float64)
    plain, mapped = GradientKernel(model), GradientKernel(model, lambda f: f @ maps)
    assert error(mapped.rotation_similarity(x), plain.rotation_similarity(x)) < 1e-8
    rotation = torch.linalg.qr(maps).Q
    assert error(GradientKernel(model, lambda f: f @ rotation).similarity(x), plain.similarity(x)) < 1e-8


def test_best_rotation_against_all_rotations() -> None:
    blocks = torch.randn(4, 4, 2, 2, dtype=torch.float64)
    angles = torch.linspace(0, 2 * torch.pi, 20_001, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    traces = (
        cos * (blocks[..., 0, 0, None] + blocks[..., 1, 1, None])
        + sin * (blocks[..., 0, 1, None] - blocks[..., 1, 0, None])
    ).amax(dim=2)
    found = best_rotation_trace(blocks, is_special=True)
    assert float((found - traces).abs().max()) < 1e-6
    closed = (blocks.flatten(2).square().sum(dim=2) + 2 * torch.linalg.det(blocks)).sqrt()
    assert error(found, closed) < 1e-12
    assert bool((best_rotation_trace(blocks, is_special=False) >= found - 1e-12).all())


def test_equal_gradients_mean_equal_outputs_where_the_last_layer_has_a_bias() -> None:
    model = network(3, 1)
    x = inputs(3, 30)
    kernel = GradientKernel(model)
    gradients = torch.cat([v.flatten(1) for v in kernel.gradients(x).build().values()], dim=1)
    distance, gap = torch.cdist(gradients, gradients), (model(x) - model(x).T).abs().detach()
    # the last layer's share of the gradient is the activities and 1: the output is their linear function
    weight = float(model[4].weight.detach().norm())
    assert bool((gap <= weight * distance + 1e-12).all())


def test_without_a_bias_similarity_one_does_not_mean_equal_outputs() -> None:
    kernel = GradientKernel(nn.Linear(3, 1, bias=False).double())
    x = torch.randn(1, 3, dtype=torch.float64)
    assert float(kernel.similarity(x, 2 * x)) == pytest.approx(1, abs=1e-12)
    assert float(GradientKernel(nn.Linear(3, 1).double()).similarity(x, 2 * x)) < 0.999


def test_the_share_of_the_last_layer_is_feature_similarity() -> None:
    model, x = network(4, 1), inputs(4)
    shares = GradientKernel(model).per_layer(x)
    features = model[:4](x).detach()
    assert error(shares["4.weight"] + shares["4.bias"], features @ features.T + 1) < EXACT
    assert torch.equal(torch.stack(list(shares.values())).sum(dim=0), GradientKernel(model)(x)) or (
        error(sum(shares.values()), GradientKernel(model)(x)) < 1e-15
    )


def test_fisher_outputs_measure_the_kullback_leibler_divergence() -> None:
    model, x = network(5, 3), inputs(5, 3)
    kernel = GradientKernel(model, "fisher")
    gradients = kernel.gradients(x)
    direction = {name: torch.randn_like(p)[None] for name, p in kernel.parameters.items()}
    half_squares = 0.5 * gradients.dot(direction)[:, :, 0].square().sum(dim=1)
    errors = []
    for size in (1e-2, 1e-3):
        with torch.no_grad():
            before = F.log_softmax(model(x), dim=1)
            for name, parameter in kernel.parameters.items():
                parameter += size * direction[name][0]
            after = F.log_softmax(model(x), dim=1)
            for name, parameter in kernel.parameters.items():
                parameter -= size * direction[name][0]
        divergence = (before.exp() * (before - after)).sum(dim=1)
        errors.append(float(((divergence / size**2) - half_squares).abs().max() / half_squares.max()))
    assert errors[1] < 0.2 * errors[0] < 0.2


@pytest.mark.parametrize("output", ["fisher", "log_probs"])
def test_a_network_that_is_sure_has_exact_gradients_of_its_probabilities(output: str) -> None:
    """Probabilities within 1e-8 of 0 and 1: 1 - p computed in float32 would be rounding alone."""
    model, x = network(5, 3), 3 * inputs(5, 3)
    last = model[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight *= 60
    assert float(F.softmax(model(x).detach(), dim=1).max()) > 1 - 1e-8
    truth = GradientKernel(model, output)(x)
    found = GradientKernel(copy.deepcopy(model).float(), output)(x.float())
    lengths = truth.diagonal().sqrt()
    assert (float(lengths.min()) < 0.01) == (output == "fisher")
    assert float(((found - truth) / torch.outer(lengths, lengths)).abs().max()) < 2e-4


def test_probes_estimate_the_kernel_of_the_logits_with_their_error_bar() -> None:
    model, x = network(6, 12), inputs(6)
    truth = GradientKernel(model)(x)
    inside, n_seeds = 0, 60
    for seed in range(n_seeds):
        found = GradientKernel(model, outputs.probes(k=16, seed=seed)).estimate(x)
        inside += int(((found.values - truth).abs() <= 2.13 * found.standard_error).sum())  # t, 15 degrees of freedom
    coverage = inside / (n_seeds * truth.numel())
    assert 0.88 < coverage <= 1  # 95 % nominal; entries of one seed are correlated, and k v^2 is skewed
    assert error(GradientKernel(model, outputs.probes(k=500)).estimate(x).values, truth) < 0.1
    assert error(GradientKernel(model, "probes")(x), GradientKernel(model, "probes").estimate(x).values) < EXACT


def test_one_against_the_rest_and_pairs() -> None:
    model, x = network(7, 4), inputs(7)
    z = model(x).detach()
    best, second = z.argsort(dim=1, descending=True)[:, :2].T
    rows = torch.arange(5)
    rest = (z.sum(dim=1) - z[rows, best]) / 3
    assert error(GradientKernel(model, "one_vs_rest").outputs(x)[:, 0], z[rows, best] - rest) < EXACT
    assert error(GradientKernel(model, "adversary_pair").outputs(x)[:, 0], z[rows, best] - z[rows, second]) < EXACT
    given = GradientKernel(model, outputs.one_vs_rest(class_index=2))
    assert error(given.outputs(x)[:, 0], z[:, 2] - (z.sum(dim=1) - z[:, 2]) / 3) < EXACT
    pair = GradientKernel(model, outputs.adversary_pair(class_index=0, adversary=3))
    assert error(pair.outputs(x)[:, 0], z[:, 0] - z[:, 3]) < EXACT


def test_weighted_sums_meet_the_gram_block() -> None:
    """w^T K v = (sum_n w_n g_n) . (sum_n v_n g_n), the right side from ordinary backward passes."""
    for case in ZOO:
        x = case.batch(6)
        kernel = GradientKernel(case.model(), case.outputs[0])
        w, v = torch.randn(2, 6, dtype=torch.float64)
        sums = []
        for weights in (w, v):
            batch = kernel.gradients(x)
            from kinsight.captures.running import call_model, untouched
            from kinsight.outputs import evaluate
            from kinsight.samples import as_batch

            with untouched(kernel.model, kernel.parameters):
                f = evaluate(kernel.output, call_model(kernel.model, as_batch(x).inputs), None, 6)
                c = f.shape[1]
                sums.append(
                    [
                        torch.autograd.grad(
                            (weights[:, None] * f)[:, a].sum(),
                            list(kernel.parameters.values()),
                            retain_graph=True,
                            allow_unused=True,
                        )
                        for a in range(c)
                    ]
                )
            assert len(batch) == 6
        right = sum(
            float((a * b).sum()) for p, q in zip(*sums, strict=True) for a, b in zip(p, q, strict=True) if a is not None
        )
        assert float(w @ kernel(x) @ v) * c == pytest.approx(right, rel=1e-9, abs=1e-9)
