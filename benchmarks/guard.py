"""Has kinsight become slower? `python -m benchmarks.guard` measures a few jobs again and exits 1 where it has.

What is compared is a ratio of two times of one run (kinsight over its floor, or over an epoch of training): it stays
much the same where the machine is another one, or busy. It is compared with that of the committed results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import gram, soft_count
from benchmarks.timing import FOLDER

TOLERANCE = 1.35
"""Times the committed ratio: what the same code measures twice differs by less."""


@dataclass(frozen=True)
class Guarded:
    """A job that is cheap enough to be measured again.

    Args:
        fact: the ratio, in the stored record.
        again: number of runs -> the ratio now.
        command: what stores the record.
    """

    fact: str
    again: Callable[[int], float]
    command: str


JOBS = {
    "gram-mlp-n1024-c1": Guarded("times_floor", partial(gram.times_floor, "mlp", 1024), "benchmarks.gram mlp"),
    "gram-lenet-n512-c1": Guarded("times_floor", partial(gram.times_floor, "lenet", 512), "benchmarks.gram lenet"),
    "soft_count-lenet-n512-c1": Guarded(
        "epochs", partial(soft_count.epochs, "lenet", 512), "benchmarks.soft_count lenet --scale 0.25"
    ),
}


def stored_ratio(name: str, fact: str, folder: Path = FOLDER) -> float | None:
    """The ratio in the last commit; where it is not committed (or there is no git), that of the file, if there is one.

    Not simply that of the file: `make bench` has just written it anew.
    """
    shown = subprocess.run(["git", "show", f"HEAD:./{name}.json"], cwd=folder, capture_output=True, text=True)
    path = folder / f"{name}.json"
    if shown.returncode == 0:
        text = shown.stdout
    elif path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        return None
    ratio: float | None = json.loads(text).get(fact)
    return ratio


def fault(name: str, guarded: Guarded, n_runs: int, folder: Path = FOLDER) -> str | None:
    """What is wrong with a job, if anything; and print how it stands."""
    before = stored_ratio(name, guarded.fact, folder)
    if before is None:
        return f"{name}: no {guarded.fact} is stored to compare with. Run `python -m {guarded.command}` and commit it."
    now = guarded.again(n_runs)
    if now > TOLERANCE * before:
        now = min(now, guarded.again(n_runs))  # what disturbs the machine seldom lasts; a slower kinsight does
    print(f"{name}: {guarded.fact} {now:.2f}, committed {before:.2f}")
    if now <= TOLERANCE * before:
        return None
    return (
        f"{name}: kinsight has become slower. {guarded.fact} is {now:.2f}, and {before:.2f} in the committed result: "
        f"{now / before:.2f} times it, and {TOLERANCE} is allowed. Find what changed since; or, where it has to be, "
        f"run `python -m {guarded.command}` and commit the new result."
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*", metavar="job", help=f"of {', '.join(JOBS)}; all where left out")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER")
    given = parser.parse_args()
    unknown = [name for name in given.jobs if name not in JOBS]
    if unknown:
        parser.error(f"job {unknown[0]!r} is not guarded: there are {', '.join(JOBS)}")
    torch.set_num_threads(given.threads)
    faults = [fault(name, JOBS[name], given.runs, given.results) for name in given.jobs or JOBS]
    if any(faults):
        raise SystemExit("\n".join(each for each in faults if each))


if __name__ == "__main__":
    main()
