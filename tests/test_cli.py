"""The command line says what the library says, verb by verb; help comes at once, under the names it is installed by."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kinsight
from kinsight import cli
from tests.commands import COMMON, run, write_shop


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_shop(tmp_path, monkeypatch)


@pytest.fixture
def kernel(folder: Path) -> Any:
    from kinsight.sources import load_model

    return kinsight.GradientKernel(load_model("shop:build", checkpoint="weights.safetensors", device="cpu"))


def test_neighbors(folder: Path, kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = kinsight.Samples(torch.from_numpy(np.load("data.npz")["x"]))
    queries = torch.from_numpy(np.load("queries.npz")["x"])
    expected = list(kinsight.neighbors(kernel, queries, data, 3).rows())
    arguments = ("neighbors", "shop:build", "npz:data.npz", "--queries", "npz:queries.npz", "-k", "3", *COMMON)
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["normalization"] == "whitened"
    assert [row["neighbor"] for row in document["rows"]] == [row["neighbor"] for row in expected]
    assert [row["similarity"] for row in document["rows"]] == pytest.approx([row["similarity"] for row in expected])
    status, out, _ = run(capsys, *arguments)
    lines = out.splitlines()
    assert lines[0] == "query\trank\tneighbor\tsimilarity"
    assert len(lines) == 7
    flat = list(kinsight.neighbors(kernel, queries, data, 3, normalization="flat").rows())
    document = json.loads(run(capsys, *arguments, "--normalization", "flat", "--json")[1])
    assert document["normalization"] == "flat"
    assert [row["similarity"] for row in document["rows"]] == pytest.approx([row["similarity"] for row in flat])
    assert flat[0]["similarity"] != pytest.approx(expected[0]["similarity"])
    status, out, _ = run(capsys, "neighbors", "shop:build", "npz:data.npz", "--ids", "4", "-k", "2", *COMMON, "--json")
    rows = json.loads(out)["rows"]
    assert {row["query"] for row in rows} == {4}
    assert 4 not in {row["neighbor"] for row in rows}


@pytest.mark.parametrize("kind", ["soft", "hard", "power"])
def test_density(folder: Path, kernel: Any, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.from_numpy(np.load("data.npz")["x"])
    count = {"soft": kinsight.soft_count, "hard": kinsight.hard_count, "power": kinsight.power_count}[kind]
    expected = count(kernel, x, include_self=False)
    arguments = ("density", "shop:build", "npz:data.npz", "--kind", kind, "--no-self", *COMMON, "--json")
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    document = json.loads(out)
    assert document["n_data"] == 20
    assert [row["id"] for row in document["rows"]] == expected.order().tolist()
    assert [row["count"] for row in document["rows"]] == pytest.approx(sorted(expected.values.tolist()), abs=1e-5)


def test_labels(folder: Path, kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = np.load("data.npz")
    data = kinsight.Samples(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
    expected = kinsight.label_suspects(kernel, data, method="votes", power=2, threshold=0.0)
    chosen = ("--method", "votes", "--power", "2", "--threshold", "0")
    arguments = ("labels", "shop:build", "npz:data.npz", *chosen, *COMMON, "--json")
    status, out, _ = run(capsys, *arguments)
    document = json.loads(out)
    assert status == 0
    assert document["n_suspects"] == len(expected) > 0
    assert [row["id"] for row in document["rows"]] == list(expected.ids)
    assert [row["suggested"] for row in document["rows"]] == expected.suggested.tolist()
    assert run(capsys, *arguments, "--fail-on", "1")[0] == 1
    assert run(capsys, *arguments, "--fail-on", str(len(expected) + 1))[0] == 0
    status, out, _ = run(capsys, *arguments, "--top", "1", "--fail-on", str(len(expected)))
    assert len(json.loads(out)["rows"]) == 1
    assert json.loads(out)["n_suspects"] == len(expected)
    assert status == 1


def test_labels_are_named_where_the_data_names_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = np.load("data.npz")
    rows = zip(arrays["x"].tolist(), arrays["y"].tolist(), strict=True)
    lines = [f"{a},{b},{c},{'cat' if y else 'an owl'}" for (a, b, c), y in rows]
    (folder / "data.csv").write_text("\n".join(["a,b,c,animal", *lines]))
    arguments = ("labels", "shop:build", "csv:data.csv?target=animal", "--method", "votes", "--threshold", "0", *COMMON)
    first = json.loads(run(capsys, *arguments, "--json")[1])["rows"][0]
    assert (first["given_name"], first["suggested_name"]) in {("cat", "an owl"), ("an owl", "cat")}
    heading, *lines = run(capsys, *arguments)[1].splitlines()
    assert heading.split("\t") == list(first)
    assert first["given_name"] in lines[0].split("\t")


def test_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("report", "shop:build", "npz:data.npz", "--out", "page.html", *COMMON)
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert out.splitlines()[1].startswith("page.html\t")
    page = (folder / "page.html").read_text()
    assert "<html" in page
    status, out, _ = run(capsys, *arguments, "--overwrite", "--json")
    document = json.loads(out)
    assert document["rows"] == [{"path": "page.html", "bytes": len(page.encode())}]
    assert any(said.endswith("of the labels are what the network itself predicts") for said in document["headlines"])
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.startswith("error: --out page.html is there already: pass --overwrite")


@pytest.mark.parametrize(
    ("out", "message"), [("missing/page.html", "error: There is no folder missing"), (".", "error: . is a folder")]
)
def test_report_refuses_before_it_computes(
    folder: Path, out: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, "report", "no:model", "npz:nowhere.npz", "--out", out, *COMMON)
    assert status == 2
    assert err.startswith(message)


@pytest.mark.parametrize("question", ["gram", "similarity", "soft_count"])
def test_plan(folder: Path, question: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("plan", "shop:build", "npz:data.npz", "--question", question, *COMMON)
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    (row,) = json.loads(out)["rows"]
    assert (row["question"], row["n"], row["m"], row["batch_size"]) == (question, 20, 0, 20)
    assert row["seconds"] > 0
    assert row["peak_bytes"] > 0
    status, out, _ = run(capsys, *arguments, "--queries", "npz:queries.npz", "--batch-size", "7")
    header, line = out.splitlines()
    values = dict(zip(header.split("\t"), line.split("\t"), strict=True))
    assert (values["n"], values["m"], values["batch_size"]) == ("2", "20", "7")
    assert int(values["n_passes"]) == 4  # one of queries, three of data


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys)
    assert status == 2
    assert all(verb in out for verb in ("plan", "neighbors", "density", "labels", "report"))


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import atexit, sys, kinsight.cli\n"
        "slow = ('torch', 'numpy', 'PIL', 'lance', 'pyarrow')\n"
        "atexit.register(lambda: print([m for m in slow if m in sys.modules], file=sys.stderr))\n"
        "kinsight.cli.main(['labels', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "--fail-on" in done.stdout


def test_the_installed_commands() -> None:
    project = tomllib.loads((Path(kinsight.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["scripts"]["kinsight"]) is cli.main
    for command in ([sys.executable, "-m", "kinsight", "--help"], [sys.executable, "-m", "kinsight", "--version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "kinsight" in done.stdout
