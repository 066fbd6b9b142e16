"""Exports: what other tools read is what was found, in the form that they take."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import kinsight
from kinsight.errors import IndexExistsError, IndexWriteError, InputError, ZeroGradientWarning
from kinsight.exports import as_table, cleanlab_issues, export, flattened, knn_graph, map_table
from kinsight.indexing.denoising_sums import DenoisingSums
from kinsight.indexing.knn import NeighborTable
from kinsight.kernel import GradientKernel
from kinsight.labels.conflicts import label_conflicts
from kinsight.samples import Samples

N = 40
HOSTILE = ["a,b", 'quo"te', "line\nbreak", "=1+1", "ünï", ""]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[GradientKernel, Samples, kinsight.Index]:
    torch.manual_seed(0)
    y = torch.arange(N) % 2
    x = torch.stack([4.0 * y, torch.zeros(N)], dim=1) + 0.5 * torch.randn(N, 2)
    x[1] = x[3]
    y[7] = 1 - y[7]
    kernel = GradientKernel(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)))
    ids = [*HOSTILE, *(f"s{i}" for i in range(N - len(HOSTILE)))]
    data = Samples(x, y, ids=ids, class_names=["cat", "owl"], preview=lambda place: f"text {place}")
    folder = tmp_path_factory.mktemp("exports") / "index"
    return kernel, data, kinsight.Index.build(folder, kernel, data, dim=256, normalization="flat")


def results(kernel: GradientKernel, data: Samples, index: kinsight.Index) -> list[Any]:
    values = Samples(data.take(range(N)).inputs, torch.randn(N, 2), ids=data.ids)
    return [
        kinsight.neighbors(kernel, data, data, 3), kinsight.soft_count(kernel, data), index.soft_count(),
        kinsight.hard_count(kernel, data, thresholds=[0.5, 0.9]), kinsight.averages(kernel, data),
        kinsight.uncertainty(kernel, data), kinsight.signed_support(kernel, data), kinsight.fit_map(kernel, data),
        kinsight.denoise(kernel, values), kinsight.label_suspects(kernel, data), label_conflicts(kernel, data),
        kinsight.compare({"a": kernel, "b": kernel}, data, n_neighbors=3, n_bootstrap=10), index.denoising_sums(),
        index.build_neighbors(n_neighbors=3), index.neighbors(ids=data.ids[:4], n_neighbors=3),
    ]  # fmt: skip


def test_summaries_where_there_is_little_to_say(tmp_path: Path) -> None:
    zero = GradientKernel(nn.Linear(2, 1, bias=False))
    with pytest.warns(kinsight.errors.ZeroGradientWarning):
        found = kinsight.neighbors(zero, torch.zeros(3, 2), torch.ones(4, 2), 2)
    assert found.summary() == "None of 3 queries has a neighbor: there is no sample, or gradients are zero."
    with pytest.warns(kinsight.errors.ZeroGradientWarning):
        found = kinsight.neighbors(zero, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.ones(4, 2), 2)
    assert found.summary().startswith("Half of 2 queries have a nearest neighbor of similarity 1.000 or more")
    assert found.summary().endswith("1 have none, their gradients being zero.")
    cancel = kinsight.Index.build(tmp_path / "cancel", zero, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), dim=64)
    assert cancel.denoising_sums().summary() == (
        "For none of 2 samples is there a denoising factor: gradients are zero, sums of the kernel cancel, or "
        "estimates are too far off."
    )
    some = torch.tensor([2.0, 2.0, -1.0, 0.0], dtype=torch.float64)
    sums = DenoisingSums(tuple("abcd"), some, torch.ones(4).double(), some, some, torch.ones(4).double())
    assert sums.summary() == (
        "Of 3 samples, means of labels around half keep 50.0% of the noise of one label, or more; for 1 the sum is "
        "negative, and the mean none; for 1 more, gradients are zero, sums of the kernel cancel, or estimates are too "
        "far off."
    )
    alone = kinsight.Index.build(tmp_path / "alone", zero, torch.ones(1, 2), dim=64)
    assert alone.build_neighbors(n_neighbors=2).summary() == "None of 1 samples has a neighbor."


def test_every_result_is_a_file_and_has_a_summary(made: Any, tmp_path: Path) -> None:
    for number, result in enumerate(results(*made)):
        rows = list(result.rows())
        assert rows
        for suffix in (".parquet", ".csv"):
            path = tmp_path / f"{number}{suffix}"
            assert export(result, path) == len(rows)
        table = pq.read_table(tmp_path / f"{number}.parquet")
        assert table.column_names == list(rows[0])
        np.testing.assert_equal(
            table.to_pylist(), [{key: _listed(value) for key, value in row.items()} for row in rows]
        )
        with (tmp_path / f"{number}.csv").open(newline="", encoding="utf-8") as file:
            read = list(csv.DictReader(file))
        assert [row[next(iter(rows[0]))] for row in read] == [str(next(iter(row.values()))) for row in rows]
        for name, value in rows[0].items():
            if isinstance(value, list | tuple):
                assert json.loads(read[0][name]) == _listed(value)
        assert result.summary().endswith(".")
        assert "nan" not in result.summary()


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_files_are_not_replaced_unasked(made: Any, tmp_path: Path) -> None:
    counts = kinsight.soft_count(*made[:2])
    path = tmp_path / "counts.csv"
    export(counts, path)
    with pytest.raises(IndexExistsError, match="overwrite=True"):
        export(counts, path)
    assert export(counts, path, overwrite=True) == N
    with pytest.raises(InputError, match=r"end in \.parquet or \.csv"):
        export(counts, tmp_path / "counts.xlsx")
    with pytest.raises(IndexWriteError, match="there is no folder"):
        export(counts, tmp_path / "nowhere" / "counts.csv")
    assert [each.name for each in tmp_path.iterdir()] == ["counts.csv"]


def test_ids_of_both_kinds_are_texts() -> None:
    kernel = GradientKernel(nn.Linear(2, 1))
    assert as_table(kinsight.soft_count(kernel, Samples(torch.randn(2, 2), ids=[1, "a"])))["id"].to_pylist() == [
        "1",
        "a",
    ]
    data = Samples(torch.randn(9, 2), torch.arange(9) % 2, ids=[1, "a", 2, "b", 3, "c", 4, "d", 5])
    kernel = GradientKernel(nn.Linear(2, 2))
    suspects = kinsight.label_suspects(kernel, data)
    several = replace(suspects, ids=(1, "a"), supporter_ids=((1, "a"), ("b", 2)), **{
        name: getattr(suspects, f"all_{name}")[:2] for name in ("scores", "given", "suggested")
    })  # fmt: skip
    assert as_table(several)["supporters"].to_pylist() == [["1", "a"], ["b", "2"]]
    mixed = kinsight.fit_map(kernel, data, groups=[1, "a", 2.5] * 3)
    assert as_table(mixed)["group"].to_pylist() == ["1", "a", "2.5"] * 3
    named = kinsight.fit_map(kernel, data, groups=[1, None, "a"] * 3)
    assert as_table(named)["group"].to_pylist() == ["1", None, "a"] * 3


@pytest.mark.filterwarnings("ignore")
def test_cleanlab_takes_the_graph() -> None:
    """Runs where cleanlab[datalab] is installed, which nothing here needs."""
    pytest.importorskip("datasets")
    cleanlab = pytest.importorskip("cleanlab")
    torch.manual_seed(0)
    x, y = torch.cat([torch.randn(40, 4) + 3 * side for side in (-1, 1)]), torch.arange(80) // 40
    x[7] = x[9]
    data, model = Samples(x, y), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    graph = knn_graph(kinsight.neighbors(GradientKernel(model), data, data, 10))
    audit = cleanlab.Datalab(data={"y": y.tolist()}, label_name="y", verbosity=0)
    audit.find_issues(knn_graph=graph, issue_types={"near_duplicate": {}, "outlier": {}})
    found = audit.get_issues("near_duplicate")["is_near_duplicate_issue"]
    assert found[found].index.tolist() == [7, 9]


def test_a_graph_of_neighbors(made: Any) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    kernel, data, index = made
    for found in (kinsight.neighbors(kernel, data, data, 5), index.build_neighbors(n_neighbors=5)):
        graph = knn_graph(found)
        assert graph.shape == (N, N)
        assert np.diff(graph.indptr).tolist() == [5] * N
        distances = graph.data.reshape(N, 5)
        assert (np.diff(distances, axis=1) >= -1e-9).all()
        assert (graph.diagonal() == 0).all()
        np.testing.assert_allclose(distances, 1 - found.similarities.numpy(), atol=1e-6)
        classifier = KNeighborsClassifier(5, metric="precomputed")
        labels = data.targets.numpy()
        said = classifier.fit(1 - kernel.flat_similarity(data.take(range(N))).numpy(), labels).predict(graph)
        assert (said == labels).mean() > 0.9
    with pytest.raises(InputError, match="pass queries=data"):
        knn_graph(kinsight.neighbors(kernel, torch.randn(3, 2), data, 5))
    other = torch.randn(N, 2)
    for strangers in (
        kinsight.neighbors(kernel, other, torch.randn(N, 2), 3),
        index.neighbors(other, n_neighbors=3, kernel=kernel),
    ):
        with pytest.raises(InputError, match="these queries are others: pass queries=data"):
            knn_graph(strangers)
    assert knn_graph(index.neighbors(ids=index.ids, n_neighbors=3)).shape == (N, N)
    with pytest.raises(InputError, match="have fewer than 4 neighbors"):
        knn_graph(kinsight.neighbors(kernel, data.first(4), data.first(4), 4 + 1))


def test_issues_under_the_names_of_cleanlab(made: Any) -> None:
    index = made[2]
    suspects, table = index.label_suspects(), index.build_neighbors(n_neighbors=5)
    found = cleanlab_issues(suspects, table, least=0.999).to_pydict()
    assert (
        [row for row, is_issue in enumerate(found["is_label_issue"]) if is_issue] == [7] == suspects.positions.tolist()
    )
    assert (found["given_label"][7], found["predicted_label"][7]) == (0, 1)
    assert min(range(N), key=found["label_score"].__getitem__) == 7
    assert all(0 <= score <= 1 for score in found["label_score"])
    assert found["is_near_duplicate_issue"][1]
    assert 3 in found["near_duplicate_sets"][1]
    assert found["near_duplicate_score"][1] == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="Pass suspects, a table"):
        cleanlab_issues()
    with pytest.raises(InputError, match="without n_suspects"):
        cleanlab_issues(index.label_suspects(n_suspects=0))
    short = NeighborTable(table.ids[:10], table.positions[:10], table.similarities[:10], 0.0)
    with pytest.raises(InputError, match="are of 40 samples, the neighbors of 10"):
        cleanlab_issues(suspects, short)


def test_a_map(made: Any, tmp_path: Path) -> None:
    _, data, index = made
    index.build_neighbors(n_neighbors=5)
    index = kinsight.Index(index.folder)
    found = map_table(index, index.label_suspects(), index.soft_count())
    pq.write_table(found, tmp_path / "map.parquet")
    read = pq.read_table(tmp_path / "map.parquet").to_pydict()
    assert read["id"] == list(data.ids)
    assert read["text"] == [f"text {place}" for place in range(N)]
    assert read["label"] == [["cat", "owl"][label] for label in data.targets.tolist()]
    assert read["suggested_label"][7] == "owl"
    assert all(len(row["ids"]) == len(row["distances"]) == 5 for row in read["neighbors"])
    places = np.array([read["x"], read["y"]]).T
    sketches = torch.cat([values for _, values in index.sketches()]).double()
    _, _, axes = torch.linalg.svd(sketches - sketches.mean(dim=0), full_matrices=False)
    np.testing.assert_allclose(abs(places), ((sketches - sketches.mean(dim=0)) @ axes[:2].T).abs().numpy(), atol=1e-5)
    assert (flattened(index).gather(0, flattened(index).abs().argmax(dim=0, keepdim=True)) > 0).all()
    with pytest.raises(InputError, match="The counts are of 3 samples, the index of 40"):
        map_table(index, None, kinsight.soft_count(GradientKernel(nn.Linear(2, 1)), torch.randn(3, 2)))


def test_results_of_other_samples_are_not_joined(made: Any) -> None:
    kernel, data, index = made
    turned = Samples(data.take(range(N - 1, -1, -1)))
    with pytest.raises(
        InputError, match=r"The counts are of other samples than the index, .*: row 0 is 's33' and 'a,b'"
    ):
        map_table(index, None, kinsight.soft_count(kernel, turned))
    suspects = kinsight.label_suspects(kernel, turned)
    assert suspects.all_ids == turned.ids
    with pytest.raises(InputError, match="The suspects are of other samples than the index"):
        map_table(index, suspects)
    with pytest.raises(InputError, match="The suspects are of other samples than the neighbors"):
        cleanlab_issues(suspects, index.build_neighbors(n_neighbors=3))


def test_results_without_rows_have_columns(made: Any, tmp_path: Path) -> None:
    kernel, data, _ = made
    alike = Samples(data.take(range(N)).inputs, torch.zeros(N, dtype=torch.long))
    line = GradientKernel(nn.Linear(2, 1, bias=False))
    with pytest.warns(ZeroGradientWarning):
        lonely = kinsight.neighbors(line, torch.zeros(3, 2), torch.zeros(3, 2), 1)
    for number, result in enumerate((kinsight.label_suspects(kernel, alike), label_conflicts(kernel, alike), lonely)):
        assert export(result, tmp_path / f"{number}.csv") == export(result, tmp_path / f"{number}.parquet") == 0
        assert (tmp_path / f"{number}.csv").read_text().splitlines() == [",".join(result.columns)]
        assert pq.read_table(tmp_path / f"{number}.parquet").column_names == list(result.columns)
    assert list(next(kinsight.label_suspects(kernel, data).rows())) == list(
        kinsight.label_suspects(kernel, data).columns
    )


def test_similarities_are_a_kernel_of_scikit_learn(made: Any) -> None:
    from sklearn.cluster import SpectralClustering
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.svm import SVC

    kernel, data, _ = made
    batch = data.take(range(N))
    train, test = batch[:30], batch[30:]
    own, other = kernel.similarity(train).numpy(), kernel.similarity(test, train).numpy()
    assert SVC(kernel="precomputed").fit(own, train.targets).score(other, test.targets) > 0.9
    said = KernelRidge(kernel="precomputed").fit(own, train.targets).predict(other)
    assert float(((said > 0.5) == test.targets.numpy()).mean()) > 0.9
    groups = SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(own.clip(0, 1))
    assert abs(np.corrcoef(groups, train.targets.numpy())[0, 1]) > 0.8
