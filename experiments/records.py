"""Results of experiments: one JSON file a setting, one entry a seed, written when the seed is done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.timing import commit, machine

FOLDER = Path(__file__).parent / "results"


def replace_text(path: Path, text: str) -> None:
    """Write a file that is there whole, or as it was before."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    os.replace(draft, path)


def run_seeds(
    question: str, setting: str, seeds: Iterable[int], command: str, run: Callable[[int], dict[str, Any]]
) -> None:
    """Run what is not there yet. An interrupted experiment goes on with the seed it was at.

    Args:
        question: the experiment.
        setting: of it; the name of the file.
        seeds: that are wanted.
        command: that does it again.
        run: seed -> what was found.
    """
    path = FOLDER / f"{question}-{setting}.json"
    record = json.loads(path.read_text()) if path.exists() else {"question": question, "setting": setting, "seeds": {}}
    for seed in seeds:
        if str(seed) in record["seeds"]:
            print(f"{setting}, seed {seed}: there already", flush=True)
            continue
        start = time.monotonic()
        found = run(seed)
        record |= {"command": command, "machine": machine()}
        record["seeds"][str(seed)] = {"commit": commit(), "seconds": round(time.monotonic() - start, 1), **found}
        path.parent.mkdir(exist_ok=True)
        replace_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")
        print(f"{setting}, seed {seed}: {json.dumps(found)}", flush=True)
