"""What tests of the command line share: a folder with a model, weights and data, and how a command is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kinsight import cli

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

COMMON = ("--checkpoint", "weights.safetensors", "--quiet", "--device", "cpu")


def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A module `shop` in what is now the current folder, where it can be named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    (tmp_path / "shop.py").write_text(text)


def write_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, weights and data, in what is now the current folder."""
    write_module(tmp_path, monkeypatch, MODULE)
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


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)
