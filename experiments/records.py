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
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.write_text(text)
    os.replace(draft, path)


def run_seeds(
    question: str,
    setting: str,
    seeds: Iterable[int],
    command: str,
    run: Callable[[int], dict[str, Any]],
    forget: Callable[[int], None] = lambda seed: None,
) -> None:
    """Run what is not there yet. An interrupted experiment goes on with the seed it was at.

    Args:
        question: the experiment.
        setting: of it; the name of the file.
        seeds: that are wanted.
        command: that does it again.
        run: seed -> what was found.
        forget: what is called with a seed when it is on record.
    """
    path, code = FOLDER / f"{question}-{setting}.json", commit()
    for seed in seeds:
        if str(seed) in _record(path, question, setting)["seeds"]:
            print(f"{setting}, seed {seed}: there already", flush=True)
            continue
        start = time.monotonic()
        found = run(seed)
        record = _record(path, question, setting) | {"command": command}  # as others may have left it meanwhile
        seconds = round(time.monotonic() - start, 1)
        record["seeds"][str(seed)] = {"commit": code, "machine": machine(), "seconds": seconds, **found}
        path.parent.mkdir(exist_ok=True)
        replace_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")
        forget(seed)
        print(f"{setting}, seed {seed}: {json.dumps(found)}", flush=True)


def _record(path: Path, question: str, setting: str) -> dict[str, Any]:
    if not path.exists():
        return {"question": question, "setting": setting, "seeds": {}}
    found: dict[str, Any] = json.loads(path.read_text())
    return found
