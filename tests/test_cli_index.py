"""The command line builds an index, asks it, and checks it."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import kinsight
from kinsight.sources import load_model
from tests.commands import answer, run, write_module

MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
"""
QUIET = ("--quiet", "--device", "cpu")
BUILD = ("index", "shop:build", "npz:data.npz", "--out", "ours", *QUIET)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data, and an index of them."""
    write_module(tmp_path, monkeypatch, MODULE)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    np.savez(tmp_path / "large.npz", x=rng.normal(size=(300, 3)).astype(np.float32))
    np.savez(tmp_path / "queries.npz", x=x[:2] + 0.1)
    more = {"x": x + 1, "ids": np.array([f"new {row}" for row in range(60)])}
    np.savez(tmp_path / "unlabelled.npz", **more)
    np.savez(tmp_path / "more.npz", **more, y=(x[:, 0] > 0).astype(np.int64))
    return tmp_path


def test_build_info_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = answer(capsys, *BUILD, "--dim", "128", "--seed", "3")
    assert (built["samples"], built["dim"], built["seed"], built["is_complete"]) == (60, 128, 3, True)
    assert answer(capsys, "info", "ours") == built
    index = kinsight.Index(folder / "ours")
    assert {**index.info(), "folder": "ours"} == built
    assert answer(capsys, "verify", "ours", "--quiet") == {"n_files": built["files"], "leftovers": [], "rows": []}
    status, out, _ = run(capsys, "info", "ours")
    assert status == 0
    assert "samples\t60" in out.splitlines()


def test_the_index_answers_as_without_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD)
    asked = ("neighbors", "shop:build", "npz:data.npz", "--queries", "npz:queries.npz", "-k", "3", *QUIET)
    truth, found = answer(capsys, *asked), answer(capsys, *asked, "--index", "ours")
    assert [row["neighbor"] for row in found["rows"]] == [row["neighbor"] for row in truth["rows"]]
    assert [row["similarity"] for row in found["rows"]] == pytest.approx([row["similarity"] for row in truth["rows"]])
    assert found["error"] is None
    assert answer(capsys, *asked, "--index", "ours", "--ids", "1")["rows"][0]["query"] == 1


def test_the_index_answers_without_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD)
    found = answer(capsys, "neighbors", "--index", "ours", "--ids", "7", "--ids", "20", "-k", "2", "--quiet")
    assert {row["query"] for row in found["rows"]} == {7, 20}
    kernel = kinsight.GradientKernel(load_model("shop:build", device="cpu"))
    data = kinsight.Samples(np.load("data.npz")["x"])
    truth = kinsight.neighbors(kernel, data.take([7, 20]), data, 2)
    values = [row["similarity"] for row in found["rows"]]
    assert values == pytest.approx(truth.similarities.flatten().tolist(), abs=6 * found["error"] + 1e-3)


def test_neighbors_of_all_hubs_and_duplicates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD)
    asked = ("neighbors", "--index", "ours", "-k", "4", "--quiet")
    found = answer(capsys, *asked)
    table = kinsight.Index("ours").neighbor_table()
    assert found["rows"] == list(table.rows())
    assert len(found["rows"]) == 60 * 4
    exact = answer(capsys, "neighbors", "shop:build", "npz:data.npz", "--index", "ours", "-k", "4", *QUIET)
    truth = answer(capsys, "neighbors", "shop:build", "npz:data.npz", "-k", "4", *QUIET)
    assert [row["neighbor"] for row in exact["rows"]] == [row["neighbor"] for row in truth["rows"]]
    hubs = answer(capsys, *asked, "--hubs", "3")
    counts = table.occurrences()
    assert [row["neighbor_of"] for row in hubs["rows"]] == counts.sort(descending=True).values[:3].tolist()
    assert hubs["skewness"] == pytest.approx(table.skewness)
    groups = answer(capsys, *asked, "--duplicates", "0.95")
    wanted = [{"group": number, "id": row} for number, group in enumerate(table.duplicates(0.95)) for row in group]
    assert groups["rows"] == wanted


@pytest.mark.parametrize(
    ("verb", "asked"),
    [("neighbors", kinsight.neighbors), ("density", kinsight.soft_count), ("labels", kinsight.label_suspects)],
)
def test_the_similarity_is_the_librarys_or_the_indexs(
    verb: str, asked: Callable[..., Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = inspect.signature(asked).parameters["normalization"].default
    assert answer(capsys, verb, "shop:build", "npz:data.npz", *QUIET)["normalization"] == own
    other = {"flat": "whitened", "whitened": "flat"}[own]
    answer(capsys, *BUILD, "--normalization", other)
    ids = ("--ids", "1") if verb == "neighbors" else ()
    assert answer(capsys, verb, "--index", "ours", "--quiet", *ids)["normalization"] == other


def test_denoising_factors_of_an_index(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD, "--normalization", "flat")
    found = answer(capsys, "denoise", "--index", "ours", "--quiet")
    sums = kinsight.Index("ours").denoising_sums()
    assert [row["factors"] for row in found["rows"]] == pytest.approx(sums.factors.tolist(), nan_ok=True)
    assert found["summary"] == sums.summary()
    for option in (("--weight-decay", "0.1"), ("--n-probes", "8"), ("--decayed", "*"), ("--method", "exact")):
        status, _, err = run(capsys, "denoise", "--index", "ours", "--quiet", *option)
        assert status == 2
        assert err.startswith(f"error: {option[0]} says nothing to the sketches of --index")


def test_neighbors_as_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD)
    found = answer(capsys, "neighbors", "--index", "ours", "-k", "3", *QUIET[:1])
    written = answer(capsys, "neighbors", "--index", "ours", "-k", "3", "--out", "near.csv", *QUIET[:1])
    assert written["rows"] == [{"file": "near.csv", "rows": len(found["rows"])}]
    heading, *lines = Path("near.csv").read_text().splitlines()
    assert heading.split(",") == list(found["rows"][0])
    assert len(lines) == len(found["rows"])
    found = answer(capsys, "neighbors", "--index", "ours", "--duplicates", "1", "--out", "none.parquet", *QUIET[:1])
    assert pq.read_table("none.parquet").column_names == ["group", "id"]
    assert found["summary"] == "0 groups of 0 samples are connected by similarities of 1.0 or more."


def test_a_report_from_an_index(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD)
    (written,) = answer(capsys, "report", "shop:build", "npz:data.npz", "--index", "ours", *QUIET)["rows"]
    assert " numbers a sample" in Path(written["path"]).read_text(encoding="utf-8")


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = answer(capsys, *BUILD, "--dim", "128", "--dry-run")["rows"]
    assert (found["question"], found["n"], found["dim"]) == ("index", 60, 128)
    assert found["result_bytes"] >= 60 * 128 * 2
    assert not (folder / "ours").exists()
    answer(capsys, *BUILD, "--dim", "192")
    (found,) = answer(capsys, *BUILD, "--append", "--dry-run")["rows"]
    assert found["dim"] == 192


def test_worker_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = answer(capsys, *BUILD, "--dim", "128", "--workers", "2")
    assert built["samples"] == 60
    status, _, err = run(capsys, *BUILD, "--workers", "-1")
    assert status == 2
    assert "--workers" in err


@pytest.mark.slow
def test_a_ray_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = (sys.executable, "-m", "kinsight", *BUILD, "--dim", "128", "--engine", "ray", "--json")
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{Path(kinsight.__file__).parent.parent}"}
    built = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["samples"] == 60


def test_append_resume_overwrite(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = answer(capsys, *BUILD)
    status, _, err = run(capsys, "index", "shop:build", "npz:unlabelled.npz", "--out", "ours", *QUIET, "--append")
    assert status == 2
    assert "Targets of the index are int64" in err
    more = ("index", "shop:build", "npz:more.npz", "--out", "ours", *QUIET)
    assert answer(capsys, *more, "--append")["samples"] == 120
    status, _, err = run(capsys, *more, "--append")
    assert status == 2
    assert "The id 'new 0' is in the index already" in err
    status, _, err = run(capsys, *BUILD)
    assert status == 2
    assert "There is an index in 'ours'" in err
    again = answer(capsys, *BUILD, "--overwrite", "--dim", str(built["dim"]))
    assert {**again, "bytes": 0} == {**built, "bytes": 0}
    assert answer(capsys, *BUILD, "--resume") == again
    status, _, err = run(capsys, *BUILD, "--append", "--resume")
    assert status == 2
    assert "neither --resume nor --overwrite" in err


def test_approximate_search(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = answer(capsys, "index", "shop:build", "npz:large.npz", "--out", "large", "--search", *QUIET)
    assert 0.9 < built["recall"] <= 1
    asked = ("neighbors", "--index", "large", "--ids", "7", "-k", "3", "--quiet")
    assert len(answer(capsys, *asked)["rows"]) == 3


def test_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD)
    found = answer(capsys, "export", "ours", "ours.parquet")
    assert found == {"file": "ours.parquet", "rows": 60, "bytes": (folder / "ours.parquet").stat().st_size}
    assert len(kinsight.Index.of_parquet("ours.parquet", "again")) == 60
    status, _, err = run(capsys, "export", "ours", "ours.parquet")
    assert status == 2
    assert "'ours.parquet' is there already" in err


def test_damage_is_named_with_status_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD)
    (file,) = (folder / "ours" / "rows.lance" / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    status, out, _ = run(capsys, "verify", "ours", "--json", "--quiet")
    assert status == 1
    assert json.loads(out)["rows"] == [
        {"file": f"rows.lance/data/{file.name}", "damage": "has other bytes than those committed"}
    ]


@pytest.mark.parametrize("kind", ["soft", "hard", "power"])
def test_counts_of_an_index(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD)
    found = answer(capsys, "density", "--index", "ours", "--kind", kind, "--quiet")
    truth = answer(capsys, "density", "shop:build", "npz:data.npz", "--kind", kind, *QUIET)
    assert (found["kind"], found["normalization"], found["n_data"]) == (kind, "whitened", 60)
    exact = {row["id"]: row["count"] for row in truth["rows"]}
    for row in found["rows"]:
        assert row["count"] == pytest.approx(exact[row["id"]], abs=4 * row["error"] + 1)
    assert [row["count"] for row in found["rows"]] == sorted(row["count"] for row in found["rows"])


def test_label_suspects_of_an_index(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *BUILD, "--normalization", "flat")
    found = answer(capsys, "labels", "--index", "ours", "--top", "3", "--quiet")
    truth = answer(capsys, "labels", "shop:build", "npz:data.npz", "--top", "3", *QUIET)
    assert 0 < found["error"] < 0.07
    own = dict.fromkeys(("rows", "error", "n_suspects", "summary"))
    assert {**found, **own} == {**truth, **own}
    assert {row["id"] for row in found["rows"]} == {row["id"] for row in truth["rows"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "nowhere"), "There is no index in 'nowhere'"),
        (("verify", "nowhere"), "There is no index in 'nowhere'"),
        (("neighbors", "--index", "nowhere", "--ids", "1"), "There is no index in 'nowhere'"),
        (("neighbors", "--index", "ours", "--hubs", "3", "--ids", "1"), "--duplicates and --hubs are of all samples"),
        (("neighbors", "shop:build", "npz:data.npz", "--hubs", "3"), "pass --index"),
        (("neighbors", "--index", "ours", "--hubs", "3", "--duplicates", "0.9"), "ask one at a time"),
        (("neighbors", "--index", "ours", "--ids", "99"), "There is no sample '99'"),
        (("neighbors", "--index", "ours", "--queries", "npz:queries.npz"), "MODEL is needed"),
        (("neighbors", "--ids", "1"), "MODEL and DATA are needed"),
        (("density", "shop:build"), "MODEL and DATA are needed"),
        (("labels",), "MODEL and DATA are needed"),
        (("labels", "--index", "nowhere"), "There is no index in 'nowhere'"),
        (("labels", "--index", "ours", "--normalization", "flat"), "Index 'ours' is of whitened similarity, not flat"),
        (("density", "shop:build", "--index", "ours"), "leave MODEL and DATA out"),
        (("index", "shop:build", "npz:data.npz", "--out", "shop.py"), "holds something that is no index"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, *BUILD)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
