"""SimilarityLoss: its gradient is that of brute-force double backward, on every model; one step raises similarity."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kinsight
from kinsight.batches import Batch, as_batch
from kinsight.errors import NonFiniteError, SecondDerivativeError, SlowAttentionWarning
from kinsight.live import peak_bytes
from kinsight.outputs import pooled
from kinsight.training.pairs import grouped
from tests.losses import EXACT, LABELS, brute_force, far, gradients_of, inputs, mean_alike, network
from tests.zoo import ZOO, Case

CASES = [(case, output) for case in ZOO for output in case.outputs]


@pytest.mark.parametrize(("case", "output"), CASES, ids=lambda each: getattr(each, "name", each))
@pytest.mark.filterwarnings("ignore::kinsight.errors.SlowAttentionWarning")
def test_the_gradient_on_every_model(case: Case, output: Any) -> None:
    model, batch = case.model(), case.batch(4)
    output = pooled("mean") if output == "pooled" else output
    groups = torch.tensor([0, 1, 0, 1])
    truth = brute_force(model, batch, output, "flat", mean_alike(groups))
    loss = kinsight.SimilarityLoss(model, output, weight=1.0, route="pairs", pairs=_halves)
    for _ in range(2):  # proved, and remembered
        assert far(gradients_of(model, loss(batch)), truth) < EXACT
    by_parts = kinsight.SimilarityLoss(model, output, weight=1.0, route="groups", batch_size=3, pairs=_halves)
    assert far(gradients_of(model, by_parts(batch)), truth) < EXACT


def _halves(batch: kinsight.Batch) -> Tensor:
    return torch.arange(len(batch)) % 2


@pytest.mark.parametrize("output", ["logits", "one_vs_rest", "log_probs"])
@pytest.mark.parametrize("normalization", ["flat", "whitened"])
@pytest.mark.parametrize("route", ["pairs", "groups"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_both_routes_against_brute_force(output: str, normalization: str, route: str, batch_size: int | None) -> None:
    if (output, normalization) == ("log_probs", "whitened"):
        output = "centered_logits"  # singular, too: compared with differences below
    model, x = network(), inputs()
    loss = kinsight.SimilarityLoss(
        model, output, weight=1.0, normalization=normalization, route=route, batch_size=batch_size
    )
    value = loss(x, LABELS)
    similarities = kinsight.GradientKernel(model, output)
    block = similarities.flat_similarity(x) if normalization == "flat" else similarities.similarity(x)
    assert float(value.detach()) == pytest.approx(float(mean_alike(LABELS)(block)), rel=1e-9)
    ours = gradients_of(model, value)
    if output != "centered_logits":
        assert far(ours, brute_force(model, x, output, normalization, mean_alike(LABELS))) < EXACT
    assert far([directional(model, lambda: loss(x, LABELS))], [along(model, ours)]) < 1e-6


def directional(model: nn.Module, value: Callable[[], Tensor], step: float = 1e-5) -> Tensor:
    """Derivative along a fixed direction, from central differences."""
    generator = torch.Generator().manual_seed(5)
    moves = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in model.parameters()]
    found = []
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), moves, strict=True):
                parameter += sign * step * move
            found.append(value())
    with torch.no_grad():
        for parameter, move in zip(model.parameters(), moves, strict=True):
            parameter += step * move
    return (found[0] - found[1]) / (2 * step)


def along(model: nn.Module, gradients: list[Tensor | None]) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    moves = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in model.parameters()]
    return sum(
        ((g * m).sum() for g, m in zip(gradients, moves, strict=True) if g is not None), torch.zeros(()).double()
    )


@pytest.mark.parametrize("batch_size", [None, 2])
def test_pairs_that_are_apart(batch_size: int | None) -> None:
    model, x = network(1), inputs()
    margin = 0.2
    apart = (LABELS[:, None] != LABELS).double().triu(1)

    def cost(similarities: Tensor) -> Tensor:
        return mean_alike(LABELS)(similarities) + 0.7 * (apart * (similarities - margin).relu()).sum() / apart.sum()

    loss = kinsight.SimilarityLoss(model, weight=1.0, dissimilar_weight=0.7, margin=margin, batch_size=batch_size)
    value = loss(x, LABELS)
    assert far(gradients_of(model, value), brute_force(model, x, "logits", "flat", cost)) < EXACT
    assert loss.last is not None
    assert (loss.last.n_alike, loss.last.n_apart) == (4, 11)
    listed = kinsight.SimilarityLoss(model, weight=1.0, dissimilar_weight=1.0, margin=-1.0)
    assert far(
        gradients_of(model, listed(x, pairs=[[0, 1], [0, 1], [2, 3]], dissimilar=[[4, 5]])),
        brute_force(
            model, x, "logits", "flat", lambda k: 1 - (2 * k[0, 1] + k[2, 3]) / 3 + (k[4, 5] + 1)
        ),
    ) < EXACT  # fmt: skip


# ------------------------------------------------------------------------------------------------- the sign


@pytest.mark.parametrize("route", ["pairs", "groups"])
@pytest.mark.parametrize("output", ["logits", "one_vs_rest"])
def test_one_step_makes_what_is_alike_more_similar(route: str, output: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        loss = kinsight.SimilarityLoss(model, output, weight=1.0, route=route)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        seen = []
        for _ in range(2):
            optimizer.zero_grad()
            loss(inputs(), LABELS).backward()
            optimizer.step()
            assert loss.last is not None
            seen.append(loss.last.similarity)
        assert seen[1] > seen[0]


def test_one_step_moves_apart_what_is_apart() -> None:
    model = network(1)
    loss = kinsight.SimilarityLoss(model, weight=1.0, dissimilar_weight=100.0, margin=-1.0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        loss(inputs(), LABELS).backward()
        optimizer.step()
        assert loss.last is not None
        seen.append(loss.last.excess)
    assert seen[1] < seen[0]


# --------------------------------------------------------------------------------------------------- attention


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v).mean(dim=1))


def test_attention_takes_the_path_that_has_second_derivatives_and_says_so() -> None:
    torch.manual_seed(0)
    model, x = Attentive().double(), torch.randn(6, 5, 4, dtype=torch.float64)
    loss = kinsight.SimilarityLoss(model, weight=1.0)
    with pytest.warns(SlowAttentionWarning, match="by matrix products"):
        value = loss(x, LABELS)
    ours = gradients_of(model, value)
    assert far(ours, brute_force(model, x, "logits", "flat", mean_alike(LABELS))) < EXACT
    loss(x, LABELS)  # said once


@pytest.mark.parametrize(
    "layer", [nn.MultiheadAttention(4, 2, batch_first=True), nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)]
)
def test_attention_inside_of_torch_modules_is_seen(layer: nn.Module) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = layer, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            mixed = self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
            return self.out(mixed.mean(dim=1))

    with pytest.warns(SlowAttentionWarning, match="by matrix products"):
        kinsight.SimilarityLoss(Model().double())(torch.randn(6, 5, 4, dtype=torch.float64), LABELS)


class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent * ctx.saved_tensors[0].cos()


class WithFunction(nn.Module):
    def __init__(self, function: type[torch.autograd.Function], *, is_last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.is_last, self.first, self.last = function, is_last, nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_last:
            return self.function.apply(self.last(self.first(x)))
        return self.last(self.function.apply(self.first(x)))


def test_what_cannot_be_differentiated_twice_is_named() -> None:
    loss = kinsight.SimilarityLoss(WithFunction(OnlyOnce, is_last=False).double())
    with pytest.raises(SecondDerivativeError, match="once, but not twice: a function marked @once_differentiable"):
        loss(inputs(), LABELS)


class Opaque(torch.autograd.Function):
    """As kernels of one's own are: what is passed back lies in new memory, which autograd takes for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        found = torch.empty_like(cotangent)
        found.data.copy_(cotangent * ctx.saved_tensors[0].cos())
        return found


class Followed(Opaque):
    """The same, followed by autograd."""

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("is_last", [True, False])
def test_a_backward_pass_that_autograd_takes_for_a_constant_is_refused(is_last: bool) -> None:
    loss = kinsight.SimilarityLoss(WithFunction(Opaque, is_last=is_last).double())
    for _ in range(2):
        with pytest.raises(SecondDerivativeError, match="backward pass of Opaque gives numbers that autograd does not"):
            loss(inputs(), LABELS)
    model = WithFunction(Followed, is_last=is_last).double()
    ours = gradients_of(model, kinsight.SimilarityLoss(model, weight=1.0)(inputs(), LABELS))
    assert far(ours, brute_force(model, inputs(), "logits", "flat", mean_alike(LABELS))) < EXACT


class Rooted(nn.Module):
    """Its derivative is finite at 0, and changes there infinitely fast."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5, bias=False), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).abs().pow(1.5))


def test_a_gradient_that_is_not_finite_is_no_gradient() -> None:
    loss = kinsight.SimilarityLoss(Rooted().double())
    x = inputs()
    x[0] = 0
    with pytest.raises(NonFiniteError, match=r"gradient of the loss over 1 parameters is nan or inf: \['first.weight"):
        loss(x, LABELS)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(9, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bag(x).tanh())


def test_what_torch_cannot_differentiate_twice_is_named() -> None:
    loss = kinsight.SimilarityLoss(Bag(), parameters=["bag.weight", "last.weight"])
    with pytest.raises(SecondDerivativeError, match=r"once, but not twice: .*_embedding_bag"):
        loss(torch.randint(9, (6, 3)), LABELS)


# ------------------------------------------------------------------------------------------------------ memory


def test_memory_of_groups_does_not_grow_with_the_number_of_pairs() -> None:
    """4 times as many samples, 16 times as many pairs: at most 4 times the memory. Parts bound it altogether."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1)).double()

    def peak(n: int, batch_size: int | None = None) -> int:
        loss = kinsight.SimilarityLoss(model, route="groups", batch_size=batch_size)
        x, groups = inputs(n), torch.zeros(n, dtype=torch.long)
        loss(x[:16], groups=groups[:16])
        with peak_bytes(torch.device("cpu"), [*model.parameters(), x, groups]) as found:
            loss(x, groups=groups).backward()
        return found[0]

    small, large = peak(256), peak(1024)
    assert large < 4.3 * small
    assert peak(1024, batch_size=64) < 0.5 * large


@pytest.mark.parametrize("route", ["pairs", "groups"])
def test_memory_stays_within_what_is_given(route: str) -> None:
    """Many samples, and as many groups as pairs of views: what is held beside the batch stays within the bound."""
    torch.manual_seed(0)
    model, given = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1)).double(), 4 * 2**20

    def peak(n: int) -> int:
        x, groups = inputs(n), torch.arange(n) % (n // 2)
        loss = kinsight.SimilarityLoss(model, route=route, max_bytes=given)
        loss(x[:16], groups=groups[:16] % 8)
        with peak_bytes(torch.device("cpu"), [*model.parameters(), x, groups]) as found:
            loss(x, groups=groups).backward()
        return found[0]

    assert peak(1024) < given


@pytest.mark.parametrize("route", ["pairs", "groups"])
def test_memory_of_whitening_stays_within_what_is_given(route: str) -> None:
    """Gradients are held as they are and mixed, of every output."""
    torch.manual_seed(0)
    model, given = nn.Sequential(nn.Linear(20, 128), nn.Tanh(), nn.Linear(128, 10)), 4 * 2**20
    x, groups = torch.randn(128, 20), torch.arange(128) % 4
    loss = kinsight.SimilarityLoss(model, normalization="whitened", route=route, max_bytes=given)
    loss(x[:8], groups=groups[:8])
    with peak_bytes(torch.device("cpu"), [*model.parameters(), x, groups]) as found:
        loss(x, groups=groups).backward()
    assert found[0] < given


@pytest.mark.parametrize("route", ["pairs", "groups"])
def test_a_step_takes_little_more_memory_than_one_without(route: str) -> None:
    """All pairs of a batch: what is multiplied out, captured and passed on is let go as soon as it is used."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip
    x, y = torch.rand(64, 1, 28, 28), torch.arange(64) % 10
    similarity = kinsight.SimilarityLoss(model, lambda scores: scores[:, 0], route=route)
    groups = torch.zeros(64, dtype=torch.long)
    similarity(x, groups=groups)

    def peak(added: Callable[[], Tensor]) -> int:
        with peak_bytes(torch.device("cpu"), [*model.parameters(), x, y, groups]) as found:
            (nn.functional.cross_entropy(model(x), y) + added()).backward()
        model.zero_grad()
        return found[0]

    assert peak(lambda: similarity(x, groups=groups)) < 2.5 * peak(lambda: torch.zeros(()))


def test_the_first_batch_is_routed_as_all_others() -> None:
    x, groups = inputs(160), torch.arange(160) % 20
    for max_bytes in (120_000, 1_200_000):  # room for the sums of 20 groups of one output; of three
        loss = kinsight.SimilarityLoss(network(), max_bytes=max_bytes, batch_size=80)
        is_by_groups = loss._is_by_groups(as_batch(x), grouped(groups, 160))
        assert is_by_groups == (max_bytes > 200_000)
        loss(x, groups=groups)
        assert is_by_groups == loss._is_by_groups(as_batch(x), grouped(groups, 160))


@pytest.mark.parametrize("route", ["pairs", "groups"])
def test_a_sample_may_be_there_twice(route: str) -> None:
    """Drawn with replacement, or repeated by `take`: two samples, of one id."""
    model, x = network(), inputs(6)
    chosen = torch.tensor([0, 1, 2, 3, 4, 5, 0, 0])
    batch, labels = Batch(x[chosen], tuple(chosen.tolist())), torch.tensor([0, 1, 0, 1, 0, 1, 0, 0])
    found = kinsight.SimilarityLoss(model, route=route)(batch, groups=labels)
    expected = kinsight.SimilarityLoss(model, route=route)(x[chosen], groups=labels)
    assert found.item() == pytest.approx(expected.item())


# ---------------------------------------------------------------------------------------- the ends of float32


class Scaled(nn.Module):
    """Outputs times a number of each sample, which its similarities do not depend on."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.body(x) * scale[:, None]


@pytest.mark.parametrize("route", ["pairs", "groups"])
@pytest.mark.parametrize("normalization", ["flat", "whitened"])
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("is_convolved", [False, True])
def test_gradients_near_the_ends_of_float32(
    route: str, normalization: Any, batch_size: int | None, is_convolved: bool
) -> None:
    """Of some samples 1e-22, or 1e18 (of one sure of its answer, all but nothing is left): units are the same."""
    torch.manual_seed(0)
    bodies = nn.Sequential(nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)), network().float()
    body = bodies[0 if is_convolved else 1]
    x, labels = torch.randn(6, 1, 4) if is_convolved else torch.randn(6, 4), torch.tensor([0, 1, 0, 0, 1, 0])
    scale = torch.tensor([1, 1, 1, 1e-22, 1e-22, 1e18])
    truth = brute_force(body.double(), x.double(), "logits", normalization, mean_alike(labels))
    model = Scaled(body.float())
    loss = kinsight.SimilarityLoss(
        model, weight=1.0, route=route, normalization=normalization, batch_size=batch_size, max_bytes=2**28
    )
    assert far(gradients_of(model, loss((x, scale), labels)), truth) < 1e-4


@pytest.mark.parametrize("route", ["pairs", "groups"])
def test_samples_that_a_network_is_sure_of(route: str) -> None:
    """A sigmoid at its end: gradients of 1e-20 to 1, as a network has them that knows its training set by heart."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Sigmoid())
    with torch.no_grad():
        net[2].weight.mul_(25)
        net[2].bias -= 40
    x, groups = 3 * torch.randn(16, 2), [0] * 16
    ours = gradients_of(net, kinsight.SimilarityLoss(net, weight=1.0, route=route)(x, groups=groups))
    truth = brute_force(net.double(), x.double(), "logits", "flat", mean_alike(torch.tensor(groups)))
    assert far(ours, truth) < 1e-3
