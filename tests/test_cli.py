"""The command line says what the library says, and fails in one line."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import kinsight
from kinsight import cli

MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))

def broken():
    return nn.Linear(7, 2)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, weights and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    (tmp_path / "shop.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    np.savez(tmp_path / "queries.npz", x=x[:2] + 0.1)
    np.savez(tmp_path / "unlabelled.npz", x=x)
    torch.manual_seed(4)
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    return tmp_path


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    printed = capsys.readouterr()
    return int(exit_info.value.code or 0), printed.out, printed.err


@pytest.fixture
def kernel(folder: Path) -> Any:
    from kinsight.sources import load_model

    return kinsight.GradientKernel(load_model("shop:build", checkpoint="weights.safetensors", device="cpu"))


COMMON = ("--checkpoint", "weights.safetensors", "--quiet", "--device", "cpu")


def test_neighbors(folder: Path, kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = kinsight.Samples(torch.from_numpy(np.load("data.npz")["x"]))
    queries = torch.from_numpy(np.load("queries.npz")["x"])
    expected = list(kinsight.neighbors(kernel, queries, data, 3, normalization="flat").rows())
    arguments = ("neighbors", "shop:build", "npz:data.npz", "--queries", "npz:queries.npz", "-k", "3", *COMMON)
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["normalization"] == "flat"
    assert [row["neighbor"] for row in document["rows"]] == [row["neighbor"] for row in expected]
    assert [row["similarity"] for row in document["rows"]] == pytest.approx([row["similarity"] for row in expected])
    status, out, _ = run(capsys, *arguments)
    lines = out.splitlines()
    assert lines[0] == "query\trank\tneighbor\tsimilarity"
    assert len(lines) == 7
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
    expected = kinsight.label_suspects(kernel, data, power=2)
    arguments = ("labels", "shop:build", "npz:data.npz", "--power", "2", *COMMON, "--json")
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
    arguments = ("labels", "shop:build", "csv:data.csv?target=animal", "--power", "2", *COMMON)
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
    assert err.startswith("error: page.html exists. Pass --overwrite")


@pytest.mark.parametrize(
    ("out", "message"), [("missing/page.html", "error: There is no folder missing"), (".", "error: . is a folder")]
)
def test_report_refuses_before_it_computes(
    folder: Path, out: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, "report", "no:model", "npz:nowhere.npz", "--out", out, *COMMON)
    assert status == 2
    assert err.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("labels", "shop:build", "npz:unlabelled.npz"), "error: The data has no targets"),
        (("labels", "shop:build", "npz:nowhere.npz"), "error: "),
        (("labels", "shop:nothing", "npz:data.npz"), "error: "),
        (("labels", "shop:broken", "npz:data.npz"), "error: The model Linear raised RuntimeError"),
        (("labels", "shop:build", "data.npz"), "error: "),
        (("labels", "shop:build", "npz:data.npz", "--output", "softmax"), "error: output='softmax' is unknown"),
        (("labels", "shop:build", "npz:data.npz", "--output", "probes:x"), "error: --output probes:x"),
        (
            ("labels", "shop:build", "npz:data.npz", "--parameters", "head.*"),
            "error: --parameters head.*: no parameter of the Seq",
        ),
        (("neighbors", "shop:build", "npz:data.npz", "--ids", "99"), "error: There is no sample '99'"),
    ],
)
def test_errors_are_one_line(
    folder: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *arguments, "--quiet", "--device", "cpu")
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    with pytest.raises(kinsight.errors.KinsightError):
        cli.main((*arguments, "--quiet", "--device", "cpu", "--debug"))


def test_usage_errors_exit_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "neighbors", "shop:build")
    assert status == 2
    assert "Usage: kinsight neighbors" in err
    assert run(capsys, "neighbors", "shop:build", "npz:data.npz", "-k", "0")[0] == 2


def test_interruption_exits_with_130(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kinsight.labels.label_suspects", interrupt)
    status, _, err = run(capsys, "labels", "shop:build", "npz:data.npz", "--quiet")
    assert status == 130
    assert "interrupted" in err


def test_what_nobody_expected_is_no_finding(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("kinsight.labels.label_suspects", fail)
    arguments = ("labels", "shop:build", "npz:data.npz", "--quiet")
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err == "error: unexpected ZeroDivisionError: by zero (--debug shows where)\n"
    with pytest.raises(ZeroDivisionError):
        cli.main((*arguments, "--debug"))


def test_ids_cannot_command_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.load("data.npz")["x"]
    np.savez(folder / "hostile.npz", x=x, ids=[f"\x1b[31m\t{i}" for i in range(len(x))])
    _, out, _ = run(capsys, "density", "shop:build", "npz:hostile.npz", *COMMON)
    assert "\x1b" not in out
    assert {len(line.split("\t")) for line in out.splitlines()} == {2}
    assert out.splitlines()[1].startswith("\\x1b[31m\\t")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_table_of_the_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(cli, "_TABLE_ENDS", 3)
    with pytest.raises(SystemExit):
        cli.main(("density", "shop:build", "npz:data.npz", *COMMON))
    shown = sys.stdout.getvalue()
    assert "count" in shown
    assert sum(line.startswith("│") for line in shown.splitlines()) == 6
    assert "14 rows between them are not shown" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m kinsight density shop:build npz:data.npz --quiet --device cpu | true"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    bash = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(bash, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_options_reach_the_kernel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("density", "shop:build", "npz:data.npz", *COMMON, "--json")
    plain = json.loads(run(capsys, *arguments)[1])["rows"]
    for options in (("--output", "one_vs_rest"), ("--output", "probes:3", "--seed", "1"), ("--parameters", "2.*")):
        assert json.loads(run(capsys, *arguments, *options)[1])["rows"] != plain
    double = json.loads(run(capsys, *arguments, "--dtype", "float64")[1])["rows"]
    counts = {row["id"]: row["count"] for row in plain}
    assert all(row["count"] == pytest.approx(counts[row["id"]], rel=1e-4) for row in double)
    assert len(json.loads(run(capsys, *arguments, "--limit", "5")[1])["rows"]) == 5


def test_undefined_counts_are_null_and_named_on_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "plain.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(3, 2, bias=False)\n")
    x = np.ones((4, 3), np.float32)
    x[2] = 0
    np.savez(folder / "zero.npz", x=x)
    status, out, err = run(capsys, "density", "plain:build", "npz:zero.npz", "--quiet", "--json", "--device", "cpu")
    assert status == 0
    assert json.loads(out)["rows"][-1] == {"id": 2, "count": None}
    assert "warning: The gradient of 1 samples is zero: [2]" in err


def test_progress_goes_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "density", "shop:build", "npz:data.npz", "--device", "cpu", "--json")
    assert status == 0
    assert json.loads(out)["rows"]
    assert "soft count: 40/40" in err


def test_the_installed_commands() -> None:
    for command in ([sys.executable, "-m", "kinsight", "--help"], [sys.executable, "-m", "kinsight", "--version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "kinsight" in done.stdout
