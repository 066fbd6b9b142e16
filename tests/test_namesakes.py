"""Queries of an id that the data has, too: the same sample only where its inputs are the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import kinsight
from kinsight import Batch, GradientKernel, Index, Samples
from kinsight.errors import InputError, NamesakeWarning
from kinsight.namesakes import same_inputs, self_positions

N, HALF = 30, 5e-3  # what is left with exact sketches: rounding to half precision


@pytest.fixture(name="kernel", scope="module")
def kernel_of_one_output() -> GradientKernel:
    torch.manual_seed(0)
    return GradientKernel(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double())


def data() -> Samples:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1)).double()
    return Samples(x, x[:, :1], ids=[f"s{i}" for i in range(N)])


def strangers(names: str) -> Samples:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(2)).double()
    return Samples(x, ids=[f"{names}{i}" for i in range(5)])


def of_kernel(kernel: GradientKernel, known: Samples, queries: Samples) -> dict[str, Tensor]:
    """Numbers around queries."""
    found = {
        "uncertainty": kinsight.uncertainty(kernel, known, queries).sums,
        "signed support": kinsight.signed_support(kernel, known, queries).sums,
        "neighbors": kinsight.neighbors(kernel, queries, known, N, normalization="flat").similarities,
    }
    for itself in (True, False):
        how: dict[str, Any] = {"include_self": itself}
        found[f"count {itself}"] = kinsight.soft_count(kernel, known, queries, normalization="flat", **how).values
        for weighting in ("flat", "kernel"):
            means = kinsight.averages(kernel, known, queries, weighting=weighting, **how)
            found[f"{weighting} {itself}"] = means.weights
    return found


def of_index(index: Index, kernel: GradientKernel, known: Samples, queries: Samples) -> dict[str, Tensor]:
    """The same numbers."""
    asked: dict[str, Any] = {"queries": queries, "kernel": kernel, "data": known}
    found = {
        "uncertainty": index.uncertainty(**asked).sums,
        "signed support": index.signed_support(**asked).sums,
        "neighbors": index.neighbors(queries, n_neighbors=N, kernel=kernel, data=known).similarities,
    }
    for itself in (True, False):
        found[f"count {itself}"] = index.soft_count(include_self=itself, **asked).values
        for weighting in ("flat", "kernel"):
            found[f"{weighting} {itself}"] = index.averages(weighting=weighting, include_self=itself, **asked).weights
    return found


def test_a_stranger_of_the_same_name_is_a_stranger(kernel: GradientKernel, tmp_path: Path) -> None:
    known = data()
    index = Index.build(tmp_path / "index", kernel, known, dim=8192, normalization="flat")
    truth = of_kernel(kernel, known, strangers("new"))
    with pytest.warns(NamesakeWarning, match="5 of 5 queries have the id of a sample of the data, and other inputs"):
        found = of_kernel(kernel, known, strangers("s"))
    with pytest.warns(NamesakeWarning, match="such as 's0'"):
        sketched = of_index(index, kernel, known, strangers("s"))
    assert truth.keys() == sketched.keys()
    for name, values in truth.items():
        assert torch.equal(found[name], values), name
        assert float((sketched[name] - values).abs().max()) < HALF * float(values.abs().max()), name


def test_the_same_sample_is_found_in_any_precision_and_shape() -> None:
    known = data()
    x = known.take(range(N)).inputs
    assert isinstance(x, Tensor)
    picked = [7, 0, 29]
    names = [f"s{i}" for i in picked]
    assert self_positions(Samples(x[picked], ids=names), known).tolist() == picked
    assert self_positions(Samples(x[picked].float(), ids=names), known).tolist() == picked
    assert self_positions(Samples(x[picked].float().numpy(), ids=[*names[:2], "new"]), known).tolist() == [7, 0, -1]
    assert self_positions(Samples(x[picked]), known).tolist() == [-1, -1, -1]  # positions of other data name nothing
    with pytest.warns(NamesakeWarning, match="1 of 3 queries .* such as 's0'"):
        assert self_positions(Samples(x[[7, 1, 29]], ids=names), known).tolist() == [7, -1, 29]
    with pytest.warns(NamesakeWarning):
        assert self_positions(Samples(x[picked, :2], ids=names), known).tolist() == [-1, -1, -1]


def test_dicts_constants_and_nan() -> None:
    x = torch.tensor([[1.0, torch.nan], [3.0, 4.0]])
    known = Samples({"x": x, "scale": 2.0}, ids=["a", "b"])
    assert self_positions(Samples({"x": x[[1, 0]], "scale": 2.0}, ids=["b", "a"]), known).tolist() == [1, 0]
    for other in (
        {"x": x, "scale": 3.0},
        {"y": x, "scale": 2.0},
        {"x": x},
        {"x": x, "scale": torch.tensor([2.0, 2.0])},
    ):
        with pytest.warns(NamesakeWarning):
            assert self_positions(Samples(other, ids=["a", "b"]), known).tolist() == [-1, -1]


class _Texts(Dataset[Tensor]):
    """Tokens of different lengths; `padded` makes a batch as long as its longest."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: int) -> Tensor:
        return torch.tensor(self.texts[place])

    @staticmethod
    def padded(items: list[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(items, batch_first=True)


def test_a_constant_is_no_row() -> None:
    """Of two samples: a comparison that broadcast would not have one truth."""
    rows, constant = torch.tensor([2.0, 2.0]), 2.0
    swapped = Batch({"a": rows, "b": constant}), Batch({"a": constant, "b": rows})
    assert same_inputs(*swapped).tolist() == [False, False]


def test_padding_makes_no_stranger() -> None:
    texts = [[1, 2, 3, 4], [5], [6, 7]]
    known = Samples(DataLoader(_Texts(texts), collate_fn=_Texts.padded, batch_size=2), ids=["a", "b", "c"])
    some = Samples(DataLoader(_Texts(texts[1:]), collate_fn=_Texts.padded, batch_size=2), ids=["b", "c"])
    assert self_positions(some, known).tolist() == [1, 2]


def test_nothing_is_asked_of_a_kernel_without_queries(kernel: GradientKernel, tmp_path: Path) -> None:
    index = Index.build(tmp_path / "index", kernel, data(), dim=64, normalization="flat")
    for question in (index.soft_count, index.averages, index.uncertainty, index.signed_support, index.power_count):
        for passed in ({"kernel": kernel}, {"data": data()}):
            with pytest.raises(InputError, match="kernel= and data= are for queries="):
                question(**passed)
