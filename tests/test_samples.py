"""Samples give the same sample for the same id, whatever they are read from and however they are batched."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

import kinsight
from kinsight.errors import InputError, SampleTypeError, ShapeError, TargetError, UnknownNameError
from kinsight.samples import Batch, Samples, as_batch, concatenate, n_samples
from tests.datasets import Flow, Items, N, NotADataset, X, Y, pairs


def doubled(items: list[Any]) -> dict[str, Tensor]:
    return {"x": torch.stack([x for x, _ in items]) * 2, "labels": torch.stack([y for _, y in items])}


# Everything that gives the inputs X and the targets Y, one way or another.
SAME = {
    "tensor": lambda: Samples(X, Y),
    "array": lambda: Samples(X.numpy(), Y.numpy()),
    "targets as a list": lambda: Samples(X, Y.tolist()),
    "Dataset": lambda: Samples(pairs()),
    "Dataset of lists": lambda: Samples(Items(lambda i: [X[i], int(Y[i])])),
    "Dataset of arrays": lambda: Samples(Items(lambda i: (X[i].numpy(), Y[i].numpy()))),
    "Dataset, unpacked": lambda: Samples(Items(lambda i: ("?", Y[i], X[i])), unpack=lambda it: (it[2], it[1])),
    "Dataset with targets given": lambda: Samples(TensorDataset(X), Y),
    "what looks like a Dataset": lambda: Samples(NotADataset()),
    "Subset": lambda: Samples(Subset(TensorDataset(X.flip(0), Y.flip(0)), range(N - 1, -1, -1))),
    "DataLoader": lambda: Samples(DataLoader(pairs(), batch_size=4)),
    "DataLoader, unpacked": lambda: Samples(
        DataLoader(TensorDataset(X, X, Y), batch_size=4), unpack=lambda found: (found[0], found[2])
    ),
    "DataLoader with workers": lambda: Samples(DataLoader(pairs(), batch_size=4, num_workers=1)),
    "DataLoader of an IterableDataset": lambda: Samples(DataLoader(Flow(), batch_size=4)),
    "DataLoader without batches": lambda: Samples(
        DataLoader(Items(lambda i: (X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4]), n=3), batch_size=None)
    ),
    "DataLoader with a batch sampler": lambda: Samples(
        DataLoader(pairs(), batch_sampler=[[0, 1], [2], list(range(3, N))])
    ),
    "batches": lambda: Samples([Batch(X[:4], targets=Y[:4]), Batch(X[4:], targets=Y[4:])]),
    "batch": lambda: Samples(Batch(X, targets=Y)),
}


@pytest.fixture(params=SAME)
def same(request: pytest.FixtureRequest) -> Samples:
    return SAME[request.param]()


class TestEverySource:
    @pytest.mark.parametrize("batch_size", [1, 3, 4, N, 100])
    def test_batches_are_the_data_in_order(self, same: Samples, batch_size: int):
        batches = list(same.batches(batch_size))
        sizes = [len(batch) for batch in batches]
        assert sizes == [batch_size] * (N // batch_size) + [N % batch_size] * (N % batch_size > 0)
        assert torch.equal(torch.cat([batch.inputs for batch in batches]), X)
        assert torch.equal(torch.cat([batch.targets for batch in batches]), Y)
        assert [name for batch in batches for name in batch.ids] == list(range(N))

    def test_two_passes_are_the_same(self, same: Samples):
        first, second = (concatenate(list(same.batches(3))) for _ in range(2))
        assert torch.equal(first.inputs, second.inputs)
        assert first.ids == second.ids

    def test_length_ids_targets(self, same: Samples):
        assert len(same) == N
        assert same.ids == tuple(range(N))
        assert torch.equal(same.targets, Y)
        assert same.targets is same.targets

    def test_take(self, same: Samples):
        batch = same.take([7, 0, 7, N - 1])
        assert batch.ids == (7, 0, 7, N - 1)
        assert torch.equal(batch.inputs, X[[7, 0, 7, N - 1]])
        assert torch.equal(batch.targets, Y[[7, 0, 7, N - 1]])
        assert torch.equal(same.take(torch.tensor([2])).inputs, X[2:3])
        assert len(same.take([])) == 0

    def test_first(self, same: Samples):
        few = same.first(5)
        assert len(few) == 5
        assert few.ids == (0, 1, 2, 3, 4)
        assert torch.equal(few.targets, Y[:5])
        assert torch.equal(few.take([4, 1]).inputs, X[[4, 1]])
        for batch_size in (2, 5, 9):
            assert torch.equal(concatenate(list(few.batches(batch_size))).inputs, X[:5])
        assert len(same.first(100)) == len(same) == N
        with pytest.raises(UnknownNameError, match=r"no sample at position 5: there are 5, from 0 to 4"):
            few.take([5])

    @pytest.mark.parametrize("position", [-1, N])
    def test_no_such_position(self, same: Samples, position: int):
        with pytest.raises(UnknownNameError, match=rf"no sample at position {position}: there are 11, from 0 to 10"):
            same.take([0, position])

    def test_answers_do_not_depend_on_the_source(self, same: Samples):
        torch.manual_seed(0)
        kernel = kinsight.GradientKernel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2)))
        counts = kinsight.soft_count(kernel, same)
        assert counts.ids == tuple(range(N))
        torch.testing.assert_close(counts.values, kernel.similarity(X).sum(dim=1), rtol=1e-5, atol=0)

    def test_ids_follow_their_samples(self, same: Samples):
        named = concatenate(list(same.batches()))
        named = Samples([Batch(named.inputs, tuple("abcdefghijk"), named.targets)])
        assert named.ids == tuple("abcdefghijk")
        assert named.take([3, 1]).ids == ("d", "b")
        assert [batch.ids for batch in named.batches(6)] == [tuple("abcdef"), tuple("ghijk")]
        assert named.first(3).ids == ("a", "b", "c")


@given(st.lists(st.integers(0, N - 1), max_size=30), st.integers(1, 15))
def test_any_positions_from_any_rebatching(positions: list[int], loader_batch_size: int):
    samples = Samples(DataLoader(Flow(), batch_size=loader_batch_size))
    assert torch.equal(samples.take(positions).inputs, X[positions])


def test_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    for samples in (Samples(pairs()), Samples(DataLoader(pairs(), num_workers=1)), Samples(X)):
        list(samples.batches(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_wrap():
    samples = Samples(X)
    assert Samples.wrap(samples) is samples
    assert len(Samples.wrap(pairs())) == N


class TestStructure:
    def test_positional_arguments(self):
        samples = Samples((X, Y, 0.5, torch.tensor(2.0), None), targets=Y)
        x, y, scale, shift, nothing = samples.take([3, 1]).inputs
        assert torch.equal(x, X[[3, 1]])
        assert torch.equal(y, Y[[3, 1]])
        assert (scale, shift.item(), nothing) == (0.5, 2.0, None)

    @pytest.mark.parametrize("kind", [dict, UserDict])
    def test_keyword_arguments_give_up_their_labels(self, kind: Callable[[Any], Any]):
        data = kind({"x": X, "labels": Y})
        for batch in (as_batch(data), next(Samples(data).batches(N))):
            assert list(batch.inputs) == ["x"]
            assert torch.equal(batch.targets, Y)
        assert list(data) == ["x", "labels"]

    def test_targets_given_replace_labels(self):
        assert torch.equal(Samples({"x": X, "labels": Y}, targets=Y + 1).targets, Y + 1)
        replaced = Samples(pairs(), targets=Y + 1)
        assert torch.equal(next(replaced.batches(N)).targets, Y + 1)
        assert torch.equal(replaced.take([5]).targets, Y[[5]] + 1)

    @pytest.mark.parametrize("batch_size", [2, 5])
    def test_dicts_of_a_dataset(self, batch_size: int):
        samples = Samples(Items(lambda i: {"x": X[i], "mask": X[i, 0] > 9, "labels": Y[i]}))
        for batch in samples.batches(batch_size):
            assert list(batch.inputs) == ["x", "mask"]
            assert torch.equal(batch.inputs["mask"], X[list(batch.ids), 0] > 9)
        assert torch.equal(samples.targets, Y)

    def test_tuples_of_a_dataset_are_positional_arguments(self):
        samples = Samples(Items(lambda i: ((X[i], X[i] + 1), Y[i])))
        inputs = samples.take([4]).inputs
        assert isinstance(inputs, tuple)
        assert torch.equal(inputs[1], X[[4]] + 1)

    def test_the_collate_function_of_a_loader_is_used(self):
        samples = Samples(DataLoader(pairs(), batch_size=3, collate_fn=doubled))
        assert list(samples.take([5]).inputs) == ["x"]  # labels are given up, as targets
        assert torch.equal(samples.take([5]).inputs["x"], X[[5]] * 2)
        assert torch.equal(samples.targets, Y)

    def test_a_loader_is_read_in_the_order_of_its_sampler(self):
        samples = Samples(DataLoader(pairs(), batch_size=2, sampler=[8, 2, 5]))
        assert torch.equal(samples.take([2, 0]).inputs, X[[5, 8]])
        assert samples.ids == (0, 1, 2)

    def test_nested_and_named(self):
        Pair = namedtuple("Pair", ["a", "b"])
        batch = Batch({"pair": Pair(X, [Y, Y]), "n": 3})[2:4]
        assert isinstance(batch.inputs["pair"], Pair)
        assert torch.equal(batch.inputs["pair"].b[1], Y[2:4])
        assert n_samples(batch.inputs) == 2

    def test_take_reads_only_what_is_asked_for(self):
        dataset = Items(lambda i: (X[i], Y[i]))
        Samples(dataset).take([2, 9])
        assert [i for i, n in enumerate(dataset.n_reads) if n] == [2, 9]

    def test_targets_are_read_in_one_pass(self):
        dataset = Items(lambda i: (X[i], Y[i]))
        samples = Samples(dataset)
        assert torch.equal(samples.targets, samples.targets)
        assert dataset.n_reads == [1] * N

    def test_without_targets_no_pass_is_made(self):
        dataset = Items(lambda i: X[i])
        samples = Samples(dataset, batch_size=2)
        assert samples.targets is None
        assert sum(dataset.n_reads) == 2
        assert Samples(Items(lambda i: (X[i], None))).targets is None


class TestIds:
    def test_kinds(self):
        for ids in (list(range(5, 16)), np.arange(5, 16), torch.arange(5, 16), range(5, 16)):
            assert Samples(X, ids=ids).ids == tuple(range(5, 16))
        assert {type(name) for name in Samples(X, ids=[np.int64(i) for i in range(N)]).ids} == {int}
        assert {type(name) for name in Samples(X, ids=np.array(list("abcdefghijk"))).ids} == {str}

    def test_equal_samples_stay_two(self):
        x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [-1.0, 0.5]])
        samples = Samples(x, ids=["one", "two", "other"])
        assert len(samples) == 3
        assert samples.ids == ("one", "two", "other")
        kernel = kinsight.GradientKernel(torch.nn.Linear(2, 1, bias=False))
        found = kinsight.neighbors(kernel, samples, samples, 1)
        assert found.ids[:2] == (("two",), ("one",))
        assert kinsight.hard_count(kernel, samples, thresholds=0.999).values.tolist() == [2, 2, 1]

    @pytest.mark.parametrize(
        "make", [lambda: X, pairs, lambda: DataLoader(pairs(), batch_size=3), lambda: DataLoader(Flow(), batch_size=3)]
    )
    def test_the_users_ids_name_the_samples(self, make: Callable[[], Any]):
        names = tuple("abcdefghijk")
        samples = Samples(make(), ids=names)
        assert samples.ids == names
        assert [name for batch in samples.batches(4) for name in batch.ids] == list(names)
        batch = samples.take([7, 2])
        assert batch.ids == ("h", "c")
        assert torch.equal(batch.inputs, X[[7, 2]])
        assert samples.first(2).ids == ("a", "b")

    def test_twice_the_same(self):
        with pytest.raises(InputError, match=r"The id 'b' names the samples at positions 1 and 10"):
            Samples(X, ids=list("abcdefghijb"))
        with pytest.raises(InputError, match=r"The id 'a' names the samples at positions 0 and 1"):
            Samples([Batch(X[:1], ("a",)), Batch(X[:1], ("a",))])

    @pytest.mark.parametrize("make", [lambda: X, lambda: pairs(), lambda: DataLoader(Flow(), batch_size=3)])
    def test_too_few(self, make: Callable[[], Any]):
        with pytest.raises(ShapeError, match=r"2 ids for 11 samples"):
            Samples(make(), ids=["a", "b"])
        with pytest.raises(ShapeError, match=r"3 targets for 11 samples"):
            Samples(make(), targets=[1, 2, 3])

    @pytest.mark.parametrize(
        ("name", "kind"), [(0.5, "0.5 is a float"), (True, "True is a bool"), (None, "None is None")]
    )
    def test_no_ids(self, name: Any, kind: str):
        with pytest.raises(SampleTypeError, match=rf"An id has to be an int or a str; {kind}"):
            Samples(X, ids=np.array([name] * N, dtype=object))

    def test_one_string_is_not_a_list_of_ids(self):
        with pytest.raises(SampleTypeError, match=r"ids have to be a sequence of int or str; this is a str"):
            Samples(X, ids="abcdefghijk")


class TestTargets:
    def test_values(self):
        targets = torch.randn(N, 2)
        assert torch.equal(Samples(X, targets).targets, targets)
        assert torch.equal(Samples(TensorDataset(X, targets)).targets, targets)

    def test_names_of_classes(self):
        assert Samples(X, Y, class_names=["a", "b", "c", "d"]).class_names == ("a", "b", "c", "d")
        assert Samples(X).class_names is None

    def test_texts(self):
        with pytest.raises(TargetError, match=r"a list of 11 str is not.*class_names"):
            Samples(X, ["cat"] * N)

    def test_a_single_number(self):
        with pytest.raises(ShapeError, match=r"Targets are a single number"):
            Samples(X, 3)

    def test_targets_that_are_no_tensor(self):
        with pytest.raises(TargetError, match=r"Targets have to be numbers \[n\] or \[n d\]; a dict is not"):
            next(Samples(Items(lambda i: (X[i], {"boxes": X[i]}))).batches())

    def test_large_targets_come_with_the_batches_only(self):
        samples = Samples(TensorDataset(X, torch.zeros(N, 4, 5)), batch_size=3)
        assert next(samples.batches()).targets.shape == (3, 4, 5)
        with pytest.raises(ShapeError, match=r"targets are \[4, 5\] a sample: too large to hold all"):
            samples.targets  # noqa: B018


class TestPreview:
    def test_uint8_is_shown_as_it_is(self):
        pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
        image = Samples(pixels).preview(1)
        assert image.mode == "RGB"
        assert np.array_equal(np.array(image), pixels[1].permute(1, 2, 0).numpy())

    @pytest.mark.parametrize("shape", [(2, 1, 2, 2), (2, 2, 2)])
    def test_from_the_minimum_to_the_maximum(self, shape: tuple[int, ...]):
        image = Samples(torch.tensor([-1.0, 0.0, 1.0, 3.0] * 2).view(shape)).preview(0)
        assert image.mode == "L"
        assert np.array(image).tolist() == [[0, 64], [128, 255]]

    def test_odd_values(self):
        assert np.array(Samples(torch.full((1, 2, 2), 7.0)).preview(0)).tolist() == [[0, 0], [0, 0]]
        odd = torch.tensor([[[0.0, float("nan")], [float("inf"), 2.0]]])
        assert np.array(Samples(odd).preview(0)).tolist() == [[0, 0], [255, 255]]
        assert Samples(odd * float("nan")).preview(0).size == (2, 2)
        assert np.array(Samples(torch.eye(2).bool()[None]).preview(0)).tolist() == [[255, 0], [0, 255]]

    def test_of_a_dataset(self):
        assert Samples(pairs()).preview(3).size == (3, 2)

    @pytest.mark.parametrize(
        "data",
        [torch.zeros(2, 5), torch.zeros(2, 4, 3, 3), torch.zeros(2), {"x": X}, (X,), torch.zeros(2, 0, 3)],
    )
    def test_nothing_to_show(self, data: Any):
        assert Samples(data).preview(0) is None

    def test_of_the_user(self):
        assert Samples(X, preview=lambda position: f"sample {position}").preview(3) == "sample 3"
        with pytest.raises(UnknownNameError, match=r"no sample at position 11"):
            Samples(X, preview=str).preview(11)
