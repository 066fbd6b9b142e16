"""Self-denoising: exact where least squares are solved by formula, linear-time estimates within their errors."""

import copy
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinsight import GradientKernel, Samples
from kinsight.denoising.denoise import Denoising, denoise
from kinsight.denoising.misfit import misfit
from kinsight.denoising.smoother import conjugate_residuals
from kinsight.errors import InputError, TargetError, UnknownNameError

N = 60


def inputs(n: int = N, seed: int = 1, d: int = 5) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor | None, b: Tensor, tolerance: float = 1e-8) -> None:
    assert a is not None
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def ridge(x: Tensor, y: Tensor, decay: float, weights: Tensor) -> tuple[nn.Linear, Tensor]:
    """The linear model that minimizes sum_j w_j |f_j - y_j|^2 + decay |theta|^2, and its smoother of one output."""
    solver = torch.linalg.solve(x.T @ (weights[:, None] * x) + decay * torch.eye(x.shape[1]).double(), x.T * weights)
    model = nn.Linear(x.shape[1], y.shape[1], bias=False).double()
    with torch.no_grad():
        model.weight.copy_((solver @ y).T)
    return model, x @ solver


@pytest.mark.parametrize("c", [1, 2])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_least_squares(c: int, weight_decay: float, is_weighted: bool) -> None:
    """Of a linear model all is known by formula."""
    x, y = inputs(), 100 + torch.randn(N, c, dtype=torch.float64)
    weights = 0.5 + torch.rand(N, dtype=torch.float64) if is_weighted else torch.ones(N, dtype=torch.float64)
    decay = weight_decay / (2 / (N * c))  # alpha is 1 / (n c), as in nn.MSELoss
    model, smoother = ridge(x, y, decay, weights)
    found = denoise(
        GradientKernel(model), Samples(x, y), sample_weights=weights if is_weighted else None, weight_decay=weight_decay
    )
    assert found.method == "exact"
    close(found.noise_left, smoother.square().sum(dim=1).sqrt())
    left = c * float((2 * smoother - smoother @ smoother.T).trace())
    assert found.degrees_of_freedom == pytest.approx(c * N - left)
    assert found.noise == pytest.approx(float((model(x).detach() - y).square().sum() / (c * N - left)) ** 0.5)
    close(found.predictions, model(x).detach())
    kernel = (x @ x.T) * weights
    shares = kernel / kernel.sum(dim=1, keepdim=True)
    is_sure = ~found.factors.isnan()
    assert int(is_sure.sum()) > N // 2
    close(found.factors[is_sure], shares.square().sum(dim=1).sqrt()[is_sure])
    close(found.means[is_sure], (shares @ y)[is_sure], 1e-6)
    scale = 1 + found.means[is_sure].abs().max()
    assert float(found.residuals[is_sure].abs().max() / scale) < 1e-8  # it is at the minimum, decay and all
    decay_part = found.predictions - found.means - found.shifts
    assert (float((decay_part[is_sure] / scale).abs().max()) < 1e-8) == (weight_decay == 0)


@pytest.mark.parametrize("method", ["exact", "estimate"])
def test_a_sample_of_weight_0_was_not_trained_on(method: Any) -> None:
    """Whatever its label: all is as if it were not there, and it is predicted as a query."""
    x, y = inputs(), inputs(d=1, seed=3)
    weights = torch.ones(N, dtype=torch.float64)
    weights[:5], y[:5] = 0, 1000
    model, _ = ridge(x, y, 0.5, weights)
    kernel, options = GradientKernel(model), {"weight_decay": 1.0, "loss_scale": 1.0, "method": method}
    found = denoise(kernel, Samples(x, y), sample_weights=weights, **options)
    without = denoise(kernel, Samples(x[5:], y[5:]), **options)
    queries = denoise(kernel, Samples(x[5:], y[5:]), x, **options)
    if method == "exact":
        assert found.noise == pytest.approx(without.noise)
        assert found.degrees_of_freedom == pytest.approx(without.degrees_of_freedom)
        close(found.noise_left, queries.noise_left)
        close(found.factors[~found.factors.isnan()], queries.factors[~queries.factors.isnan()])
    else:
        assert found.noise == pytest.approx(without.noise, rel=0.1)
    for name in ("means", "residuals", "shifts", "shares", "predictions"):
        ours, theirs = getattr(found, name), getattr(queries, name)
        close(ours[~ours.isnan()], theirs[~theirs.isnan()], 1e-6)
    told, same = ({check.name: check.value for check in each.checks} for each in (found, without))
    assert told["no interpolation"] == pytest.approx(same["no interpolation"])
    assert abs(told["no misfit"]) < 3


@pytest.mark.parametrize("n_queries", [None, 7])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_some_parameters_decay(n_queries: int | None, is_weighted: bool) -> None:
    """Weights decay, and the intercept does not: as by formula."""
    x, y = inputs(), 5 + inputs(d=1, seed=3)
    weights = 0.5 + torch.rand(N, dtype=torch.float64) if is_weighted else torch.ones(N, dtype=torch.float64)
    wide = torch.cat([x, torch.ones(N, 1, dtype=torch.float64)], dim=1)
    decay = 3.0 * torch.diag(torch.tensor([1.0] * 5 + [0.0], dtype=torch.float64))
    solver = torch.linalg.solve(wide.T @ (weights[:, None] * wide) + decay, wide.T * weights)
    model = nn.Linear(5, 1).double()
    with torch.no_grad():
        model.weight.copy_((solver @ y)[:5].T)
        model.bias.copy_((solver @ y)[5])
    asked = None if n_queries is None else inputs(n_queries, seed=9)
    found = denoise(
        GradientKernel(model), Samples(x, y), asked, weight_decay=6.0, loss_scale=1.0, decayed=["weight"],
        sample_weights=weights,
    )  # fmt: skip
    smoother = wide @ solver
    of_asked = smoother if asked is None else torch.cat([asked, torch.ones(len(asked), 1).double()], dim=1) @ solver
    close(found.noise_left, of_asked.norm(dim=1))
    left = N - float((2 * smoother - smoother @ smoother.T).trace())
    assert found.degrees_of_freedom == pytest.approx(left)
    is_sure = ~found.factors.isnan()
    assert float(found.residuals[is_sure].abs().max()) < 1e-8
    all_decay = denoise(GradientKernel(model), Samples(x, y), weight_decay=6.0, loss_scale=1.0)
    named = denoise(GradientKernel(model), Samples(x, y), weight_decay=6.0, loss_scale=1.0, decayed=["bias", "weight"])
    close(named.noise_left, all_decay.noise_left)
    none = denoise(GradientKernel(model), Samples(x, y), weight_decay=6.0, loss_scale=1.0, decayed=[])
    close(none.noise_left, denoise(GradientKernel(model), Samples(x, y)).noise_left)


def test_identical_and_orthogonal_samples() -> None:
    kernel = GradientKernel(nn.Linear(64, 1, bias=False))
    same = denoise(kernel, Samples(torch.ones(16, 64), torch.rand(16)))
    close(same.factors, torch.full((16,), 0.25, dtype=torch.float64), 1e-6)
    close(same.effective_neighbors, torch.full((16,), 16.0, dtype=torch.float64), 1e-5)
    apart = denoise(kernel, Samples(torch.eye(64)[:16], torch.rand(16)))
    close(apart.factors, torch.ones(16, dtype=torch.float64), 1e-6)


def network(c: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, c)).double()


def both(c: int, **options: Any) -> tuple[Denoising, Denoising]:
    kernel, data = GradientKernel(network(c)), Samples(inputs(), torch.randn(N, c, dtype=torch.float64))
    return denoise(kernel, data, **options), denoise(kernel, data, method="estimate", n_probes=400, **options)


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("n_queries", [None, 7])
@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_estimates_are_within_their_errors(
    c: int, n_queries: int | None, weight_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinsight.denoising.least_squares.N_STEPS", 60)
    queries = None if n_queries is None else inputs(n_queries, seed=9)
    weights = torch.linspace(0.5, 2, N) if weight_decay else None
    exact, found = both(c, queries=queries, weight_decay=weight_decay, sample_weights=weights)
    assert (exact.method, found.method) == ("exact", "estimate")
    close(found.means, exact.means)
    close(found.shifts, exact.shifts)
    assert found.factors_error is not None
    assert found.noise_left_error is not None
    is_sure = ~exact.factors.isnan()
    off = ((found.factors - exact.factors) / found.factors_error)[is_sure]
    assert float(off.square().mean().sqrt()) < 2
    off = (found.noise_left - exact.noise_left) / found.noise_left_error
    is_met = {check.name: check.is_met for check in found.checks}
    if weight_decay:
        assert float(off.square().mean().sqrt()) < 2
        assert float((found.noise_left_error / found.noise_left).max()) < 0.1
        assert found.noise == pytest.approx(exact.noise, rel=0.05)
        assert is_met["smoother"]
        assert exact.noise_error == pytest.approx(exact.noise / (2 * exact.degrees_of_freedom) ** 0.5)
        assert found.noise_error > found.noise / (2 * found.degrees_of_freedom) ** 0.5
    else:  # small eigenvalues are out of reach: a lower bound, and the result says so
        assert float(off.max()) < 4
        assert not is_met["smoother"]


def test_an_estimate_that_misses_small_eigenvalues_says_so() -> None:
    """Directions of quickly falling lengths: an iteration that has next to nothing left is not there yet."""
    x = inputs(200, d=30) * torch.arange(1, 31).double() ** -3
    y = inputs(200, d=1, seed=4)
    model, _ = ridge(x, y, 1e-12, torch.ones(200, dtype=torch.float64))
    exact, found = (denoise(GradientKernel(model), Samples(x, y), method=method) for method in ("exact", "estimate"))
    assert exact.degrees_of_freedom == pytest.approx(170, abs=1e-3)
    assert found.noise_left_error is not None
    is_close = bool(((found.noise_left - exact.noise_left).abs() < 4 * found.noise_left_error).all())
    assert is_close or "smoother" in [check.name for check in found.checks if not check.is_met]


def test_labels_that_are_nearly_exact_have_their_small_noise() -> None:
    x = inputs(200, d=3)
    y = x.sum(dim=1, keepdim=True) + 1e-3 * inputs(200, seed=5, d=1)
    model, _ = ridge(x, y, 0.0, torch.ones(200, dtype=torch.float64))
    found = denoise(GradientKernel(model), Samples(x, y))
    assert found.noise == pytest.approx(1e-3, rel=0.2)
    assert abs(found.noise - 1e-3) < 4 * found.noise_error
    assert {check.name for check in found.checks if not check.is_met} <= {"sums that do not cancel"}


def test_matrices_are_made_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs far from 0: one direction of the kernel is 3e-9 of another, in reach of float64 alone. It is taken."""
    x, y = inputs(200, seed=8) + 60, inputs(200, seed=6, d=1)
    wide = torch.cat([x, torch.ones(200, 1).double()], dim=1)
    best = torch.linalg.lstsq(wide, y).solution
    model = nn.Linear(5, 1).double()
    with torch.no_grad():
        model.weight.copy_(best[:5].T)
        model.bias.copy_(best[5])
    fine = denoise(GradientKernel(model), Samples(x, y))
    assert fine.degrees_of_freedom == pytest.approx(194)
    assert "precision" not in [check.name for check in fine.checks]
    single = copy.deepcopy(model).float()
    found = denoise(GradientKernel(single), Samples(x.float(), y))
    assert found.degrees_of_freedom == pytest.approx(194)
    close(found.noise_left, fine.noise_left, 1e-4)
    assert all(parameter.dtype == torch.float32 for parameter in single.parameters())
    monkeypatch.setattr("kinsight.denoising.denoise.finer", lambda kernel, *samples: None)  # as if it had no copy
    less = denoise(GradientKernel(single), Samples(x.float() - 35, y))
    assert "precision" in [check.name for check in less.checks if not check.is_met]


@pytest.mark.parametrize("method", ["exact", "estimate"])
def test_estimates_have_their_errors_in_every_row(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinsight.denoising.least_squares.N_STEPS", 10)
    found = denoise(GradientKernel(network(1)), Samples(inputs(), inputs(d=1, seed=2)), method=method, n_probes=16)
    names = set(next(iter(found.rows())))
    assert ({"factor_error", "noise_left_error"} <= names) == (method == "estimate")


def test_vectors_by_hand() -> None:
    """A_ij = M_i^-1 K_ij and D_i^2 = Tr sum_j A_ij A_ij^T / c, sample by sample."""
    kernel, x = GradientKernel(network(3)), inputs()
    blocks = kernel.blocks(x)
    found = denoise(kernel, Samples(x, torch.randn(N, 3, dtype=torch.float64)))
    for row in range(5):
        total = blocks[row].sum(dim=0)
        parts = torch.linalg.inv(total) @ blocks[row]
        wanted = float((parts @ parts.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum() / 3) ** 0.5
        if not bool(found.factors[row].isnan()):
            assert float(found.factors[row]) == pytest.approx(wanted)


def test_what_is_predicted_adds_up() -> None:
    kernel, data = GradientKernel(network(3)), Samples(inputs(), torch.randn(N, 3, dtype=torch.float64))
    found = denoise(kernel, data)
    left = (found.predictions - found.means) - (found.shifts + found.residuals)
    assert float(left[~found.factors.isnan()].abs().max()) < 1e-6


def test_the_noise_of_labels_is_found_and_redrawn() -> None:
    """Labels are redrawn: what varies is what was predicted to."""
    x, truth = inputs(400, d=8), torch.zeros(400, 1).double()
    ones = torch.ones(400, dtype=torch.float64)
    drawn, noises = [], []
    for seed in range(40):
        noise = 0.3 * torch.randn(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        model, _ = ridge(x, truth + noise, 0.0, ones)
        found = denoise(GradientKernel(model), Samples(x, truth + noise))
        drawn.append(found.predictions[:, 0])
        noises.append(found.noise)
    assert torch.tensor(noises).mean() == pytest.approx(0.3, rel=0.02)
    spread = torch.stack(drawn).std(dim=0)
    assert float((spread / found.predicted_errors).mean()) == pytest.approx(1, rel=0.1)


def test_assumptions_that_do_not_hold_are_named() -> None:
    x, y = inputs(), 3 * inputs()[:, 0]
    unmet = [check.name for check in denoise(GradientKernel(network(1)), Samples(x, y)).checks if not check.is_met]
    assert "stationarity" in unmet  # it was never trained
    wide = inputs(20, d=64)
    model, _ = ridge(wide, y[:20, None], 1e-12, torch.ones(20, dtype=torch.float64))
    found = denoise(GradientKernel(model), Samples(wide, y[:20]))
    assert not found.is_credible
    assert {"no interpolation", "degrees of freedom"} <= {check.name for check in found.checks if not check.is_met}
    assert found.noise != found.noise  # no noise is claimed
    assert bool(found.predicted_errors.isnan().all())
    thin = inputs(400, d=3)
    model, _ = ridge(1 + thin, torch.randn(400, 1).double(), 0.0, torch.ones(400, dtype=torch.float64))
    assert denoise(GradientKernel(model), Samples(1 + thin, torch.randn(400, 1).double())).is_credible is False
    y = torch.randn(400, 1).double()
    model, _ = ridge(1 + thin, y, 0.0, torch.ones(400, dtype=torch.float64))
    found = denoise(GradientKernel(model), Samples(1 + thin, y))
    assert [check.name for check in found.checks if not check.is_met] in ([], ["sums that do not cancel"])


def trained_otherwise(how: str, x: Tensor, y: Tensor) -> nn.Module:
    """A linear model at the end of a training that `denoise` is not told of."""
    model, _ = ridge(x, y, 0.0, torch.ones(len(x), dtype=torch.float64))
    if how == "as told":
        return model
    if how == "weights":
        weights = torch.where(torch.arange(len(x)) < len(x) // 2, 0.5, 1.5).double()
        return ridge(x, y, 0.0, weights)[0]
    if how == "decay":
        return ridge(x, y, 0.02 * len(x), torch.ones(len(x), dtype=torch.float64))[0]
    if how == "stopped early":
        with torch.no_grad():
            model.weight *= 0.9
        return model
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    cost = {"absolute": nn.L1Loss(), "Huber": nn.HuberLoss(delta=0.1)}[how]

    def closure() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = cost(model(x), y)
        value.backward()
        return value

    optimizer.step(closure)
    return model


@pytest.mark.parametrize("how", ["as told", "weights", "decay", "stopped early", "absolute", "Huber"])
def test_a_training_that_is_not_told_is_noticed(how: str) -> None:
    x = inputs(400)
    generator = torch.Generator().manual_seed(5)
    y = x.sum(dim=1, keepdim=True) + 0.5 * torch.randn(400, 1, dtype=torch.float64, generator=generator)
    y = y + 0.5 * (torch.rand(400, 1, dtype=torch.float64, generator=generator) < 0.2)  # lopsided, as labels are
    found = denoise(GradientKernel(trained_otherwise(how, x, y)), Samples(x, y))
    (check,) = (check for check in found.checks if check.name == "stationarity")
    assert check.is_met == (how == "as told")
    if how != "as told":
        assert not found.is_credible
        assert "stationarity" in found.summary()


@pytest.mark.parametrize(("method", "c", "n_draws"), [("exact", 1, 12), ("exact", 2, 12), ("estimate", 2, 3)])
def test_misfit_is_told_from_noise(method: Any, c: int, n_draws: int) -> None:
    """A parabola is no line: what is left of it is shared by neighbors. Noise alone passes, but for 1 draw of 700."""
    x = inputs(150, d=2)
    ones, scores = torch.ones(150, dtype=torch.float64), []
    for seed in range(n_draws):
        generator = torch.Generator().manual_seed(100 + seed)
        noise = 0.5 * torch.randn(150, c, dtype=torch.float64, generator=generator)
        for bend in (0.0, 1.0):
            y = x.sum(dim=1, keepdim=True) + bend * x[:, :1].square() + noise
            model, _ = ridge(x, y, 1e-6, ones)
            found = denoise(GradientKernel(model), Samples(x, y), weight_decay=2e-6 / (150 * c), method=method)
            checks = {check.name: check for check in found.checks}
            assert checks["no misfit"].is_met == (bend == 0)
            assert ("no misfit" in found.summary()) == (bend > 0)
            scores += [checks["no misfit"].value] if bend == 0 else []
    assert abs(statistics.fmean(scores)) < 1
    assert n_draws < 10 or 0.4 < statistics.stdev(scores) < 1.8


def test_misfit_by_hand() -> None:
    kernel, samples = GradientKernel(nn.Linear(2, 1, bias=False).double()), Samples(inputs(40, d=2))
    residuals, draws = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 3, 9, dtype=torch.float64)
    cosines = kernel.similarity(inputs(40, d=2)).fill_diagonal_(-2)
    places = cosines.argsort(dim=1, descending=True, stable=True)[:, :3]
    pairs = [(i, int(j)) for i in range(40) for j in places[i]]

    def by_hand(r: Tensor) -> float:
        products = sum(float(r[i] @ r[j]) for i, j in pairs) / len(pairs)
        return products / float(r.square().sum(dim=1).mean())

    found = misfit(kernel, samples, residuals, draws)
    of_noise = torch.tensor([by_hand(draws[..., m]) for m in range(9)])
    assert found.correlation == pytest.approx(by_hand(residuals), rel=1e-6)
    assert found.score == pytest.approx((by_hand(residuals) - float(of_noise.mean())) / float(of_noise.std()), rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_conjugate_residuals(decay: float) -> None:
    """Of a singular matrix too: what comes out is the projection of the right side."""
    torch.manual_seed(0)
    half = torch.randn(30, 10, dtype=torch.float64)
    right = torch.randn(30, 4, dtype=torch.float64)
    matrix = half @ half.T + decay * torch.eye(30)
    found, left, steps = conjugate_residuals(lambda v: matrix @ v, right, 60, 1e-4, is_normal=True)
    assert left <= 1e-4
    assert 0 < steps < 30
    wanted = matrix @ torch.linalg.pinv(matrix, rtol=1e-10) @ right
    assert float((matrix @ found - wanted).norm() / wanted.norm()) < 2e-2


@pytest.mark.parametrize("output", ["one_vs_rest", "adversary_pair", "log_probs", "fisher", "centered_logits"])
def test_outputs_that_are_no_values(output: Any) -> None:
    x, model = inputs(), nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    kernel = GradientKernel(model, output)
    targets = torch.zeros(N, kernel.outputs(x).shape[1]).squeeze(1)
    with pytest.raises(TargetError, match="nothing that values could be compared with"):
        denoise(kernel, Samples(x, targets))


@pytest.mark.parametrize(
    ("targets", "options", "error", "message"),
    [
        (None, {}, TargetError, "no targets"),
        (torch.arange(N) % 2, {}, TargetError, "values that outputs are compared with"),
        (torch.rand(N, 2), {}, TargetError, "values that outputs are compared with"),
        (torch.rand(N), {"method": "guess"}, InputError, "use 'auto', 'exact' or 'estimate'"),
        (torch.rand(N), {"sample_weights": -torch.ones(N)}, InputError, "60 of 60 numbers that are negative"),
        (
            torch.rand(N),
            {"sample_weights": torch.ones(3)},
            InputError,
            "sample_weights is \\[3\\]: there are 60 samples",
        ),
        (torch.rand(N), {"sample_weights": "balanced"}, InputError, "60 numbers, and is a str"),
        (torch.rand(N), {"sample_weights": torch.zeros(N)}, InputError, "all 0"),
        (torch.rand(N), {"weight_decay": -1.0}, InputError, "the other not negative"),
        (torch.rand(N), {"loss_scale": float("inf")}, InputError, "both finite"),
        (
            torch.rand(N),
            {"weight_decay": 1.0, "decayed": ["0.weight"], "method": "estimate"},
            InputError,
            "Only 1 of 4",
        ),
        (torch.rand(N), {"weight_decay": 1.0, "decayed": ["x"]}, UnknownNameError, "no parameter 'x'"),
        (torch.rand(N), {"method": "estimate", "n_probes": 1}, InputError, "a whole number, 2 or more"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_questions_that_make_no_sense(targets: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        denoise(GradientKernel(network(1)), Samples(inputs(), targets), **options)
