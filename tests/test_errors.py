"""Every way of being wrong that a user can reach gets an error that says what, why, and what to do."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from kinsight import outputs, reference
from kinsight.errors import (
    EmptyDataError,
    IndependentOutputError,
    InputError,
    MixedSamplesError,
    ModelCallError,
    ModelError,
    NonFiniteError,
    NoParametersError,
    OutputCountError,
    SampleTypeError,
    ShapeError,
    StochasticModelError,
    TargetError,
    UncapturedParameterError,
    UnknownNameError,
)
from kinsight.kernel import GradientKernel
from kinsight.samples import Batch, as_batch
from tests.zoo import ZOO, Lambda


def linear(c: int = 2) -> nn.Module:
    return nn.Linear(3, c)


X = torch.ones(4, 3)


def test_empty_batches() -> None:
    kernel = GradientKernel(linear())
    with pytest.raises(EmptyDataError, match="0 samples"):
        kernel.gradients(torch.empty(0, 3))
    with pytest.raises(EmptyDataError, match="0 samples"):
        kernel(torch.empty(0, 3))
    kernel(X)
    with pytest.raises(EmptyDataError, match="4 x 0 samples"):
        kernel(X, torch.empty(0, 3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_outputs_that_are_not_finite_are_named_by_id(value: float) -> None:
    x = X.clone()
    x[2, 1] = value
    with pytest.raises(NonFiniteError, match=r"outputs of 1 of 4 samples are nan or inf: \['c'\]"):
        GradientKernel(linear())(Batch(x, tuple("abcd")))


def test_gradients_that_are_not_finite_are_named_by_id() -> None:
    model = nn.Sequential(nn.Linear(3, 1, bias=False), Lambda(lambda x: x.sqrt()))
    model[0].weight.data.fill_(1.0)
    x = X.clone()
    x[1] = 0  # sqrt has an infinite slope here, times inputs 0: nan
    for question in (lambda k, b: k(b), lambda k, b: k.similarity(b), lambda k, b: k.blocks(b)):
        with pytest.raises(NonFiniteError, match=r"gradients of 1 of 4 samples are nan or inf: \['b'\]"):
            question(GradientKernel(model, check="never"), Batch(x, tuple("abcd")))


def test_sizes_have_to_be_positive() -> None:
    with pytest.raises(InputError, match=r"batch_size is 0: at least one sample"):
        GradientKernel(linear(), batch_size=0)
    with pytest.raises(InputError, match=r"max_bytes is -1: at least one sample"):
        GradientKernel(linear(), max_bytes=-1)


def test_models_without_parameters() -> None:
    with pytest.raises(NoParametersError, match=r"No parameter of ReLU .* it has 0"):
        GradientKernel(nn.ReLU())
    frozen = linear().requires_grad_(False)
    with pytest.raises(NoParametersError, match=r"it has 2, of which 2 are frozen.*parameters=lambda name: True"):
        GradientKernel(frozen)
    GradientKernel(frozen, parameters=lambda name: True)(X)
    with pytest.raises(NoParametersError, match=r"have no size yet: 'weight', 'bias'. Call the model once"):
        GradientKernel(nn.LazyLinear(2))
    with pytest.raises(
        UnknownNameError, match=r"no parameter 'head' \(1 of 2 names are unknown\). It has 2: 'weight', 'bias'"
    ):
        GradientKernel(linear(), parameters=["weight", "head"])


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x).detach()


def test_outputs_that_do_not_depend_on_parameters() -> None:
    kernel = GradientKernel(Detached())
    kernel(X)
    assert kernel.routes["b.weight"] == "unused: the output does not depend on it"
    assert bool((kernel.per_layer(X)["b.weight"] == 0).all())
    with pytest.raises(
        IndependentOutputError, match=r"depends on none of the 2 chosen parameters \('b.weight', 'b.bias'"
    ):
        GradientKernel(Detached(), parameters=lambda name: name.startswith("b"))(X)
    with pytest.raises(IndependentOutputError, match="no_grad, or its output detached"):
        GradientKernel(linear(), lambda returned: returned.detach())(X)


def test_models_that_refuse_their_inputs() -> None:
    kernel = GradientKernel(linear())
    with pytest.raises(ModelCallError, match=r"The model Linear raised RuntimeError on a batch of float32 \[4 5\]"):
        kernel(torch.ones(4, 5))
    with pytest.raises(
        ModelCallError, match=r"raised TypeError on a batch of \{pixels: float32 \[4 3\]\}.*as keywords"
    ):
        kernel({"pixels": X})
    with pytest.raises(ModelCallError, match=r"\(float32 \[4 3\], float32 \[4 3\]\).*positional"):
        kernel((X, X))
    with pytest.raises(ModelCallError, match=r"float64 \[4 3\]"):
        kernel(X.double())


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(torch.tanh(x - x.mean(dim=0)))


class SecretlyMixed(nn.Module):
    """Outputs are each sample's own, gradients are not: only the proof can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x + (x - x.detach()).mean(dim=0)


def test_models_that_mix_samples() -> None:
    x = torch.randn(4, 3)
    batch_norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with pytest.raises(MixedSamplesError, match=r"'1' is a BatchNorm1d in training mode.*Call model.eval\(\) first"):
        GradientKernel(batch_norm)(x)
    GradientKernel(batch_norm.eval())(x)
    no_statistics = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)).eval()
    for model in (no_statistics, BatchStatistics()):
        with pytest.raises(MixedSamplesError, match=r"differs by .* between a batch of 4 and one of 2"):
            GradientKernel(model)(x)
    with pytest.raises(MixedSamplesError, match="do not add up"):
        GradientKernel(SecretlyMixed())(x)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + torch.randn(2)


def test_models_that_draw_random_numbers() -> None:
    dropout = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.Linear(3, 2))
    with pytest.raises(
        StochasticModelError, match=r"'1' is a Dropout with dropout 0.2 in training mode.*model.eval\(\)"
    ):
        GradientKernel(dropout)(X)
    GradientKernel(dropout.eval())(X)
    attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    with pytest.raises(StochasticModelError, match=r"'self_attn' is a MultiheadAttention with dropout 0.1"):
        GradientKernel(attention, outputs.pooled(channel_axis=2))(torch.randn(2, 3, 4))
    with pytest.raises(StochasticModelError, match="drew random numbers"):
        GradientKernel(Noisy())(X)


def test_too_many_outputs_are_refused_with_their_price() -> None:
    model = linear(40)
    pattern = r"c = 40 entries a sample \(limit 32\): 40 backward passes a batch, up to 25.6 kB of gradients a sample"
    with pytest.raises(OutputCountError, match=pattern):
        GradientKernel(model)(X)
    with pytest.raises(OutputCountError, match=r"probes\(k=16, seed=0\).*'one_vs_rest'.*max_outputs=40"):
        GradientKernel(model)(X)
    assert GradientKernel(model, max_outputs=40)(X).shape == (4, 4)
    assert GradientKernel(model, outputs.probes(k=16))(X).shape == (4, 4)
    assert GradientKernel(model, "one_vs_rest")(X).shape == (4, 4)


def test_outputs_of_a_wrong_shape_or_kind() -> None:
    dense = nn.Conv2d(3, 2, 1)
    images = torch.ones(2, 3, 4, 5)
    with pytest.raises(ShapeError, match=r"'logits' gave \[2 2 4 5\] for 2 samples.*pooled\('mean'\)"):
        GradientKernel(dense)(images)
    for over in ("mean", "sum", "center", lambda maps: maps.amax((2, 3))):
        assert GradientKernel(dense, outputs.pooled(over)).outputs(images).shape == (2, 2)
    with pytest.raises(ShapeError, match=r"has no positions"):
        GradientKernel(linear(), "pooled")(X)
    with pytest.raises(ShapeError, match=r"\[3 4\].*axis 0 must be the samples"):
        GradientKernel(linear(3), lambda returned: returned.T)(X)
    with pytest.raises(ShapeError, match=r"torch.int64: only real floating-point"):
        GradientKernel(linear(), lambda returned: returned.argmax(1))(X)
    with pytest.raises(ShapeError, match="needs class scores"):
        GradientKernel(linear(1), "log_probs")(X)
    with pytest.raises(ShapeError, match="class index 5 is out of range: the model gives 2"):
        GradientKernel(linear(), outputs.one_vs_rest(class_index=5))(X)
    with pytest.raises(UnknownNameError, match=r"output='softmax' is unknown. Known: logits, "):
        GradientKernel(linear(), "softmax")


@pytest.mark.usefixtures("without_type_checks")
def test_arguments_of_a_wrong_kind() -> None:
    with pytest.raises(SampleTypeError, match="gave a tuple, not a tensor"):
        GradientKernel(linear(), lambda returned: (returned,))(X)
    with pytest.raises(SampleTypeError, match="model is a function"):
        GradientKernel(lambda x: x)
    with pytest.raises(SampleTypeError, match="output is a int: pass a name"):
        GradientKernel(linear(), 3)
    with pytest.raises(UnknownNameError, match="loss kind 'hinge' is unknown"):
        GradientKernel(linear(), outputs.loss("hinge"))(Batch(X, targets=torch.tensor([0, 1, 1, 0])))
    with pytest.raises(UnknownNameError, match="pooled over 'max' is unknown"):
        GradientKernel(nn.Conv2d(3, 2, 1), outputs.pooled("max"))(torch.ones(2, 3, 4, 5))


def test_what_a_model_returns_is_unwrapped_or_listed() -> None:
    for returned, fields in (
        ({"scores": X}, r"dict with fields 'scores', and no 'logits'"),
        ((X, None), r"tuple of 2: Tensor, NoneType, and no 'logits'"),
    ):
        with pytest.raises(SampleTypeError, match=fields):
            outputs.unwrap(returned)
    assert outputs.unwrap({"logits": X}) is X


def test_losses_need_targets() -> None:
    kernel = GradientKernel(linear(), "loss")
    with pytest.raises(TargetError, match="this batch has none"):
        kernel(X)
    x = torch.randn(4, 3)
    targets = torch.tensor([0, 1, 1, 0])
    model = linear().double()
    kernel = GradientKernel(model, "loss")
    found = kernel(Batch(x.double(), targets=targets))
    gradients = []
    for row, target in zip(x.double(), targets, strict=True):
        value = nn.functional.cross_entropy(model(row[None]), target[None])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))]))
    truth = torch.stack(gradients) @ torch.stack(gradients).T
    assert torch.allclose(found, truth, rtol=1e-12)
    with pytest.raises(ShapeError, match=r"returned \[4 2\] and the targets are \[4\]"):
        GradientKernel(linear(), outputs.loss("mse"))(Batch(X, targets=torch.ones(4)))
    assert GradientKernel(linear(), outputs.loss("mse"))(Batch(X, targets=torch.ones(4, 2))).shape == (4, 4)
    own = outputs.loss(lambda returned, t: (returned[:, 0] - t) ** 2)
    assert GradientKernel(linear(), own)(Batch(X, targets=torch.ones(4))).shape == (4, 4)


def test_parameters_without_a_rule_are_refused_without_fallback() -> None:
    case = next(case for case in ZOO if case.name == "two inputs")
    with pytest.raises(
        UncapturedParameterError,
        match=r"1 of 6 parameters have no layer rule \('meet.weight': no layer rule for 'Trilinear'\).*leave out 37.2%",
    ):
        GradientKernel(case.model(), fallback=False)(case.batch(3))


def test_reentrant_checkpoints_are_refused() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, *, reentrant: bool) -> None:
            super().__init__()
            self.body, self.head, self.reentrant = nn.Linear(3, 3), nn.Linear(3, 1), reentrant

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone().requires_grad_() if self.reentrant else x
            return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=self.reentrant))

    torch.manual_seed(0)
    x = torch.randn(4, 3)
    with pytest.raises(ModelError, match="use_reentrant=True, which hides its parameters"):
        GradientKernel(Checkpointed(reentrant=True))(x)
    model = Checkpointed(reentrant=False)
    plain = nn.Sequential(model.body, model.head)
    assert torch.allclose(GradientKernel(model)(x), GradientKernel(plain)(x))


def test_reentrant_checkpoints_on_the_first_block_are_refused_too() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=True))

    with pytest.raises(ModelError, match="use_reentrant=True, which hides its parameters"):
        GradientKernel(Checkpointed())(X)


class WritesIntoItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.body.weight.mul_(0.9)
        return self.body(x)


class WritesUnseen(WritesIntoItself):
    def forward(self, x: Tensor) -> Tensor:
        self.body.weight.data.clamp_(min=0)  # as networks that are to be monotonic do; no version counter moves
        return self.body(x)


def test_models_that_write_into_their_weights_are_refused() -> None:
    ids = torch.tensor([[1, 2], [2, 2]])
    table = nn.Embedding(4, 3, max_norm=0.1)
    before = table.weight.detach().clone()
    with pytest.raises(ModelError, match=r"'0' is an Embedding with max_norm=0.1: every forward pass rewrites"):
        GradientKernel(nn.Sequential(table, nn.Flatten()))(ids)
    assert torch.equal(table.weight, before)
    with pytest.raises(ModelError, match=r"scale_grad_by_freq.*Set it to False"):
        GradientKernel(nn.Sequential(nn.Embedding(4, 3, scale_grad_by_freq=True), nn.Flatten()))(ids)
    with pytest.raises(ModelError, match=r"wrote into 1 of the model's parameters: \['body.weight'\]"):
        GradientKernel(WritesIntoItself())(X)
    with pytest.raises(ModelError, match=r"wrote into 1 of the model's parameters: \['body.weight'\]"):
        GradientKernel(WritesUnseen())(X)


def test_a_model_that_mixes_is_refused_after_one_sample_too() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 5, 2, bias=False), nn.BatchNorm1d(5, track_running_stats=False), nn.Flatten(), nn.Linear(40, 4)
    ).eval()
    x = torch.randn(6, 3, 9)
    kernel = GradientKernel(model)
    kernel(x[:1])
    with pytest.raises(MixedSamplesError, match="one sample's output depends on the others"):
        kernel(x)


class OnlyWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a * self.b] * len(x))


class ByTheMaximum(nn.Module):
    """Scales by the largest input of the batch, as dynamic quantization does: invisible to the sample that holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x / x.abs().amax())


class ByPosition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x)) * (torch.arange(len(x))[:, None] + 1)


@pytest.mark.parametrize("model", [ByTheMaximum(), ByPosition()])
def test_models_that_mix_samples_other_than_the_first(model: nn.Module) -> None:
    x = torch.randn(6, 3)
    x[0, 0] = 10
    with pytest.raises(MixedSamplesError, match="one sample's output depends on the others"):
        GradientKernel(model)(x)


class Sorted(nn.Module):
    """Sorts its samples, works, and sorts them back, without any node in the graph that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        hidden = self.head(torch.tanh(self.body(x[order])))
        result: list[Tensor] = [hidden[0]] * len(x)
        for place, sample in enumerate(order.tolist()):
            result[sample] = hidden[place]
        return torch.stack(result)


class Permuted(Sorted):
    """The same with permutation matrices."""

    def forward(self, x: Tensor) -> Tensor:
        permutation = nn.functional.one_hot(x[:, 0].argsort()).to(x)
        return permutation.T @ self.head(torch.tanh(self.body(permutation @ x)))


class Looked(Sorted):
    """The same by looking rows up in the sorted ones."""

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return nn.functional.embedding(order.argsort(), self.head(torch.tanh(self.body(x[order]))))


class Masked(Sorted):
    """The same by a mask, a product and a sum: nothing but arithmetic."""

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        mask = nn.functional.one_hot(order.argsort()).to(x)
        return (mask[:, :, None] * self.head(torch.tanh(self.body(x[order])))[None]).sum(1)


@pytest.mark.parametrize("kind", [Sorted, Permuted, Looked, Masked])
def test_layouts_that_change_with_the_data(kind: type[Sorted]) -> None:
    model = kind().double()
    x = torch.randn(6, 4, dtype=torch.float64)
    kernel = GradientKernel(model, batch_size=6)
    kernel(x[x[:, 0].argsort()])
    plain = nn.Sequential(model.body, nn.Tanh(), model.head)
    assert torch.allclose(kernel(x), GradientKernel(plain)(x), rtol=1e-10)


class LastToken(nn.Module):
    """Time first, pooled at the last token by a mask: the first batch's gradients fit several layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out, self.head = nn.Embedding(9, 8), nn.GRU(8, 8), nn.Linear(8, 5), nn.Linear(5, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        hidden = torch.tanh(self.out(self.rnn(self.embed(tokens.T))[0]))
        last = nn.functional.one_hot(lengths - 1, tokens.shape[1]).T.to(hidden)
        return self.head((hidden * last[..., None]).sum(0))


@pytest.mark.parametrize(("first", "second"), [([1, 2, 3, 4], [4, 2, 4, 1]), ([4, 4, 4, 4], [1, 3, 2, 2])])
def test_layouts_that_one_batch_cannot_tell_apart(first: list[int], second: list[int]) -> None:
    model = LastToken().double()
    tokens = torch.randint(0, 9, (4, 4))
    kernel, fresh = GradientKernel(model, batch_size=4), GradientKernel(model, batch_size=1)
    kernel((tokens, torch.tensor(first)))
    assert torch.allclose(kernel((tokens, torch.tensor(second))), fresh((tokens, torch.tensor(second))), rtol=1e-10)


class DoublePrecisionHead(nn.Module):
    """Float32 inside, float64 outside, as root mean squares computed in float32 do it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return self.head(hidden * hidden.float().square().mean(-1, keepdim=True).rsqrt().double())


def test_mixed_precision_is_judged_by_its_coarsest_part() -> None:
    x = torch.randn(5, 3)
    model = linear()
    assert torch.allclose(GradientKernel(model, lambda z: z.double())(x), GradientKernel(model)(x), rtol=1e-5)
    model, x = DoublePrecisionHead().double(), x.double()
    kernel = GradientKernel(model)
    truth = reference.per_sample_gradients(model, as_batch(x), kernel.output, kernel.parameters)
    assert torch.allclose(kernel(x), reference.kernel(truth, truth), rtol=1e-5)
    assert all(route.startswith("rule") for route in kernel.routes.values())


class OnSpectra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.fft.rfft(x) * self.weight + self.shift).abs()[:, :3]


def test_real_weights_on_complex_data() -> None:
    model, x = OnSpectra().double(), torch.randn(5, 8, dtype=torch.float64)
    kernel = GradientKernel(model)
    truth = reference.per_sample_gradients(model, as_batch(x), kernel.output, kernel.parameters)
    assert torch.allclose(kernel(x), reference.kernel(truth, truth), rtol=1e-10)
    complex_weight = nn.Module()
    complex_weight.register_parameter("w", nn.Parameter(torch.randn(3, dtype=torch.complex64)))
    with pytest.raises(UncapturedParameterError, match=r"1 of 1 chosen parameters are complex: 'w'"):
        GradientKernel(complex_weight)


class Prototypes(nn.Module):
    """torch's vmap of cdist is wrong: the proof sends it on to one sample at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.prototypes)


def test_what_vmap_gets_wrong_goes_one_sample_at_a_time() -> None:
    model, x = Prototypes().double(), torch.randn(5, 3, dtype=torch.float64)
    kernel = GradientKernel(model)
    truth = reference.per_sample_gradients(model, as_batch(x), kernel.output, kernel.parameters)
    assert torch.allclose(kernel(x), reference.kernel(truth, truth), rtol=1e-10)


class Remembers(nn.Module):
    """Rebinds buffers, counts, keeps tensors: none of it may survive."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.table = nn.Linear(3, 2), nn.Parameter(torch.randn(5, 2))
        self.register_buffer("mean", torch.zeros(3))
        self.n_calls, self.last = 0, None
        self.log: list[int] = []
        self.nested = {"seen": [{1}]}

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean + 1
        self.n_calls += 1
        self.last = self.body(x)
        self.log.append(self.n_calls)
        self.nested["seen"][0].add(self.n_calls)
        return self.last + self.table[torch.tensor([1, 1])].sum(dim=0)


def test_what_a_model_keeps_comes_back() -> None:
    model = Remembers()
    mean = model.mean
    kernel = GradientKernel(model)
    kernel(X)
    assert model.mean is mean
    assert bool((mean == 0).all())
    assert (model.n_calls, model.last) == (0, None)
    assert model.log == []
    assert model.nested == {"seen": [{1}]}
    model(X)
    assert model.n_calls == 1
    pruned = prune.l1_unstructured(nn.Linear(3, 2), "weight", amount=2)
    GradientKernel(nn.Sequential(pruned, Prototypes2()))(X)
    assert pruned.weight is not None
    pruned(X)


class Prototypes2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[torch.tensor([1, 1])].sum(dim=0)


def test_outputs_that_are_nearly_dependent_in_float32() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def nearly_dependent(z: Tensor) -> Tensor:
        return torch.stack([z[:, 0], z[:, 0] + 1e-4 * z[:, 1], z[:, 2]], dim=1)

    x = torch.randn(6, 4)
    single = GradientKernel(model, nearly_dependent)
    found = single.similarity(x)
    loop = reference.per_sample_gradients(model, as_batch(x), single.output, single.parameters)
    model.double()
    double = GradientKernel(model, nearly_dependent)
    truth = reference.per_sample_gradients(model, as_batch(x.double()), double.output, double.parameters)
    exact = reference.similarity(truth, truth)
    error = float((found - exact).norm() / exact.norm())
    assert error < max(2e-4, 2 * float((reference.similarity(loop, loop) - exact).norm() / exact.norm()))


def test_outputs_made_of_weights_alone() -> None:
    model = OnlyWeights().double()
    norm = float(model.a.detach().square().sum() + model.b.detach().square().sum())
    assert torch.allclose(GradientKernel(model)(X), torch.full((4, 4), norm / 2, dtype=torch.float64))


class RolledKeys(nn.Module):
    """The key bias of attention, on a generic path: its true gradient is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.b = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        keys = torch.addcmul(self.k(x), self.b, torch.ones(4).to(x))
        return ((self.q(x) @ keys.transpose(1, 2)).softmax(-1) @ self.v(x)).mean(1)


def test_a_gradient_that_is_zero_by_symmetry_is_no_fault() -> None:
    kernel = GradientKernel(RolledKeys().double())
    kernel(torch.randn(5, 3, 4, dtype=torch.float64))
    assert kernel.routes["b"].startswith("vmap")


class WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.table = nn.Linear(3, 3), nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.body(x)[:, :2] + self.table[torch.tensor([1, 1])].sum(dim=0)


def test_the_users_data_stay_as_they_are() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    model = WritesIntoItsInput().double()
    kernel = GradientKernel(model)
    with torch.inference_mode():
        kernel(x), kernel.similarity(x), kernel.outputs(x)
    assert torch.equal(x, before)
    assert x.grad is None
    shares = kernel.per_layer(x)
    assert torch.allclose(shares["body.weight"], 4 * before @ before.T)
    assert torch.allclose(shares["table"], torch.full((4, 4), 4.0, dtype=torch.float64))


def test_estimates_are_for_estimates() -> None:
    with pytest.raises(InputError, match="One probe gives no standard error"):
        GradientKernel(linear(), outputs.probes(k=1)).estimate(X)
    with pytest.raises(UnknownNameError, match="'logits' is exact"):
        GradientKernel(linear()).estimate(X)


def test_every_error_is_also_the_builtin_a_caller_expects() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(ModelError, RuntimeError)
    assert issubclass(SampleTypeError, TypeError)
    assert issubclass(UnknownNameError, LookupError)
    assert issubclass(NonFiniteError, ArithmeticError)
