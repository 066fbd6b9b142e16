"""Which data with label errors there are."""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """What is planted where, and how often."""

    data: str
    n: int
    noise: str
    n_seeds: int
    by_index: bool


SETTINGS = {
    "mnist-5000-symmetric": Setting("mnist5k", 5_000, "symmetric", 5, by_index=False),
    "mnist-5000-confused": Setting("mnist5k", 5_000, "confused", 5, by_index=False),
    "fashion-10000-symmetric": Setting("fashion-mnist", 10_000, "symmetric", 5, by_index=False),
    "fashion-10000-confused": Setting("fashion-mnist", 10_000, "confused", 5, by_index=False),
    "fashion-60000-symmetric": Setting("fashion-mnist", 60_000, "symmetric", 1, by_index=True),
    "fashion-60000-confused": Setting("fashion-mnist", 60_000, "confused", 1, by_index=True),
}
