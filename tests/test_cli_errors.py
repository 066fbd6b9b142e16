"""What fails on the command line is told in one line, with an exit status of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kinsight
from kinsight import cli
from tests.commands import COMMON, run, write_shop


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_shop(tmp_path, monkeypatch)


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
