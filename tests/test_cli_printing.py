"""What is printed where: tables on a terminal, tabs in a pipe, progress and warnings on stderr."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kinsight
from kinsight import cli
from tests.commands import COMMON, run, write_shop


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_shop(tmp_path, monkeypatch)


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
