"""Options of all verbs: data, weights, precision and memory as asked, and the library's own defaults."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import kinsight
from kinsight import cli
from kinsight.cli import loading, options
from tests.commands import COMMON, network, run, write_shop


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_shop(tmp_path, monkeypatch)


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


def test_options_reach_the_kernel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("density", "shop:build", "npz:data.npz", *COMMON, "--json")
    plain = json.loads(run(capsys, *arguments)[1])["rows"]
    for given in (("--output", "one_vs_rest"), ("--output", "probes:3", "--seed", "1"), ("--parameters", "2.*")):
        assert json.loads(run(capsys, *arguments, *given)[1])["rows"] != plain
    double = json.loads(run(capsys, *arguments, "--dtype", "float64")[1])["rows"]
    counts = {row["id"]: row["count"] for row in plain}
    assert all(row["count"] == pytest.approx(counts[row["id"]], rel=1e-4) for row in double)
    assert len(json.loads(run(capsys, *arguments, "--limit", "5")[1])["rows"]) == 5
