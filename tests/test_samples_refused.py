"""Data that would not give the same samples twice, or not all of them, is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from kinsight.errors import EmptyDataError, InputError, SampleTypeError, ShapeError
from kinsight.samples import Batch, Samples
from tests.datasets import Flow, Items, N, NotADataset, X, Y, pairs


class TestRefused:
    """What would name different samples by one id, or leave some out, is refused and says what to do."""

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: DataLoader(pairs(), shuffle=True), "RandomSampler"),
            (lambda: DataLoader(pairs(), sampler=SubsetRandomSampler([1, 2])), "SubsetRandomSampler"),
            (
                lambda: DataLoader(pairs(), sampler=WeightedRandomSampler([1.0] * N, N)),
                "WeightedRandomSampler",
            ),
            (lambda: DataLoader(pairs(), batch_size=None, shuffle=True), "RandomSampler"),
            (
                lambda: DataLoader(pairs(), batch_sampler=BatchSampler(RandomSampler(pairs()), 2, False)),
                "RandomSampler",
            ),
        ],
    )
    def test_shuffling_loaders(self, make: Callable[[], DataLoader[Any]], name: str):
        with pytest.raises(SampleTypeError, match=rf"at random \(a {name}\).*Build it with shuffle=False"):
            Samples(make())

    def test_a_sampler_of_the_user_that_shuffles(self):
        class Shuffled(SequentialSampler):
            def __iter__(self) -> Iterator[int]:
                return iter(torch.randperm(N).tolist())

        class Steady(SequentialSampler):
            def __iter__(self) -> Iterator[int]:
                return iter(range(N - 1, -1, -1))

        with pytest.raises(SampleTypeError, match=r"draws its samples at random \(a Shuffled\)"):
            Samples(DataLoader(pairs(), sampler=Shuffled(pairs())))
        assert torch.equal(Samples(DataLoader(pairs(), sampler=Steady(pairs()))).targets, Y.flip(0))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: DataLoader(pairs(), batch_size=4, drop_last=True),
            lambda: DataLoader(Flow(), batch_size=4, drop_last=True),
            lambda: DataLoader(pairs(), batch_sampler=BatchSampler(SequentialSampler(pairs()), 4, True)),
        ],
    )
    def test_loaders_that_drop_samples(self, make: Callable[[], DataLoader[Any]]):
        with pytest.raises(SampleTypeError, match=r"drop_last=True.*Build it with drop_last=False"):
            Samples(make())

    @pytest.mark.parametrize("once", [lambda: (Batch(X) for _ in range(2)), lambda: iter([Batch(X)])])
    def test_what_can_be_read_once(self, once: Callable[[], Any]):
        with pytest.raises(SampleTypeError, match=r"(generator|list_iterator) can be read only once"):
            Samples(once())

    def test_an_iterable_dataset_without_a_loader(self):
        with pytest.raises(SampleTypeError, match=r"a Flow is an IterableDataset.*DataLoader\(dataset"):
            Samples(Flow())

    def test_a_dataset_without_a_length(self):
        with pytest.raises(SampleTypeError, match=r"a Dataset has no length. Give it __len__"):
            Samples(Dataset())

    @pytest.mark.parametrize(
        ("data", "name"),
        [(None, "None"), (3, "a int"), ([X, X], "a list of 2 Tensor"), ({1, 2}, "a set"), (b"x", "a bytes")],
    )
    def test_unknown_kinds(self, data: Any, name: str):
        with pytest.raises(SampleTypeError, match=rf"cannot be read from {name}\. Understood are a tensor or array"):
            Samples(data)

    def test_a_table_with_keys_is_no_dataset(self):
        class Frame(NotADataset):
            def keys(self) -> list[str]:
                return ["a"]

        with pytest.raises(SampleTypeError, match=r"cannot be read from a Frame"):
            Samples(Frame())

    def test_a_string(self):
        with pytest.raises(SampleTypeError, match=r"a str.*names a data set call kinsight\.sources\.load_samples"):
            Samples.wrap("mnist5k")

    def test_items_of_three(self):
        message = r"An item of the Dataset has 3 entries.*unpack="
        with pytest.raises(SampleTypeError, match=message):
            next(Samples(TensorDataset(X, X, Y)).batches())
        with pytest.raises(SampleTypeError, match=r"A batch of the DataLoader has 3 entries.*unpack="):
            next(Samples(DataLoader(TensorDataset(X, X, Y))).batches())

    def test_unpack_that_does_not_unpack(self):
        with pytest.raises(SampleTypeError, match=r"has to give \(inputs, targets\); it gave a Tensor \[2, 3\]"):
            next(Samples(pairs(), unpack=lambda item: item[0]).batches())
        with pytest.raises(InputError, match=r"unpack= is for a Dataset or a DataLoader; a Tensor \[11, 2, 3\]"):
            Samples(X, unpack=lambda item: item)

    def test_items_that_do_not_stack(self):
        with pytest.raises(SampleTypeError, match=r"a Tensor \[1\] of torch.float32 and a int, do not stack"):
            next(Samples(Items(lambda i: (torch.zeros(i + 1), 0))).batches())
        with pytest.raises(SampleTypeError, match=r"a Image.* do not stack into a batch"):
            next(Samples(Items(lambda i: (Image.new("L", (2, 2)), 0))).batches())
        with pytest.raises(SampleTypeError, match=r"do not stack"):
            next(Samples(Items(lambda i: (X[i], None if i else 0))).batches())

    def test_batches_that_do_not_join(self):
        loader = DataLoader([torch.zeros(2, 5), torch.zeros(2, 7)], batch_size=None)
        samples = Samples(loader)
        assert [len(batch) for batch in samples.batches(2)] == [2, 2]
        with pytest.raises(ShapeError, match=r"inputs is \[5\] in one and \[7\] a sample in another"):
            list(samples.batches(3))

    def test_data_that_changes_between_passes(self):
        class Shrinking(IterableDataset[Tensor]):
            n = 6

            def __iter__(self) -> Iterator[Tensor]:
                self.n -= 1
                return iter(X[: self.n])

        samples = Samples(DataLoader(Shrinking(), batch_size=2))
        assert len(samples) == 5
        with pytest.raises(ShapeError, match=r"gave 5 samples in one pass and 4 in the next"):
            list(samples.batches())

    def test_data_that_is_used_up(self):
        class Used(IterableDataset[Tensor]):
            rows = iter(X)

            def __iter__(self) -> Iterator[Tensor]:
                return self.rows

        samples = Samples(DataLoader(Used(), batch_size=2))
        assert sum(map(len, samples.batches())) == N
        with pytest.raises(ShapeError, match=r"gave 11 samples in one pass and 0 in the next"):
            list(samples.batches())

    @pytest.mark.parametrize(
        "make", [lambda: torch.zeros(0, 3), lambda: np.zeros((0, 3)), lambda: TensorDataset(X[:0]), list]
    )
    def test_no_samples(self, make: Callable[[], Any]):
        with pytest.raises(EmptyDataError, match=r"There are no samples: the data has length 0"):
            Samples(make())

    def test_an_empty_stream(self):
        class Nothing(IterableDataset[Tensor]):
            def __iter__(self) -> Iterator[Tensor]:
                return iter(())

        with pytest.raises(EmptyDataError, match=r"no samples: the data gave no batch"):
            list(Samples(DataLoader(Nothing())).batches())
        with pytest.raises(EmptyDataError, match=r"There are no samples"):
            len(Samples(DataLoader(Nothing())))

    @pytest.mark.parametrize("size", [0, -3, True])
    def test_batch_sizes(self, size: int):
        with pytest.raises(InputError, match=rf"batch_size is {size}: it has to be a whole number, 1 or more"):
            Samples(X, batch_size=size)
        with pytest.raises(InputError, match=rf"batch_size is {size}: it has to be"):
            Samples(X).batches(size)
        with pytest.raises(InputError, match=rf"n is {size}: it has to be a whole number, 1 or more"):
            Samples(X).first(size)
