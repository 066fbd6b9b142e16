"""Batches: arrays become tensors without a copy, are cut into rows, and are joined again where they fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kinsight.errors import EmptyDataError, InputError, SampleTypeError, ShapeError, TargetError
from kinsight.samples import Batch, Samples, as_batch, concatenate, n_samples
from tests.datasets import N, X, Y


class TestArrays:
    def test_dtypes_stay(self):
        for dtype in (np.float64, np.float32, np.uint8, np.int64, np.bool_):
            array = np.zeros((3, 2), dtype)
            assert next(Samples(array).batches()).inputs.numpy().dtype == dtype
            assert as_batch(array).inputs.numpy().dtype == dtype

    def test_batches_are_views(self):
        x = X.clone()
        for data in (x, x.numpy()):
            assert next(Samples(data).batches(3)).inputs.data_ptr() == x.data_ptr()
        assert Batch(x)[4:6].inputs.data_ptr() == x[4:6].data_ptr()

    def test_arrays_that_torch_does_not_share(self):
        array = np.arange(6.0).reshape(3, 2)
        read_only = array.copy()
        read_only.flags.writeable = False
        for odd in (read_only, array[::-1][::-1], array[::-1].copy()[::-1], array.astype(">f8")):
            assert as_batch(odd).inputs.tolist() == array.tolist()
            assert Samples(odd, targets=odd[:, 0]).take([2]).targets.tolist() == [4.0]

    def test_an_array_of_texts(self):
        with pytest.raises(SampleTypeError, match=r"dtype <U1 has no tensor"):
            Samples(np.array(["a", "b"]))


class TestBatch:
    def test_rows(self):
        batch = Batch(X, tuple("abcdefghijk"), Y)
        assert batch[[3, 1, 3]].ids == ("d", "b", "d")
        assert torch.equal(batch[torch.tensor([3, 1])].inputs, X[[3, 1]])
        assert batch[torch.arange(N) > 8].ids == ("j", "k")
        assert torch.equal(batch[::-4].targets, Y[[10, 6, 2]])
        assert batch[::4].ids == ("a", "e", "i")
        assert len(batch[3:3]) == len(batch[[]]) == 0
        assert batch[3:3].inputs.shape == (0, 2, 3)

    @pytest.mark.parametrize("rows", [[True, False], torch.tensor([0.5]), torch.tensor(2)])
    def test_rows_that_are_no_positions(self, rows: Any):
        for cut in (Batch(X).__getitem__, Samples(X).take):
            with pytest.raises(SampleTypeError, match=r"have to be a list of int, not .* For one sample pass \[i\]"):
                cut(rows)

    def test_a_mask_of_the_wrong_length(self):
        with pytest.raises(ShapeError, match=r"3 mask for 11 samples"):
            Batch(X)[torch.ones(3, dtype=torch.bool)]

    def test_batches(self):
        batch = Batch(X, targets=Y)
        assert [part.ids for part in batch.batches(4)] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10)]
        assert [len(part) for part in batch.batches()] == [N]
        assert next(batch.batches(4)).inputs.data_ptr() == X.data_ptr()
        assert list(batch[:0].batches()) == []
        with pytest.raises(InputError, match=r"batch_size is 0: it has to be a whole number"):
            batch.batches(0)

    def test_to(self):
        batch = Batch((X, "constant", torch.tensor(1.0)), targets=Y).to("meta")
        assert [leaf.device.type for leaf in (batch.inputs[0], batch.inputs[2], batch.targets)] == ["meta"] * 3
        assert batch.ids == tuple(range(N))

    def test_no_samples(self):
        assert len(Batch(torch.zeros(0, 3))) == 0
        assert Batch(torch.zeros(0, 3)).ids == ()

    def test_as_batch_leaves_a_batch_alone(self):
        batch = Batch(X)
        assert as_batch(batch) is batch

    def test_lengths(self):
        with pytest.raises(ShapeError, match=r"2 ids for 11 samples"):
            Batch(X, ids=("a", "b"))
        with pytest.raises(ShapeError, match=r"10 targets for 11 samples"):
            Batch(X, targets=Y[1:])
        with pytest.raises(ShapeError, match=r"0 targets for 11 samples"):
            Batch(X, targets=torch.tensor(3))
        with pytest.raises(ShapeError, match=r"inputs\['x'\] is \[11, 2, 3\] and inputs\['m'\] is \[2\]: 11 against 2"):
            as_batch({"x": X, "m": torch.ones(2)})
        with pytest.raises(ShapeError, match=r"inputs\[0\] is \[11, 2, 3\] and inputs\[1\]\['a'\] is \[4\]"):
            n_samples((X, {"a": torch.ones(4)}))

    def test_inputs_without_samples(self):
        with pytest.raises(SampleTypeError, match=r"a tuple of 2 float, hold no tensor with samples on axis 0"):
            as_batch((1.0, 2.0))
        with pytest.raises(SampleTypeError, match=r"a Tensor \[\] of torch.float32, hold no tensor"):
            as_batch(torch.tensor(1.0))

    def test_texts_are_not_cut_in_silence(self):
        with pytest.raises(SampleTypeError, match=r"inputs\['text'\] is a list of 11 texts.*Tokenize them first"):
            as_batch({"x": X, "text": ["a"] * N})


class TestConcatenate:
    def test_is_the_inverse_of_cutting(self):
        whole = Batch({"x": X, "scale": 2.0}, tuple("abcdefghijk"), Y)
        joined = concatenate([whole[:3], whole[3:4], whole[4:]])
        assert joined.ids == whole.ids
        assert joined.inputs["scale"] == 2.0
        assert torch.equal(joined.inputs["x"], X)
        assert torch.equal(joined.targets, Y)

    def test_what_does_not_fit(self):
        with pytest.raises(EmptyDataError, match=r"no batches to concatenate"):
            concatenate([])
        with pytest.raises(ShapeError, match=r"inputs is \[2, 3\] in one and \[5\] a sample in another. Pad"):
            concatenate([Batch(X), Batch(torch.zeros(2, 5))])
        with pytest.raises(ShapeError, match=r"do not have the same entries"):
            concatenate([Batch({"a": X}), Batch({"b": X})])
        with pytest.raises(ShapeError, match=r"inputs\[1\] is a constant, but not the same in all of them"):
            concatenate([Batch((X, 1.0)), Batch((X, 2.0))])
        with pytest.raises(ShapeError, match=r"inputs\[1\] is a constant, but not the same in all of them"):
            concatenate([Batch((X, torch.tensor(1.0))), Batch((X, torch.tensor(2.0)))])
        with pytest.raises(TargetError, match=r"1 of 2 batches have targets"):
            concatenate([Batch(X, targets=Y), Batch(X)])
