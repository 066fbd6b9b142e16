"""The command line says what the library says, and fails in one line."""

import inspect
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import kinsight
from kinsight import cli
from kinsight.cli import loading, options

MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))

def broken():
    return nn.Linear(7, 2)

class Flat(nn.Sequential):
    def forward(self, x):
        return super().forward(x.flatten(1))

def flat():
    return Flat(*build())
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
    save_file(nn.Linear(2, 3).state_dict(), tmp_path / "other.safetensors")
    holed = x.copy()
    holed[[4, 7], 1] = np.nan
    np.savez(tmp_path / "nan.npz", x=holed, ids=list("abcdefghijklmnopqrst"))
    np.savez(tmp_path / "empty.npz", x=x[:0])
    np.savez(tmp_path / "short.npz", x=x, y=np.zeros(19, np.int64))
    (tmp_path / "latin.csv").write_bytes("café,b,c\n1,2,3\n".encode("latin-1"))
    (tmp_path / "ragged.csv").write_text("a,b,c\n1,2,3\n4,5\n")
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
            "error: --parameters 'head.*' fits no parameter: there are",
        ),
        (("neighbors", "shop:build", "npz:data.npz", "--ids", "99"), "error: There is no sample '99'"),
        (("density", "shop:build", "npz:nan.npz"), "error: The outputs of 2 of 20 samples are nan or inf: ['e', 'h']"),
        (("density", "shop:build", "npz:empty.npz"), "error: There are no samples: the data has length 0"),
        (("density", "shop:build", "npz:short.npz"), "error: 19 targets for 20 samples"),
        (("density", "shop:build", "csv:latin.csv"), "error: 'latin.csv', line 1 (byte 0xe9) is not UTF-8"),
        (("density", "shop:build", "csv:ragged.csv"), "error: 'ragged.csv', line 3: 2 cells for 3 columns"),
        (("density", "shop:build", "imagefolder:."), "error: There are no images"),
        (("density", "torch.nn:Identity", "npz:data.npz"), "error: No parameter of Identity is left"),
        (
            ("density", "shop:build", "npz:data.npz", "--checkpoint", "other.safetensors"),
            "error: Checkpoint 'other.safetensors' does not fit",
        ),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "a:b"), "error: Missing argument 'DATA'. (kinsight report --help shows what it takes)"),
        (("neighbors", "a:b", "digits", "-k", "0"), "error: Invalid value for '-k' / '--n-neighbors': "),
        (("labels", "a:b", "digits", "--normalization", "x"), "error: Invalid value for '--normalization'"),
        (("labels", "a:b", "digits", "--fast", "--debug"), "error: No such option: --fast"),
        (("label",), "error: No such command 'label'"),
        (
            ("density", "a:b", "digits", "--max-bytes", "2G"),
            "error: Invalid value for '--max-bytes': '2G' is no number of bytes, such as 512MB, 2GiB or 1000000.",
        ),
    ],
)
def test_usage_errors_are_one_line_too(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert "--help shows what it takes)" in err


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


@pytest.mark.parametrize("verb", ["index", "neighbors", "density", "labels", "report"])
def test_every_verb_takes_the_shared_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, verb, "--help")
    assert status == 0
    for field in fields(options.Options):
        name = {"as_json": "json"}.get(field.name, field.name.replace("_", "-"))
        assert len(re.findall(rf"(?<![\w-])--{name}\s", out)) == 1, name
    assert re.search(r"whitened: outputs\W+are\W+decorrelated.*flat:\W+one\W+cosine", out, re.DOTALL)


def test_defaults_are_those_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    from kinsight.explorer import write_report

    def defaults(function: Any) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters.values()
        return {each.name: each.default for each in parameters if each.default is not each.empty}

    of_library = [
        (cli.print_neighbors, kinsight.neighbors, {"k": "n_neighbors"}),
        (cli.print_density, kinsight.soft_count, {}),
        (cli.print_density, kinsight.hard_count, {}),
        (cli.print_density, kinsight.power_count, {}),
        (cli.print_labels, kinsight.label_suspects, {"top": "n_suspects"}),
        (cli.make_report, write_report, {}),
        (cli.make_index, kinsight.Index.build, {}),
    ]
    for verb, function, renamed in of_library:
        known = defaults(function)
        shared = {renamed.get(name, name): value for name, value in defaults(verb).items()}
        shared = {name: value for name, value in shared.items() if name in known}
        if shared["normalization"] is None:  # that of an index, or the library's, as test_cli_index tests
            del shared["normalization"]
        assert shared == {name: known[name] for name in shared}
    of_kernel = defaults(kinsight.GradientKernel.__init__)
    given = {field.name: field.default for field in fields(options.Options)}
    assert given["output"] == of_kernel["output"]
    assert given["batch_size"] == of_kernel["batch_size"]
    assert options.n_bytes("1GiB") == of_kernel["max_bytes"]  # as --help says
    assert re.search(r"--max-bytes.*?default: \(1GiB\)", run(capsys, "density", "--help")[1], re.DOTALL)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1), ("512MB", 512 * 10**6), ("2GiB", 2 * 2**30), ("1.5 kib", 1536), ("100B", 100), ("0.5TB", 5 * 10**11),
        ("3Tib", 3 * 2**40), (" 7 ", 7),
    ],
)  # fmt: skip
def test_numbers_of_bytes(text: str, number: int) -> None:
    assert options.n_bytes(text) == number


@pytest.mark.parametrize("text", ["", "0", "-1", "2G", "MB", "1_0", "1e9", "0.1B", "5iB", "nan", "٣MB", "9" * 30])
def test_what_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"is no number of bytes, such as 512MB, 2GiB or 1000000"):
        options.n_bytes(text)


@pytest.mark.parametrize("verb", ["neighbors", "density", "labels", "report"])
def test_memory_is_bounded_as_asked(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[kinsight.GradientKernel] = []
    init = kinsight.GradientKernel.__init__

    def noted(self: kinsight.GradientKernel, *arguments: Any, **keywords: Any) -> None:
        init(self, *arguments, **keywords)
        made.append(self)

    monkeypatch.setattr(kinsight.GradientKernel, "__init__", noted)
    of_labels = ("--method", "votes", "--threshold", "0") * (verb == "labels")
    arguments = (verb, "shop:build", "npz:data.npz", *of_labels, *COMMON, "--limit", "6", "--json")
    outputs = [
        run(capsys, *arguments, *more) for more in (("--max-bytes", "3kB"), ("--overwrite",) * (verb == "report"))
    ]
    assert list(dict.fromkeys(kernel.max_bytes for kernel in made)) == [3000, 2**30]
    data = kinsight.Samples(np.load("data.npz")["x"])
    assert made[0].block_size(data) < made[-1].block_size(data)
    assert [status for status, _, _ in outputs] == [0, 0]
    small, large = (json.loads(out)["rows"] for _, out, _ in outputs)
    assert len(small) == len(large) > 0
    for ours, theirs in zip(small, large, strict=True):
        assert ours == pytest.approx(theirs) if verb != "labels" else ours["id"] == theirs["id"]


@pytest.mark.parametrize("checkpoint", ["weights.safetensors", "weights.pt"])
def test_every_kind_of_data_and_checkpoint(checkpoint: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same colors as an image folder, a table and an archive: the same answers, by the same ids."""
    torch.save({"state_dict": network().state_dict(), "epoch": 3}, folder / "weights.pt")
    colors = np.random.default_rng(1).integers(0, 256, (6, 3), dtype=np.uint8)
    labels = [0, 0, 0, 1, 1, 1]
    names = [f"{'ab'[label]}/{i}.png" for i, label in enumerate(labels)]
    for name, color in zip(names, colors, strict=True):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(color.reshape(1, 1, 3)).save(folder / "photos" / name)
    x = colors.astype(np.float32) / 255
    np.savez(folder / "colors.npz", x=x, y=labels, ids=names)
    rows = zip(x.tolist(), labels, names, strict=True)
    lines = [f"{r!r},{g!r},{b!r},{'ab'[label]},{name}" for (r, g, b), label, name in rows]
    (folder / "colors.csv").write_text("\n".join(["r,g,b,kind,name", *lines]))
    common = ("--checkpoint", checkpoint, "--quiet", "--device", "cpu", "--json")
    neighbors, suspects = [], []
    for data in ("npz:colors.npz", "csv:colors.csv?target=kind&id=name", "imagefolder:photos"):
        for verb, found in (("neighbors", neighbors), ("labels", suspects)):
            status, out, err = run(capsys, verb, "shop:flat", data, *common)
            assert (status, err) == (0, "")
            found.append(json.loads(out))
    for others in neighbors[1:]:
        assert [row["neighbor"] for row in others["rows"]] == [row["neighbor"] for row in neighbors[0]["rows"]]
        expected = [row["similarity"] for row in neighbors[0]["rows"]]
        assert [row["similarity"] for row in others["rows"]] == pytest.approx(expected, abs=1e-6)
    assert {row["query"] for row in neighbors[0]["rows"]} == set(names)
    assert len({tuple(row["id"] for row in found["rows"]) for found in suspects}) == 1
    assert {found["n_data"] for found in suspects} == {6}
    assert run(capsys, "report", "shop:flat", "imagefolder:photos", *common)[0] == 0
    assert (folder / "report.html").read_text().count("data:image/") >= 6


def test_data_are_read_in_the_precision_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "wide.csv").write_text("a\n1e200\n-3e200\n")
    (folder / "line.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(1, 1, bias=False)\n")
    arguments = ("neighbors", "line:build", "csv:wide.csv", "-k", "1", "--quiet", "--json", "--device", "cpu")
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "1e+200 is beyond the range of float32" in err
    (folder / "tenth.csv").write_text("a\n0.1\n")
    before = torch.get_default_dtype()
    (x,) = loading.samples_of("csv:tenth.csv", options.Options(dtype=options.Precision.float64)).take([0]).inputs
    assert (x.item(), x.dtype) == (0.1, torch.float64)
    assert torch.get_default_dtype() == before


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


def test_interruption_exits_with_130(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kinsight.labels.suspects.label_suspects", interrupt)
    status, _, err = run(capsys, "labels", "shop:build", "npz:data.npz", "--quiet")
    assert status == 130
    assert "interrupted" in err


def test_what_nobody_expected_is_no_finding(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("kinsight.labels.suspects.label_suspects", fail)
    arguments = ("labels", "shop:build", "npz:data.npz", "--quiet")
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err == "error: unexpected ZeroDivisionError: by zero (--debug shows where)\n"
    with pytest.raises(ZeroDivisionError):
        cli.main((*arguments, "--debug"))


def test_errors_of_the_system_are_no_surprise(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "report.html")

    monkeypatch.setattr("kinsight.explorer.write_report", fail)
    status, out, err = run(capsys, "report", "shop:build", "npz:data.npz", *COMMON)
    assert (status, out) == (2, "")
    assert err == "error: [Errno 28] No space left on device: 'report.html'\n"


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
    monkeypatch.setattr(cli.printing, "TABLE_ENDS", 3)
    with pytest.raises(SystemExit):
        cli.main(("density", "shop:build", "npz:data.npz", *COMMON))
    shown = sys.stdout.getvalue()
    assert "count" in shown
    assert sum(line.startswith("│") for line in shown.splitlines()) == 6
    assert "14 rows between them are not shown" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m kinsight density shop:build npz:data.npz --quiet --device cpu | true"
    environment = {**os.environ, "PYTHONPATH": str(Path(kinsight.__file__).parent.parent)}
    bash = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(bash, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_options_reach_the_kernel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("density", "shop:build", "npz:data.npz", *COMMON, "--json")
    plain = json.loads(run(capsys, *arguments)[1])["rows"]
    for given in (("--output", "one_vs_rest"), ("--output", "probes:3", "--seed", "1"), ("--parameters", "2.*")):
        assert json.loads(run(capsys, *arguments, *given)[1])["rows"] != plain
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
    project = tomllib.loads((Path(kinsight.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["scripts"]["kinsight"]) is cli.main
    for command in ([sys.executable, "-m", "kinsight", "--help"], [sys.executable, "-m", "kinsight", "--version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "kinsight" in done.stdout
