"""Searching an index: neighbors of queries and of every sample, by sketches and by the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kinsight import GradientKernel, Index, Samples, neighbors
from kinsight.errors import IncompleteIndexError, InputError
from kinsight.indexing.search import grouped
from kinsight.indexing.store import Store
from tests.indexes import DIM, data, network


@pytest.fixture
def kernel() -> GradientKernel:
    return GradientKernel(network())


@pytest.fixture
def index(kernel: GradientKernel, tmp_path: Path) -> Index:
    return Index.build(tmp_path / "index", kernel, data(), dim=DIM)


@pytest.mark.parametrize("normalization", ["whitened", "flat"])
@pytest.mark.parametrize("output", ["logits", "one_vs_rest"])
def test_neighbors_are_those_of_the_kernel(output: str, normalization: Any, tmp_path: Path) -> None:
    kernel, samples = GradientKernel(network(), output), data()
    index = Index.build(tmp_path / "index", kernel, samples, dim=DIM, normalization=normalization)
    queries = data(20, seed=5)
    truth = neighbors(kernel, queries, samples, 10, normalization=normalization)
    found = index.neighbors(queries, n_neighbors=10, kernel=kernel, data=samples)
    assert found.error is None
    # all but ties; a true neighbor is missed only where its sketch is not among 100 of 300
    assert (found.similarities - truth.similarities).abs().max() < 1e-3
    assert found.query_ids == truth.query_ids
    estimates = index.neighbors(queries, n_neighbors=10, kernel=kernel)
    assert estimates.error == index.error
    assert (estimates.similarities[:, 0] - truth.similarities[:, 0]).abs().max() < 6 * index.error
    everything = index.neighbors(queries, n_neighbors=10, kernel=kernel, data=samples, n_candidates=300)
    assert torch.equal(everything.positions, truth.positions)


def test_a_sample_of_the_index_is_not_its_own_neighbor(index: Index, kernel: GradientKernel) -> None:
    samples = data()
    truth = neighbors(kernel, samples.take([17, 203]), samples, 5)
    found = index.neighbors(ids=[17, 203], n_neighbors=5, kernel=kernel, data=samples, n_candidates=300)
    assert torch.equal(found.positions, truth.positions)
    assert found.ids == truth.ids
    assert 17 not in index.neighbors(ids=[17], n_neighbors=299).ids[0]
    assert len(index.neighbors(ids=[17], n_neighbors=400).ids[0]) == 299


def test_a_query_that_is_part_of_the_data_is_not_its_own_neighbor(index: Index, kernel: GradientKernel) -> None:
    samples = data()
    truth = neighbors(kernel, samples.first(3), samples, 5)
    found = index.neighbors(samples.first(3), n_neighbors=5, kernel=kernel, data=samples, n_candidates=300)
    assert torch.equal(found.positions, truth.positions)
    stranger = index.neighbors(samples.take([2]).inputs, n_neighbors=1, kernel=kernel, data=samples)
    assert stranger.positions.tolist() == [[2]]


def test_an_index_of_parts_ranks_by_all_of_them(index: Index, kernel: GradientKernel) -> None:
    more = data(100, seed=2, ids=range(300, 400))
    longer = index.append(kernel, more)
    both = Samples(torch.cat([data().take(range(300)).inputs, more.take(range(100)).inputs]), longer.targets)
    found = longer.neighbors(ids=[350], n_neighbors=7, kernel=kernel, data=both, n_candidates=400)
    truth = neighbors(kernel, both.take([350]), both, 7)
    assert torch.equal(found.positions, truth.positions)


def test_zero_gradients_are_nobodys_neighbor(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).eval()
    x = data(50).take(range(50)).inputs.clone()
    x[10] = 0
    kernel = GradientKernel(model)
    index = Index.build(tmp_path, kernel, x, dim=64)
    assert index.norms[10] == 0
    found = index.neighbors(ids=[3, 10], n_neighbors=49)
    assert 10 not in found.ids[0]
    assert found.ids[1] == ()
    assert bool(found.similarities[1].isnan().all())


def test_queries_that_share_candidates_are_answered_together():
    own = torch.arange(200 * 50).reshape(200, 50)
    shared = torch.arange(50).expand(200, 50)
    groups = {name: list(grouped(candidates)) for name, candidates in [("own", own), ("shared", shared)]}
    assert [(part.start, part.stop) for part, _ in groups["own"]] == [(0, 64), (64, 128), (128, 192), (192, 200)]
    assert [(part.start, part.stop) for part, _ in groups["shared"]] == [(0, 200)]
    assert all(torch.equal(rows, torch.unique(own[part])) for part, rows in groups["own"])
    assert groups["shared"][0][1].tolist() == list(range(50))


def test_neighbors_of_all(index: Index) -> None:
    table = index.build_neighbors(n_neighbors=6)
    truth = index.neighbors(ids=index.ids, n_neighbors=6)
    assert table.ids == index.ids
    assert table.error == index.error
    assert torch.equal(table.positions, truth.positions)
    assert (table.similarities - truth.similarities).abs().max() < 1e-6
    again = Index(index.folder)
    assert torch.equal(again.neighbor_table().positions, table.positions)
    with Store.open(index.folder, for_writing=True):  # somebody else writes, and nothing has to be written
        assert torch.equal(again.build_neighbors(n_neighbors=6).positions, table.positions)
    counts = table.occurrences()
    assert int(counts.sum()) == 300 * 6
    assert int(counts[4]) == int((table.positions == 4).sum())
    assert table.hubs(300) == sorted(enumerate(counts.tolist()), key=lambda pair: (-pair[1], pair[0]))
    wanted = ((counts.double() - 6) ** 3).mean() / counts.double().var(correction=0) ** 1.5
    assert table.skewness == pytest.approx(float(wanted))


def test_neighbors_of_all_go_on(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = index.build_neighbors(n_neighbors=4)
    import kinsight.indexing.knn

    real, done = kinsight.indexing.knn.nearest, []

    def counted(*arguments: Any) -> Any:
        done.append(len(arguments[1]))
        if len(done) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr("kinsight.indexing.knn.nearest", counted)
    small = 4 * 50 * (DIM + kinsight.indexing.knn.BATCH + 4 * 5)
    with pytest.raises(KeyboardInterrupt):
        index.build_neighbors(n_neighbors=5, max_bytes=small)
    with pytest.raises(IncompleteIndexError, match="has neighbors of 100 of its 300 samples"):
        Index(index.folder).neighbor_table()
    table = index.build_neighbors(n_neighbors=5, max_bytes=small)
    assert done == [50, 50, 50, 50, 50, 50, 50]  # the third of them twice
    assert torch.equal(table.positions[:, :4], whole.positions)
    assert Index(index.folder).verify() == []


def test_neighbors_of_all_after_an_append(index: Index, kernel: GradientKernel) -> None:
    index.build_neighbors(n_neighbors=3)
    longer = index.append(kernel, data(50, seed=4, ids=range(300, 350)))
    with pytest.raises(IncompleteIndexError, match="call build_neighbors"):
        longer.neighbor_table()
    assert longer.build_neighbors(n_neighbors=3).positions.shape == (350, 3)


def test_duplicates(kernel: GradientKernel, tmp_path: Path) -> None:
    x = data(60).take(range(60)).inputs.clone()
    x[40] = x[7]
    x[51] = x[7]
    x[20] = x[3]
    table = Index.build(tmp_path, kernel, x, dim=DIM).build_neighbors(n_neighbors=5)
    assert table.duplicates(0.9999) == [[7, 40, 51], [3, 20]]
    assert table.duplicates(2.0) == []
    assert table.duplicates(-1.0) == [list(range(60))]


def test_fewer_samples_than_neighbors(kernel: GradientKernel, tmp_path: Path) -> None:
    table = Index.build(tmp_path, kernel, data(3), dim=16).build_neighbors(n_neighbors=5)
    assert table.positions[:, 2:].tolist() == [[-1] * 3] * 3
    assert bool(table.similarities[:, 2:].isnan().all())
    assert sorted(table.positions[0, :2].tolist()) == [1, 2]


def test_approximate_search(kernel: GradientKernel, tmp_path: Path) -> None:
    samples = data(1500, seed=8)
    index = Index.build(tmp_path, kernel, samples, dim=64)
    queries = data(12, seed=5)
    exact = index.neighbors(queries, n_neighbors=10, kernel=kernel)
    assert index.info()["recall"] is None
    searched = index.build_search(least_recall=0.95)
    how = searched.about["search"]
    assert 0.95 <= how["recall"] <= 1
    assert how["n_probes"] <= how["n_partitions"] == 23
    assert searched.info()["recall"] == how["recall"]
    found = searched.neighbors(queries, n_neighbors=10, kernel=kernel)
    is_found = found.similarities >= exact.similarities - 1e-3
    assert float(is_found.double().mean()) > 0.85
    assert torch.equal(
        searched.neighbors(queries, n_neighbors=10, kernel=kernel, is_exhaustive=True).positions, exact.positions
    )
    true = searched.neighbors(queries, n_neighbors=10, kernel=kernel, data=samples)
    assert (true.similarities - neighbors(kernel, queries, samples, 10).similarities).abs().mean() < 1e-3
    assert 7 not in searched.neighbors(ids=[7], n_neighbors=20).ids[0]
    assert searched.verify() == []


def test_large_indexes_get_an_approximate_search(
    kernel: GradientKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinsight.index.SEARCHED_FROM", 300)
    for n, search, is_there in [(300, None, True), (299, None, False), (300, False, False), (256, True, True)]:
        index = Index.build(tmp_path / f"{n} {search}", kernel, data(n), dim=16, search=search)
        assert (index.info()["recall"] is not None) == is_there


def test_approximate_search_sees_what_is_appended(kernel: GradientKernel, tmp_path: Path) -> None:
    index = Index.build(tmp_path, kernel, data(400), dim=64).build_search()
    again = data(400).take([33, 250]).inputs
    longer = index.append(kernel, Samples(again, data(400).targets[[33, 250]], ids=["twin of 33", "twin of 250"]))
    found = longer.neighbors(ids=[33, 250], n_neighbors=1)
    assert found.ids == (("twin of 33",), ("twin of 250",))
    assert bool((found.similarities > 0.999).all())
    assert longer.verify() == []
    with pytest.raises(InputError, match="below 256 there is nothing to partition"):
        Index.build(tmp_path / "few", kernel, data(50), dim=16).build_search()
