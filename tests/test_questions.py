"""Neighbors, counts and label suspects, on the zoo and on real digits, against plain loops over a whole Gram block."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kinsight
from kinsight.density import Counts
from kinsight.errors import InputError, UnknownNameError, ZeroGradientWarning
from kinsight.kernel import GradientKernel
from kinsight.neighbors import merge_best
from kinsight.samples import Batch, Samples
from tests.test_engine import EXACT, MODELS, error
from tests.zoo import ZOO, Case

LINEAR = 1e-5
"""What is asked of linear-time counts in float32. In float64 they are exact to rounding."""


def block(kernel: GradientKernel, normalization: str, x: Any, y: Any) -> Tensor:
    return kernel.similarity(x, y) if normalization == "whitened" else kernel.flat_similarity(x, y)


NOTHING_KEPT = 1
"""Bound on memory, in bytes, in which no captures are kept from the first pass to the second."""


@pytest.mark.parametrize("max_bytes", [NOTHING_KEPT, 20_000])
@pytest.mark.parametrize("case", MODELS)
def test_soft_counts_are_row_sums(case: Case, max_bytes: int) -> None:
    x, y = Samples(case.batch(9)), Samples(case.batch(4, seed=3), ids=list("abcd"))
    kernel = GradientKernel(case.model(), case.outputs[0], batch_size=4, max_bytes=max_bytes)
    for normalization in ("whitened", "flat"):
        own = block(kernel, normalization, x.take(range(9)), x.take(range(9))).sum(dim=1)
        around = block(kernel, normalization, y.take(range(4)), x.take(range(9))).sum(dim=1)
        for route in ("auto", "captures")[: 2 if max_bytes == NOTHING_KEPT else 1]:
            found = kinsight.soft_count(kernel, x, normalization=normalization, route=route)
            assert error(found.values, own) < EXACT
            assert found.route == "captures" or route == "auto"
            assert found.route.startswith("kept") <= (max_bytes > NOTHING_KEPT)
            others = kinsight.soft_count(kernel, x, y, normalization=normalization, route=route)
            assert others.ids == tuple("abcd")
            assert error(others.values, around) < EXACT


@pytest.mark.parametrize("name", ["mlp", "residual", "transformer"])
def test_soft_counts_in_float32(name: str) -> None:
    case = next(case for case in ZOO if case.name == name)
    x = case.batch(20, torch.float32)
    kernel = GradientKernel(case.model(torch.float32), batch_size=8, max_bytes=NOTHING_KEPT)
    for normalization in ("whitened", "flat"):
        found = kinsight.soft_count(kernel, x, normalization=normalization)
        assert error(found.values, block(kernel, normalization, x, x).sum(dim=1)) < LINEAR


@pytest.mark.parametrize("name", ["mlp", "transformer", "lstm", "residual"])
def test_forward_mode_is_an_independent_way_to_the_same_counts(name: str) -> None:
    case = next(case for case in ZOO if case.name == name)
    kernel = GradientKernel(case.model(), case.outputs[0], batch_size=4)
    truth = kinsight.soft_count(kernel, case.batch(6))
    found = kinsight.soft_count(kernel, case.batch(6), route="forward")
    assert (truth.route, found.route) == ("kept captures", "forward mode")
    assert error(found.values, truth.values) < EXACT


@pytest.mark.parametrize("name", ["parametrized", "tied language model"])
def test_a_model_without_forward_mode_is_refused_it(name: str) -> None:
    case = next(case for case in ZOO if case.name == name)
    kernel = GradientKernel(case.model(), case.outputs[0])
    with pytest.raises(kinsight.errors.ModelError, match=r"no forward-mode derivative: .* Use route='captures'"):
        kinsight.soft_count(kernel, case.batch(4), route="forward")


class AlteredGradient(torch.autograd.Function):
    """Backward differs from forward: a gradient reversal, as in domain adaptation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.clone()


class Reversed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(AlteredGradient.apply(torch.tanh(self.body(x))))[:, 0]


def test_forward_mode_that_disagrees_is_refused() -> None:
    """The counts around the data's own samples add up to |S|^2, exactly: the whole pass is checked by that."""
    x = torch.randn(6, 5, dtype=torch.float64)
    kernel = GradientKernel(Reversed().double())
    assert error(kinsight.soft_count(kernel, x).values, kernel.similarity(x).sum(dim=1)) < EXACT
    with pytest.raises(kinsight.errors.ModelError, match=r"add up to .* and must to .* Use route='captures'"):
        kinsight.soft_count(kernel, x, route="forward")


@pytest.mark.parametrize("size", [2, 5, 50])
def test_hard_and_power_counts(size: int) -> None:
    case = ZOO[0]
    x = case.batch(11)
    kernel = GradientKernel(case.model(), batch_size=size)
    whole = kernel.similarity(x)
    whole.fill_diagonal_(1.0)
    hard = kinsight.hard_count(kernel, x, thresholds=[0.1, 0.3, 0.999])
    assert torch.equal(
        hard.values, torch.stack([(whole > tau).sum(dim=1) for tau in (0.1, 0.3, 0.999)], dim=1).double()
    )
    assert torch.equal(kinsight.hard_count(kernel, x, thresholds=0.3).values, hard.values[:, 1])
    power = kinsight.power_count(kernel, x, power=3)
    assert error(power.values, whole.clamp(min=0).pow(3).sum(dim=1)) < EXACT
    integral = kinsight.hard_count(kernel, x, thresholds=torch.linspace(0, 1, 2001)[:-1].add(0.00025).tolist())
    first = kinsight.power_count(kernel, x, power=1.0)
    assert float((integral.values.mean(dim=1) - first.values).abs().max()) < 11 / 2000


@pytest.mark.parametrize("count", [kinsight.soft_count, kinsight.hard_count, kinsight.power_count])
def test_a_sample_counts_itself_unless_told_otherwise(count: Callable[..., Counts]) -> None:
    case = ZOO[0]
    x = case.batch(8)
    kernel = GradientKernel(case.model(), batch_size=3)
    with_self, without = count(kernel, x), count(kernel, x, include_self=False)
    assert torch.allclose(with_self.values - without.values, torch.ones(8, dtype=torch.float64))
    strangers = x[:3]
    assert torch.allclose(count(kernel, x, strangers, include_self=False).values, with_self.values[:3])
    whole, named = Samples(x), Samples(x, ids=list("abcdefgh"))
    for data, known in ((whole, whole.first(3)), (named, Samples(x[:3], ids=list("abc")))):
        assert torch.allclose(count(kernel, data, known, include_self=False).values, without.values[:3])


@pytest.mark.parametrize("normalization", ["whitened", "flat"])
def test_neighbors_are_the_largest_similarities(normalization: str) -> None:
    case = ZOO[0]
    x, y = case.batch(13), case.batch(4, seed=3)
    for size in (3, 100):
        kernel = GradientKernel(case.model(), batch_size=size)
        found = kinsight.neighbors(kernel, Samples(y, ids=list("abcd")), x, 5, normalization=normalization)
        best = block(kernel, normalization, y, x).sort(dim=1, descending=True)
        assert torch.equal(found.positions, best.indices[:, :5])
        assert error(found.similarities, best.values[:, :5]) < EXACT
        assert found.ids == tuple(tuple(row) for row in best.indices[:, :5].tolist())
        own = kinsight.neighbors(kernel, x, x, 5, normalization=normalization)
        masked = block(kernel, normalization, x, x).fill_diagonal_(-2).sort(dim=1, descending=True)
        assert torch.equal(own.positions, masked.indices[:, :5])
    whole = Samples(x)
    for part in (whole.first(4), whole.take([0, 1, 2, 3]), Samples(whole.take(range(6))[:4])):
        own_again = kinsight.neighbors(kernel, part, whole, 5, normalization=normalization)
        assert torch.equal(own_again.positions, own.positions[:4])
    for stranger in (Samples(x).first(4), Samples(x).take([0, 1, 2, 3]), Batch(x)[:4], Samples(x[:4], ids=range(4))):
        found_again = kinsight.neighbors(kernel, stranger, whole, 5, normalization=normalization)
        assert found_again.positions[:, 0].tolist() == [0, 1, 2, 3]
    strangers = kinsight.neighbors(kernel, x[:4], x, 5, normalization=normalization)
    assert strangers.positions[:, 0].tolist() == [0, 1, 2, 3]
    rows = list(found.rows())
    assert len(rows) == 20
    assert rows[6]["query"] == "b"
    assert rows[6]["rank"] == 2


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equal_similarities_come_in_the_order_of_the_data(k: int) -> None:
    values = torch.randint(0, 3, (4, 12)).double()
    places = torch.arange(12).expand(4, 12)
    expected = (values * 100 - places).argsort(dim=1, descending=True)[:, :k]
    for order in ([slice(0, 4), slice(4, 12)], [slice(8, 12), slice(0, 8)], [slice(6, 12), slice(0, 1), slice(1, 6)]):
        best = torch.full((4, k), -torch.inf, dtype=torch.float64)
        found = torch.full((4, k), -1)
        for part in order:
            best, found = merge_best(best, found, values[:, part], places[:, part], k)
        assert torch.equal(found, expected)


def test_more_neighbors_than_samples() -> None:
    case = ZOO[0]
    x = case.batch(3)
    found = kinsight.neighbors(GradientKernel(case.model()), x, x, 10)
    assert [len(row) for row in found.ids] == [2, 2, 2]
    assert found.positions.shape == (3, 3)
    assert found.positions[:, 2].tolist() == [-1, -1, -1]
    assert bool(found.similarities[:, 2].isnan().all())
    with pytest.raises(InputError, match="n_neighbors is 0"):
        kinsight.neighbors(GradientKernel(case.model()), case.batch(3), case.batch(3), 0)


# ----------------------------------------------------------------------------------- zero gradients


class Dead(nn.Module):
    """Samples of all zeros reach no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight(x)


def test_zero_gradients_are_named_and_left_out() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    x[[1, 4]] = 0
    samples = Samples(x, torch.tensor([0, 0, 1, 1, 0, 1]), ids=list("abcdef"))
    kernel = GradientKernel(Dead().double(), batch_size=2)
    with pytest.warns(ZeroGradientWarning, match=r"gradient of 2 samples is zero: \['b', 'e'\]"):
        similarity = kernel.similarity(Batch(x, tuple("abcdef")))
    assert similarity.isnan().sum() == 20
    with pytest.warns(ZeroGradientWarning):
        influence = kernel.influence(Batch(x, tuple("abcdef")))
    assert bool(influence[1].isnan().all())
    assert not bool(influence[0].isnan().any())
    alive = [0, 2, 3, 5]
    for count in (kinsight.soft_count, kinsight.hard_count, kinsight.power_count):
        with pytest.warns(ZeroGradientWarning, match=r"\['b', 'e'\]"):
            found = count(kernel, samples)
        assert found.values[[1, 4]].isnan().all()
        expected = count(kernel, Samples(x[alive]))
        assert error(found.values[alive], expected.values) < EXACT
        assert set(found.order().tolist()) == set(alive)
    with pytest.warns(ZeroGradientWarning):
        found = kinsight.neighbors(kernel, samples, samples, 5)
    assert all(not {"b", "e"} & set(row) for row in found.ids)
    assert found.ids[1] == ()
    with pytest.warns(ZeroGradientWarning):
        suspects = kinsight.label_suspects(kernel, samples)
    assert suspects.all_scores[[1, 4]].isnan().all()


def test_a_whole_batch_of_zero_gradients_spoils_nothing() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    x[2:4] = 0
    kernel = GradientKernel(Dead().double(), batch_size=2)
    alive = [0, 1, 4, 5]
    with pytest.warns(ZeroGradientWarning):
        found = kinsight.power_count(kernel, x, power=2)
    assert error(found.values[alive], kinsight.power_count(kernel, x[alive], power=2).values) < EXACT


@pytest.mark.usefixtures("without_type_checks")
def test_unknown_options_are_named() -> None:
    kernel = GradientKernel(ZOO[0].model())
    samples = Samples(ZOO[0].batch(4), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(UnknownNameError, match="'clustering' is unknown"):
        kinsight.label_suspects(kernel, samples, task="clustering")
    with pytest.raises(UnknownNameError, match="method 'guess' is unknown"):
        kinsight.label_suspects(kernel, samples, method="guess")
    with pytest.raises(UnknownNameError, match="'sideways' is unknown"):
        kinsight.soft_count(kernel, samples, route="sideways")
    with pytest.raises(UnknownNameError, match="normalization 'round' is unknown"):
        kinsight.soft_count(kernel, samples, normalization="round")
