"""Label errors, found: `python -m experiments.label_errors [setting ...]`. Goes on where it stopped.

A tenth of all labels is wrong, a small convolutional network is trained until it says nearly all of them, and every way
gives each label a score. What is kept: AUROC, and the share of errors among the first 10, 12 and 20 % of the data.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import commit
from experiments.label_errors.planted import Planted, planted
from experiments.label_errors.settings import SETTINGS
from experiments.label_errors.training import trained
from experiments.label_errors.ways import ways
from experiments.records import replace_text, run_seeds
from kinsight.explorer.findings import auroc

UNFINISHED = Path(__file__).parent.parent.parent / "runs"
"""Where what is done of a seed is kept until all of it is."""

INSPECTED = (0.1, 0.12, 0.2)


def run(setting: str, seed: int) -> dict[str, Any]:
    """One seed of a setting. What is done of it is kept in runs/, until `forget`."""
    asked, folder = SETTINGS[setting], _folder(setting, seed)
    folder.mkdir(parents=True, exist_ok=True)
    data = planted(asked.data, asked.n, asked.noise, seed)
    done = folder / "ways.json"
    kept: dict[str, Any] = json.loads(done.read_text()) if done.exists() else {"commits": [], "ways": {}}
    kept["commits"] = sorted({*kept["commits"], commit()})
    replace_text(done, json.dumps(kept))
    training = trained(data.samples, seed, unfinished=folder / "training.pt")
    for names, scores in ways(data, training.networks, folder / "indexes" if asked.by_index else None):
        if all(way in kept["ways"] for way in names):
            continue
        start = time.perf_counter()
        for way, values in zip(names, scores(), strict=True):
            kept["ways"][way] = {**_measured(way, values, data), "seconds": time.perf_counter() - start}
            start = time.perf_counter()
            print(f"  {way:56} {kept['ways'][way]['auroc']:.4f}", flush=True)
        replace_text(done, json.dumps(kept))
    seconds = training.seconds + sum(each["seconds"] for each in kept["ways"].values())
    return {
        "n_wrong": int(data.is_wrong.sum()), "epochs": training.epochs, "accuracy": training.accuracy,
        "seconds": round(seconds, 1), **kept,
    }  # fmt: skip


def forget(setting: str, seed: int) -> None:
    """What was kept of a seed that is on record."""
    shutil.rmtree(_folder(setting, seed))


def _folder(setting: str, seed: int) -> Path:
    return UNFINISHED / f"label_errors-{setting}-{seed}"


def _measured(way: str, values: Tensor, data: Planted) -> dict[str, float]:
    assert not bool(values.isnan().any()), way
    order, found = values.argsort(descending=True, stable=True), {"auroc": auroc(values, data.is_wrong)}
    for share in INSPECTED:
        first = order[: round(share * len(values))]
        found[f"found_{share:g}"] = float(data.is_wrong[first].sum() / data.is_wrong.sum())
    return found


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
        run_seeds(
            "label_errors", setting, range(SETTINGS[setting].n_seeds), f"python -m experiments.label_errors {setting}",
            partial(run, setting), partial(forget, setting),
        )  # fmt: skip


if __name__ == "__main__":
    main()
