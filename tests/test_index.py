"""The index: built once, resumed where it stopped, answering as the kernel does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kinsight import GradientKernel, Index, Samples, sketch
from kinsight.errors import (
    ChangedDataError,
    IncompleteIndexError,
    IndexExistsError,
    InputError,
    NoIndexError,
    NonFiniteError,
    TargetError,
    UnknownNameError,
    WrongModelError,
)
from kinsight.identity import content_digests, identity_of
from kinsight.indexing.engine import read_ahead
from kinsight.indexing.store import Store
from kinsight.outputs import one_vs_rest, probes
from kinsight.samples import Batch
from kinsight.sketch import dim_for
from tests.faults import columns_of, finish, killed_builder
from tests.indexes import DIM, data, network

HALF = 2e-3
"""Sketches are kept in half precision, their largest numbers below 1."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinsight.indexing.building.MAX_SHARD", 64)


@pytest.fixture
def kernel() -> GradientKernel:
    return GradientKernel(network())


@pytest.fixture
def index(kernel: GradientKernel, tmp_path: Path) -> Index:
    return Index.build(tmp_path / "index", kernel, data(), dim=DIM)


class Interrupted(Samples):
    """Data whose reading fails after so many batches."""

    n_batches = 2

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        for number, batch in enumerate(super().batches(batch_size)):
            if number == self.n_batches and batch_size != 1:
                raise KeyboardInterrupt
            yield batch


def interrupted(folder: Path, kernel: GradientKernel, samples: Samples | None = None, n_batches: int = 2) -> None:
    """Begin an index and stop after some shards."""
    stopped = Interrupted.__new__(Interrupted)
    stopped.__dict__.update((samples or data()).__dict__)
    stopped.n_batches = n_batches
    with pytest.raises(KeyboardInterrupt):
        Index.build(folder, kernel, stopped, dim=DIM)


def columns(index: Index) -> dict[str, list[Any]]:
    """All that is kept, by column."""
    names = ["row", "id", "is_number", "content", "sketch", "norm", "rank", "outputs", "target", "preview"]
    parts = list(index.store.scan("rows", names))
    return {name: [value for part in parts for value in part[name].to_pylist()] for name in names}


def test_what_is_kept(index: Index, kernel: GradientKernel) -> None:
    samples = data()
    batch = samples.take(range(len(samples)))
    found = sketch(kernel, batch, DIM)
    assert len(index) == 300
    assert index.ids == samples.ids
    assert torch.equal(index.targets, samples.targets)
    assert index.targets.dtype == torch.int64
    assert (index.norms - found.norms).abs().max() < 1e-12 * found.norms.max()
    assert (index.outputs - found.outputs).abs().max() < 1e-6
    values = torch.cat([part for _, part in index.sketches()])
    assert (values - found.values).abs().max() < HALF
    assert columns(index)["row"] == list(range(300))
    assert columns(index)["content"] == content_digests(batch)
    assert columns(index)["preview"][7]["numbers"] == pytest.approx(batch.inputs[7].tolist())
    assert [shard["n"] for shard in index.store.tables["rows"]["shards"]] == [64, 64, 64, 64, 44]
    assert index.verify() == []


def test_the_error_is_measured_and_kept(index: Index) -> None:
    (part,) = index.about["parts"]
    assert part["error"]["n_samples"] == 64
    assert 0 < part["error"]["cosine"] <= part["error"]["inner"] < 2 / DIM**0.5
    assert 0 < part["error"]["inner_standard_error"] < part["error"]["inner"]
    assert index.error == part["error"]["cosine"]


def test_the_length_follows_from_the_error_asked_for(kernel: GradientKernel, tmp_path: Path) -> None:
    index = Index.build(tmp_path / "index", kernel, data(100), error=0.02)
    assert index.dim % 64 == 0
    assert 64 < index.dim < dim_for(0.02) / 4  # gradients of this network are far from the worst case
    assert 0.01 < index.about["parts"][0]["error"]["inner"] < 0.025  # another seed than those tried


def test_names_as_ids(kernel: GradientKernel, tmp_path: Path) -> None:
    names: list[Any] = [f"sample {number}" for number in range(99)] + [7]
    index = Index.build(tmp_path / "index", kernel, data(100, ids=names), dim=64)
    assert index.ids == tuple(names)
    assert index.neighbors(ids=["sample 3", 7], n_neighbors=1).query_ids == ("sample 3", 7)
    with pytest.raises(UnknownNameError, match="There is no sample '7' in the index"):
        index.neighbors(ids=["7"])


def test_resumed_is_as_built_at_once(index: Index, kernel: GradientKernel, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    interrupted(folder, kernel)
    partial = Index(folder, partial=True)
    assert len(partial) == 128
    assert partial.neighbors(ids=[3], n_neighbors=2).positions.max() < 128
    calls = []
    counted = GradientKernel(kernel.model)
    counted.model.register_forward_hook(lambda *_: calls.append(1))
    resumed = Index.build(folder, counted, data(), dim=DIM, resume=True)
    assert columns(resumed) == columns(index)
    assert resumed.verify() == []
    again = Index.build(folder, kernel, data(), resume=True)  # nothing is left to do
    assert columns(again) == columns(index)


def test_what_is_committed_is_not_computed_again(kernel: GradientKernel, tmp_path: Path, monkeypatch: Any) -> None:
    interrupted(tmp_path, kernel, n_batches=4)
    done: list[int] = []
    real = sketch
    monkeypatch.setattr(
        "kinsight.indexing.worker.sketch", lambda k, batch, *a, **b: done.extend(batch.ids) or real(k, batch, *a, **b)
    )
    Index.build(tmp_path, kernel, data(), dim=DIM, resume=True)
    assert done == list(range(256, 300))


def test_a_half_built_index_is_not_read_as_a_whole_one(kernel: GradientKernel, tmp_path: Path) -> None:
    interrupted(tmp_path, kernel)
    with pytest.raises(IncompleteIndexError, match=r"has 128 of 300 samples.*resume=True.*partial=True"):
        Index(tmp_path)
    with pytest.raises(IncompleteIndexError, match="half built: finish it first"):
        Index(tmp_path, partial=True).append(kernel, data(10, seed=3, ids=range(1000, 1010)))
    with pytest.raises(IndexExistsError):
        Index.build(tmp_path, kernel, data())


def changed(what: str) -> Samples:
    """The data of the index, but for something."""
    samples = data()
    x, y, ids = samples.take(range(300)).inputs.clone(), samples.targets.clone(), list(range(300))
    if what == "input":
        x[100, 2] += 1e-6
    elif what == "target":
        y[5] = 1 - y[5]
    elif what == "order":
        order = torch.randperm(300)
        x, y = x[order], y[order]
    elif what == "id":
        ids[70] = 1000
    elif what == "shorter":
        x, y, ids = x[:200], y[:200], ids[:200]
    else:
        x = x.double()
    return Samples(x, targets=y, ids=ids)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("input", r"position 100 \(100\) has another input or target"),
        ("target", r"position 5 \(5\) has another input or target"),
        ("order", "has changed since the index was built"),
        ("id", "position 70 has the id 1000 instead of 70"),
        ("shorter", "begun with 300 samples, and this data has 200"),
        ("precision", "has another input or target"),
    ],
)
def test_changed_data_is_noticed_at_resume(what: str, message: str, kernel: GradientKernel, tmp_path: Path) -> None:
    interrupted(tmp_path, kernel)
    with pytest.raises(ChangedDataError, match=message):
        Index.build(tmp_path, kernel, changed(what), resume=True)
    assert len(Index(tmp_path, partial=True)) == 128  # and nothing is lost
    assert len(Index.build(tmp_path, kernel, data(), resume=True)) == 300


def test_changed_data_is_noticed_at_questions(index: Index, kernel: GradientKernel) -> None:
    with pytest.raises(ChangedDataError, match="another input or target"):
        index.neighbors(data(300, seed=5), n_neighbors=10, kernel=kernel, data=changed("order"))
    with pytest.raises(ChangedDataError, match="is of 300 samples and this data has 200"):
        index.neighbors(ids=[1], kernel=kernel, data=changed("shorter"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: GradientKernel(network(seed=9)), "was built from weights .*Similarities across weights mean nothing"),
        (
            lambda: GradientKernel(network(), one_vs_rest()),
            "was built for output logits.*, this kernel has one_vs_rest",
        ),
        (lambda: GradientKernel(network(), probes(k=2, seed=1)), r"this kernel has probes\(k=2, seed=1\)"),
        (lambda: GradientKernel(network(), parameters=lambda name: "2" in name), "over other parameters"),
    ],
)
def test_other_kernels_are_refused(other: Any, message: str, index: Index) -> None:
    kernel = other()
    with pytest.raises(WrongModelError, match=message):
        index.neighbors(data(2), kernel=kernel)
    with pytest.raises(WrongModelError, match=message):
        index.append(kernel, data(10, seed=2))
    with pytest.raises(WrongModelError, match=message):
        Index.build(index.folder, kernel, data(), resume=True)
    assert len(Index(index.folder)) == 300


def test_identity_is_of_weights_not_of_objects() -> None:
    assert identity_of(GradientKernel(network())) == identity_of(GradientKernel(network()))
    model = network()
    with torch.no_grad():
        model[0].weight[3, 2] += 1e-7
    assert identity_of(GradientKernel(model))["weights"] != identity_of(GradientKernel(network()))["weights"]


@pytest.mark.parametrize("given", [{"dim": 64}, {"seed": 4}, {"normalization": "flat"}])
def test_resuming_with_other_settings(given: dict[str, Any], kernel: GradientKernel, tmp_path: Path) -> None:
    interrupted(tmp_path, kernel)
    with pytest.raises(InputError, match=f"begun with {next(iter(given))}="):
        Index.build(tmp_path, kernel, data(), resume=True, **given)
    with pytest.raises(InputError, match="pass one of them"):
        Index.build(tmp_path, kernel, data(), resume=True, overwrite=True)


def test_a_loader_with_workers(kernel: GradientKernel, index: Index, tmp_path: Path) -> None:
    batch = data().take(range(300))
    loader = DataLoader(TensorDataset(batch.inputs, batch.targets), batch_size=50, num_workers=2)
    assert columns(Index.build(tmp_path / "loaded", kernel, loader, dim=DIM)) == columns(index)


def test_worker_processes(kernel: GradientKernel, index: Index, tmp_path: Path) -> None:
    batch = data().take(range(300))
    dataset = TensorDataset(batch.inputs, batch.targets)
    for number, samples in enumerate([Samples(dataset), Samples(dataset).first(300), data()]):
        read = samples.read_by(2)
        assert columns(Index.build(tmp_path / str(number), kernel, read, dim=DIM)) == columns(index)
    assert [batch.ids for batch in Samples(dataset).first(100).read_by(2).batches(64)] == [
        tuple(range(64)), tuple(range(64, 100)),
    ]  # fmt: skip
    with pytest.raises(InputError, match="n_workers is -1: 0 reads in this process"):
        samples.read_by(-1)


def test_append(index: Index, kernel: GradientKernel, tmp_path: Path) -> None:
    more = data(100, seed=2, ids=[f"new {number}" for number in range(100)])
    longer = index.append(kernel, more)
    assert len(index) == 300  # stays what it was when it was opened
    assert len(longer) == 400
    assert longer.ids == (*range(300), *more.ids)
    assert torch.equal(longer.targets, torch.cat([data().targets, more.targets]))
    at_once = Samples(torch.cat([data().take(range(300)).inputs, more.take(range(100)).inputs]), longer.targets)
    whole = Index.build(tmp_path / "whole", kernel, at_once, dim=DIM)
    for name in ("row", "content", "sketch", "norm", "outputs", "target"):
        assert columns(longer)[name] == columns(whole)[name]
    with pytest.raises(ChangedDataError, match="The id 'new 0' is in the index already"):
        longer.append(kernel, more)
    assert len(Index(index.folder)) == 400


@pytest.mark.parametrize("targets", [None, torch.rand(10), torch.zeros(10, 2, dtype=torch.long)])
def test_labels_of_another_kind_are_not_appended(index: Index, kernel: GradientKernel, targets: Tensor | None) -> None:
    """Else nothing could be asked about any label any more."""
    more = Samples(torch.rand(10, 6), targets, ids=range(1000, 1010))
    with pytest.raises(TargetError, match="Targets of the index are int64"):
        index.append(kernel, more)
    assert Index(index.folder).label_suspects().all_ids == index.ids


def test_labels_are_appended_where_there_are_none(kernel: GradientKernel, tmp_path: Path) -> None:
    folder = tmp_path / "unlabelled"
    Index.build(folder, kernel, Samples(torch.randn(20, 6)), dim=DIM)
    more = Samples(torch.randn(10, 6), torch.zeros(10, dtype=torch.long), ids=range(100, 110))
    assert len(Index(folder).append(kernel, more)) == 30


def test_an_interrupted_append_goes_on(index: Index, kernel: GradientKernel) -> None:
    options: dict[str, Any] = {"seed": 2, "ids": range(300, 500)}
    more = data(200, **options)
    with pytest.raises(KeyboardInterrupt):
        index.append(kernel, Interrupted(more.take(range(200)), ids=more.ids))
    with pytest.raises(IncompleteIndexError, match=r"has 428 of 500 samples.*append\(\) of the same data"):
        Index(index.folder)
    longer = Index(index.folder, partial=True).append(kernel, more)
    assert longer.ids == tuple(range(500))
    again = Index.build(index.folder, kernel, data(), resume=True)  # the first data: all there, and the same
    assert columns(again) == columns(longer)
    assert [part["n"] for part in again.about["parts"]] == [300, 200]
    changed = Samples(data().take(range(300)).inputs + 1, data().targets)
    with pytest.raises(ChangedDataError, match="the sample at position 0"):
        Index.build(index.folder, kernel, changed, resume=True)


def test_nan_is_named_and_what_was_done_stays(kernel: GradientKernel, tmp_path: Path) -> None:
    samples = data()
    x = samples.take(range(300)).inputs.clone()
    x[200, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=r"1 of 64 samples are nan or inf: \[200\]"):
        Index.build(tmp_path, kernel, Samples(x, samples.targets), dim=64)
    assert len(Index(tmp_path, partial=True)) == 192


def test_images_and_texts_are_kept_small(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 300, 1)).eval()
    kernel, x = GradientKernel(model), torch.rand(4, 3, 20, 300)
    index = Index.build(tmp_path / "images", kernel, x, dim=16)
    png = columns(index)["preview"][0]["png"]
    assert png.startswith(b"\x89PNG")
    assert len(png) < 2**15
    texts = Index.build(tmp_path / "texts", kernel, Samples(x, preview=lambda row: f"{row} " * 5000), dim=16)
    assert [len(each["text"]) for each in columns(texts)["preview"]] == [2000] * 4
    without = Index.build(tmp_path / "none", kernel, x, dim=16, previews=False)
    assert columns(without)["preview"] == [None] * 4


def test_targets_that_are_not_there(kernel: GradientKernel, tmp_path: Path) -> None:
    index = Index.build(tmp_path, kernel, torch.randn(10, 6), dim=16)
    with pytest.raises(TargetError, match="has no targets"):
        _ = index.targets


def test_questions_that_make_no_sense(index: Index, kernel: GradientKernel, tmp_path: Path) -> None:
    for asked, message in (
        ({}, "Pass queries"),
        ({"queries": data(2), "ids": [1]}, "Pass queries"),
        ({"ids": [1], "n_neighbors": 0}, "n_neighbors is 0: it has to be a whole number"),
        ({"queries": data(2)}, "need kernel="),
        (
            {"ids": [1], "kernel": kernel, "data": data(), "n_candidates": 3},
            "n_candidates is 3: it has to be a whole number, 10 or more",
        ),
    ):
        with pytest.raises(InputError, match=message):
            index.neighbors(**asked)
    with pytest.raises(NoIndexError):
        Index(tmp_path / "nowhere")
    with pytest.raises(InputError, match="at least 1"):
        Index.build(tmp_path / "new", kernel, data(), dim=0)
    assert not (tmp_path / "new").exists()


def test_a_reader_reads_while_it_is_written(index: Index, kernel: GradientKernel) -> None:
    """Snapshots taken while another thread appends are whole: never torn, never fewer than before."""
    sizes: list[int] = []
    writing = threading.Event()

    def read() -> None:
        while not writing.is_set():
            found = Index(index.folder, partial=True)
            values = sum(len(part) for _, part in found.sketches())
            sizes.append(values if values == len(found) else -1)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        index.append(kernel, data(1000, seed=3, ids=range(300, 1300)))
    finally:
        writing.set()
        reader.join()
    assert sizes == sorted(sizes)
    assert min(sizes) >= 300
    assert Store.open(index.folder).n_rows("rows") == 1300


def test_reading_ahead() -> None:
    with read_ahead(range(100)) as items:
        assert list(items) == list(range(100))

    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    with read_ahead(failing()) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="torn"):
            next(items)
    before = threading.active_count()
    with read_ahead(iter(int, 1)) as items:  # endless, and left early
        assert next(items) == 0
    assert threading.active_count() == before


def test_the_format_is_written_down(index: Index) -> None:
    text = (Path(__file__).parent.parent / "docs" / "index-format.md").read_text()
    rows = text.split("## The table of rows")[1].split("##")[0]
    named = [line.split("`")[1] for line in rows.splitlines() if line.startswith("| `")]
    assert named == index.store.dataset("rows").schema.names
    about = text.split("`about`:")[1].split("##")[0]
    known = {
        name for line in about.splitlines() if line.startswith("| `") for name in line.split("|")[1].split("`")[1::2]
    }
    assert known == {*index.about, "neighbors", "search"}


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    for seconds in (0.1, 0.3, 0.5, 0.2, 0.4):
        if killed_builder(tmp_path / "killed", seconds):
            break
        found = Index(tmp_path / "killed", partial=True)
        assert found.verify() == []
    assert columns_of(finish(tmp_path / "killed")) == columns_of(finish(tmp_path / "at once"))
