"""Every way of being wrong that a user can reach gets an error that says what, why, and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kinsight import outputs
from kinsight.errors import (
    EmptyDataError,
    IndependentOutputError,
    InputError,
    ModelCallError,
    ModelError,
    NonFiniteError,
    NoParametersError,
    OutputCountError,
    SampleTypeError,
    ShapeError,
    TargetError,
    UncapturedParameterError,
    UnknownNameError,
)
from kinsight.kernel import GradientKernel
from kinsight.samples import Batch
from tests.plain import X, linear
from tests.zoo import ZOO


def test_every_error_is_also_the_builtin_a_caller_expects() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(ModelError, RuntimeError)
    assert issubclass(SampleTypeError, TypeError)
    assert issubclass(UnknownNameError, LookupError)
    assert issubclass(NonFiniteError, ArithmeticError)


def test_empty_batches() -> None:
    kernel = GradientKernel(linear())
    with pytest.raises(EmptyDataError, match="0 samples"):
        kernel.gradients(torch.empty(0, 3))
    with pytest.raises(EmptyDataError, match="0 samples"):
        kernel(torch.empty(0, 3))
    kernel(X)
    with pytest.raises(EmptyDataError, match="4 x 0 samples"):
        kernel(X, torch.empty(0, 3))


def test_sizes_have_to_be_positive() -> None:
    with pytest.raises(InputError, match=r"batch_size is 0: it has to be a whole number"):
        GradientKernel(linear(), batch_size=0)
    with pytest.raises(InputError, match=r"max_bytes is -1: it has to be a whole number"):
        GradientKernel(linear(), max_bytes=-1)


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


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 6, "bad size"
        return self.body(x)


def test_assertions_in_models_and_output_functions() -> None:
    with pytest.raises(ModelCallError, match=r"Fails raised AssertionError on a batch of float32 \[3 5\]: bad size"):
        GradientKernel(Fails())(torch.randn(3, 5))
    with pytest.raises(SampleTypeError, match=r"raised RuntimeError on what the model returned, a Tensor: shape"):
        GradientKernel(nn.Linear(5, 2), lambda returned: returned.view(3, 7))(torch.randn(3, 5))


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


def test_estimates_are_for_estimates() -> None:
    with pytest.raises(InputError, match="One probe gives no standard error"):
        GradientKernel(linear(), outputs.probes(k=1)).estimate(X)
    with pytest.raises(UnknownNameError, match="'logits' is exact"):
        GradientKernel(linear()).estimate(X)
