"""What tests of sources share: all samples at once, a module of factories, and what no reader may unpickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kinsight.samples import Samples, concatenate


def everything(samples: Samples) -> Any:
    return concatenate(list(samples.batches()))


FACTORIES = """
import torch
from torch import nn
from kinsight.samples import Samples

x = torch.arange(6.0).view(3, 2)
def data(): return x
def samples(): return Samples(x, ids=["a", "b", "c"], batch_size=2)
def model(): return nn.Linear(2, 3)
here = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 3))
class Net(nn.Linear):
    def __init__(self): super().__init__(2, 3)
class Zoo:
    @staticmethod
    def small(): return nn.Linear(2, 3)
def needy(n): return n
def broken(): raise KeyError("lost")
number = 3
"""


def write_factories(folder: Path) -> str:
    """Write a module of factories, and one beside it that cannot be imported; the name of the first."""
    name = f"made_{folder.name}"
    (folder / f"{name}.py").write_text(FACTORIES)
    (folder / f"{name}_broken.py").write_text("import not_there_at_all")
    return name


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
