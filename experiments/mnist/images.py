"""Digits and clothes to learn from, to tune on, and to test with; and images moved a little."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from kinsight.sources import load_samples

DIGITS = Path(__file__).parent.parent.parent / "data" / "mnist"


@dataclass(frozen=True, eq=False)
class Images:
    """Some images [n 1 28 28], from 0 to 1, and their classes [n]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, places: Tensor) -> Images:
        return Images(self.x[places], self.y[places])


@dataclass(frozen=True, eq=False)
class Split:
    """What is learned from; what learning rates and weights are chosen on; what is reported of."""

    train: Images
    validation: Images
    test: Images


def digits() -> Split:
    """MNIST: 5,000 images to learn from; of 5,000 others, half to tune on, and half to test with."""
    everything = load_samples("mnist5k")
    batch = everything.take(range(len(everything)))
    assert isinstance(batch.inputs, Tensor)
    assert batch.targets is not None
    train = Images(_from_zero_to_one(batch.inputs), batch.targets.long())
    known = {_bytes(image) for image in train.x}
    if not DIGITS.is_dir():
        raise SystemExit(f"{DIGITS} is not there: bash scripts/fetch_data.sh fetches it")
    parts = [torch.tensor(json.loads((DIGITS / f"{digit}.json").read_text())["data"]) for digit in range(10)]
    x = _from_zero_to_one(torch.cat([part.reshape(-1, 784) for part in parts]))
    y = torch.arange(10).repeat_interleave(torch.tensor([part.numel() // 784 for part in parts]))
    is_new = torch.tensor([_bytes(image) not in known for image in x])
    assert int(is_new.sum()) == len(x) - len(train), "some of the images to learn from are not in the rest"
    others = Images(x[is_new], y[is_new])
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
    return Split(_shuffled(train), others[order[: len(order) // 2]], others[order[len(order) // 2 :]])


def clothes() -> Split:
    """Fashion-MNIST: 55,000 images to learn from, 5,000 to tune on, 10,000 to test with."""
    everything, test = (_read(name) for name in ("fashion-mnist", "fashion-mnist:test"))
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
    return Split(everything[order[5_000:]], everything[order[:5_000]], test)


def few(images: Images, n: int, seed: int) -> Images:
    """So many of the images, as many of each class."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[torch.cat([order[images.y[order] == label][: n // 10] for label in range(10)])]


def moved(x: Tensor, generator: torch.Generator, *, degrees: float = 10.0, pixels: float = 2.0) -> Tensor:
    """Each image turned and shifted a little, by an amount of its own."""
    angle, right, down = 2 * torch.rand(3, len(x), generator=generator) - 1
    angle, right, down = angle * math.radians(degrees), right * 2 * pixels / 28, down * 2 * pixels / 28
    rows = torch.stack([angle.cos(), -angle.sin(), right, angle.sin(), angle.cos(), down], dim=1)
    grid = F.affine_grid(rows.reshape(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _read(name: str) -> Images:
    samples = load_samples(name)
    batch = samples.take(range(len(samples)))
    assert isinstance(batch.inputs, Tensor)
    assert batch.targets is not None
    return Images(_from_zero_to_one(batch.inputs), batch.targets.long())


def _from_zero_to_one(x: Tensor) -> Tensor:
    """Pixels in steps of 1/255, however they were stored. [n 1 28 28]."""
    x = x.float().reshape(-1, 1, 28, 28)
    return (x if float(x.max()) > 2 else 255 * x).round() / 255


def _bytes(image: Tensor) -> bytes:
    return (255 * image).round().to(torch.uint8).numpy().tobytes()


def _shuffled(images: Images) -> Images:
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
