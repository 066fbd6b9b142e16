"""Label errors, found: `python -m experiments.label_errors [setting ...]`. Goes on where it stopped.

A tenth of all labels is wrong, a small convolutional network is trained until it says nearly all of them, and every way
gives each label a score. What is kept: AUROC, and the share of errors among the first 10, 12 and 20 % of the data.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from experiments.label_errors.planted import planted, trained
from experiments.label_errors.ways import scores
from experiments.records import run_seeds
from kinsight.explorer.findings import auroc

SETTINGS: dict[str, tuple[str, int, str, int, bool]] = {
    "mnist-5000-symmetric": ("mnist5k", 5_000, "symmetric", 5, False),
    "mnist-5000-confused": ("mnist5k", 5_000, "confused", 5, False),
    "fashion-10000-symmetric": ("fashion-mnist", 10_000, "symmetric", 5, False),
    "fashion-10000-confused": ("fashion-mnist", 10_000, "confused", 5, False),
    "fashion-60000-symmetric": ("fashion-mnist", 60_000, "symmetric", 1, True),
    "fashion-60000-confused": ("fashion-mnist", 60_000, "confused", 1, True),
}
"""Data, samples, noise, seeds, and whether an index is asked."""

INSPECTED = (0.1, 0.12, 0.2)


def run(setting: str, seed: int) -> dict[str, Any]:
    """One seed of a setting."""
    name, n, noise, _, by_index = SETTINGS[setting]
    data = planted(name, n, noise, seed)
    networks, epochs, accuracy = trained(data.samples, seed)
    found: dict[str, Any] = {}
    start = time.perf_counter()
    for way, values in scores(data, networks, by_index=by_index):
        assert not bool(values.isnan().any()), way
        order = values.argsort(descending=True, stable=True)
        found[way] = {"auroc": auroc(values, data.is_wrong), "seconds": time.perf_counter() - start}
        for share in INSPECTED:
            first = order[: round(share * n)]
            found[way][f"found_{share:g}"] = float(data.is_wrong[first].sum() / data.is_wrong.sum())
        print(f"  {way:56} {found[way]['auroc']:.4f}", flush=True)
        start = time.perf_counter()
    return {"n_wrong": int(data.is_wrong.sum()), "epochs": epochs, "accuracy": accuracy, "ways": found}


def main() -> None:
    """Read the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("settings", nargs="*", metavar="setting", help=f"of {', '.join(SETTINGS)}; all if left out")
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    for setting in given.settings or SETTINGS:
        if setting not in SETTINGS:
            raise SystemExit(f"setting {setting!r} is unknown: there are {', '.join(SETTINGS)}")
        command = f"python -m experiments.label_errors {setting}"
        run_seeds("label_errors", setting, range(SETTINGS[setting][3]), command, lambda seed, s=setting: run(s, seed))


if __name__ == "__main__":
    main()
