"""What an index meets outside: a disk without room, loaders that pad, streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kinsight import GradientKernel, Index, Samples, neighbors
from kinsight.errors import ChangedDataError, IndexExistsError, IndexWriteError
from kinsight.samples import Batch
from tests.indexes import DIM, data, network


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinsight.indexing.building.MAX_SHARD", 64)


@pytest.fixture
def kernel() -> GradientKernel:
    return GradientKernel(network())


@pytest.fixture
def index(kernel: GradientKernel, tmp_path: Path) -> Index:
    return Index.build(tmp_path / "index", kernel, data(), dim=DIM)


def test_what_does_not_fit_on_the_disk_is_not_begun(kernel: GradientKernel, index: Index, tmp_path: Path) -> None:
    far_too_many = Samples(torch.zeros(1, 6).expand(10**12, 6))
    for folder in (tmp_path / "new" / "one", index.folder):
        with pytest.raises(IndexWriteError, match="1,000,000,000,000 samples, 64 numbers each, take 128 TB"):
            Index.build(folder, kernel, far_too_many, dim=64, overwrite=True)
    with pytest.raises(IndexWriteError, match=r"there is room for .* another folder"):
        index.append(kernel, far_too_many)
    with pytest.raises(IndexExistsError):
        Index.build(index.folder, kernel, far_too_many, dim=64)
    assert not (tmp_path / "new").exists()
    assert len(Index(index.folder)) == len(index)


def test_what_is_missing_has_to_fit_on_the_disk_too(
    kernel: GradientKernel, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_room(total: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=total, free=10))

    class Failing(Samples):
        def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
            yield next(super().batches(batch_size))
            raise OSError("unplugged")

    more = {"targets": data(130, seed=4).take(range(130)).targets, "ids": [f"new {row}" for row in range(130)]}
    x = data(130, seed=4).take(range(130)).inputs
    with pytest.raises(OSError, match="unplugged"):
        index.append(kernel, Failing(x, **more))
    complete = Index.build(tmp_path / "complete", kernel, data(), dim=DIM)
    without_room(10**12)
    assert len(Index.build(complete.folder, kernel, data(), resume=True)) == 300  # nothing of it is missing
    with pytest.raises(IndexWriteError, match=r"Sketches of \d+ samples, 512 numbers each, as the index has them"):
        Index(index.folder, partial=True).append(kernel, Samples(x, **more))
    without_room(0)  # a file system that tells no size
    assert len(Index(index.folder, partial=True).append(kernel, Samples(x, **more))) == 430


class Texts(Dataset[tuple[Tensor, Tensor]]):
    """Sequences of several lengths, which a loader pads to the longest of a batch; masked by their zeros."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 9, (150,), generator=generator).tolist()
        self.items = [torch.randn(length, 6, generator=generator) for length in lengths]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.items[place], torch.tensor(place % 2)

    @staticmethod
    def padded(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return pad_sequence([x for x, _ in items], batch_first=True), torch.stack([y for _, y in items])


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.sum(dim=1))
        return out


def test_data_that_a_loader_pads_is_known_in_whatever_batches_it_is_read(tmp_path: Path) -> None:
    kernel, texts = GradientKernel(Summed()), Texts()
    samples = Samples(DataLoader(texts, batch_size=16, collate_fn=Texts.padded))
    index = Index.build(tmp_path / "index", kernel, samples, dim=DIM)
    exact = neighbors(kernel, samples, samples, 3)
    found = index.neighbors(ids=range(150), n_neighbors=3, kernel=kernel, data=samples, n_candidates=150)
    assert torch.equal(found.positions, exact.positions)
    how = {"n_neighbors": 3, "kernel": kernel, "data": samples, "n_candidates": 150}
    assert torch.equal(index.neighbors(samples.take([3, 4]), **how).positions, exact.positions[[3, 4]])
    strangers = index.neighbors(torch.randn(2, 5, 6), **how)
    assert bool((strangers.positions >= 0).all())
    counted = index.soft_count(samples.take([3, 4]), kernel=kernel, data=samples)
    assert torch.allclose(counted.values, index.soft_count().values[[3, 4]], atol=1e-2)
    texts.items[77] = 2 * texts.items[77]
    with pytest.raises(ChangedDataError, match="position 77"):
        index.neighbors(ids=[77], n_neighbors=3, kernel=kernel, data=samples, n_candidates=150)


def test_streams_can_be_queries(kernel: GradientKernel, index: Index) -> None:
    class Stream(IterableDataset[Tensor]):
        n_read = 0

        def __iter__(self) -> Iterator[Tensor]:
            for row in data(200, seed=7).take(range(200)).inputs:  # type: ignore[union-attr]
                Stream.n_read += 1
                yield row

    stream = Samples(DataLoader(Stream(), batch_size=32))
    found = index.neighbors(stream, n_neighbors=3, kernel=kernel, data=data())
    expected = index.neighbors(data(200, seed=7).take(range(200)).inputs, n_neighbors=3, kernel=kernel, data=data())
    assert torch.equal(found.positions, expected.positions)
    assert Stream.n_read <= 600
