"""What happens to files and processes: random damage to an index, and a writer killed at a random moment.

`python -m tests.faults` does both many times over (`make stress`).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from kinsight import GradientKernel, Index, Samples
from kinsight.errors import DamagedIndexError, IndexFormatError, NoIndexError
from kinsight.indexing import building
from kinsight.indexing.manifest import MANIFEST
from kinsight.indexing.store import Store

ROOT = Path(__file__).parent.parent
KINDS = ("flip", "truncate", "swap", "delete", "extend")
N_ROWS = 50


def shard(number: int, n: int = N_ROWS, dim: int = 16) -> pa.Table:
    """Rows of which each says which shard it is of."""
    values = np.random.default_rng(number).standard_normal((n, dim)).astype(np.float16)
    return pa.table(
        {
            "row": np.arange(n) + number * n,
            "sketch": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim),
            "text": [f"shard {number}, row {row}" for row in range(n)],
        }
    )


def filled_store(folder: Path, n_shards: int = 4) -> None:
    """A store with so many shards."""
    with Store.create(folder, {"what": "a test"}) as store:
        for number in range(n_shards):
            store.append("rows", shard(number), start=number * N_ROWS)


def damage(folder: Path, chance: random.Random) -> tuple[str, list[str]]:
    """Do something to a file of an index that changes its bytes. What was done; the files it was done to."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    kind = chance.choice(KINDS)
    path = chance.choice(files)
    content = path.read_bytes()
    done = [path]
    if kind == "flip":
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :])
    elif kind == "truncate":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif kind == "extend":
        path.write_bytes(content + bytes(chance.randrange(1, 100)))
    elif kind == "delete":
        path.unlink()
    else:
        other = chance.choice([each for each in files if each.read_bytes() != content])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        done.append(other)
    return kind, [each.relative_to(folder).as_posix() for each in done]


def found_damage(folder: Path) -> list[str]:
    """The files that are said to be damaged."""
    try:
        store = Store.open(folder)
    except (DamagedIndexError, IndexFormatError, NoIndexError) as error:
        return [MANIFEST] if MANIFEST in str(error) else []
    return [file for file, problem in store.verify() if problem is not None]


def survives_damage(whole: Path, chance: random.Random) -> str | None:
    """None where every file that was damaged is named; else what went unnoticed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"
        shutil.copytree(whole, copy)
        kind, done = damage(copy, chance)
        found = found_damage(copy)
        is_named = MANIFEST in found if MANIFEST in done else set(done) <= set(found)
        return None if is_named else f"{kind} of {done}: found {found}"


WRITER = """
import sys
from pathlib import Path
from kinsight.indexing.store import Store
from tests.faults import shard
folder = Path(sys.argv[1])
is_there = (folder / "manifest.json").exists()
with (Store.open(folder, for_writing=True) if is_there else Store.create(folder, {})) as store:
    for number in range(store.n_rows("rows") // 50, int(sys.argv[2])):
        store.append("rows", shard(number), start=number * 50)
        print(number, flush=True)
        if number % 7 == 6:
            store.compact("rows")
"""
"""Appends shards, and says so of each that is committed."""


def killed_writer(folder: Path, seconds: float, *, n_shards: int = 10**6) -> int:
    """Let a process append shards for a while, then kill it. How many shards it acknowledged, in all of its lives."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(n_shards)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert writer.stdout is not None
    first = writer.stdout.readline()  # the clock starts when it writes
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    lines = [first, *writer.stdout]
    writer.wait()
    writer.stdout.close()
    return int(next((line for line in reversed(lines) if line.endswith("\n")), "-1")) + 1


def check_rows(folder: Path, n_acknowledged: int) -> int:
    """Every acknowledged shard is there once, whole and in order, and nothing is damaged. How many shards there are."""
    store = Store.open(folder)
    batches = list(store.scan("rows", ["row", "text"]))
    rows = [row for batch in batches for row in batch["row"].to_pylist()]
    n_shards = len(rows) // N_ROWS
    assert rows == list(range(n_shards * N_ROWS)), "rows are lost, torn or doubled"
    assert n_acknowledged <= n_shards <= n_acknowledged + 1, f"{n_shards} shards of {n_acknowledged} acknowledged"
    texts = [text for batch in batches for text in batch["text"].to_pylist()]
    assert texts == [text for number in range(n_shards) for text in shard(number)["text"].to_pylist()]
    assert [each for each in store.verify() if each[1] is not None] == []
    return n_shards


def network_and_data() -> tuple[torch.nn.Module, Samples, Samples]:
    """A small network, what its index is built from, and what is appended to it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).eval()
    x = torch.randn(1500, 6)
    return model, Samples(x[:1000]), Samples(x[1000:], ids=range(1000, 1500))


def finish(folder: Path) -> Index:
    """An index built, appended to, and its neighbors found: from wherever an earlier call was stopped."""
    building.MAX_SHARD = 64
    model, first, second = network_and_data()
    kernel = GradientKernel(model)
    if not (folder / MANIFEST).exists() or len(Index(folder, partial=True)) <= len(first):
        Index.build(folder, kernel, first, dim=64, resume=True)
    index = Index(folder, partial=True)
    if not index.about["parts"][-1]["is_complete"] or len(index) < len(first) + len(second):
        index.append(kernel, second)
    Index(folder).build_neighbors(n_neighbors=5, max_bytes=2**22)
    return Index(folder)


BUILDER = """
import sys
from pathlib import Path
from tests.faults import finish
print("begin", flush=True)
finish(Path(sys.argv[1]))
print("end", flush=True)
"""


def killed_builder(folder: Path, seconds: float) -> bool:
    """Let a process build an index for a while, then kill it. Whether it came to the end before."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert builder.stdout is not None
    builder.stdout.readline()
    time.sleep(seconds)
    builder.send_signal(signal.SIGKILL)
    is_done = "end" in builder.stdout.read()
    builder.wait()
    builder.stdout.close()
    return is_done


def columns_of(index: Index) -> dict[str, list[object]]:
    """All that an index keeps, by column."""
    found: dict[str, list[object]] = {}
    for table in ("rows", "neighbors"):
        for part in index.store.scan(table, index.store.dataset(table).schema.names):
            for name in part.schema.names:
                found.setdefault(name, []).extend(part[name].to_pylist())
    return found


def main() -> None:
    """Do it often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        killed, whole = Path(name) / "killed", Path(name) / "whole"
        n_shards = 0
        for _ in range(given.kills):
            n_acknowledged = killed_writer(killed, chance.uniform(0, 0.3))
            n_shards = check_rows(killed, max(n_acknowledged, n_shards))
        print(
            f"{given.kills} kills of a writer that appends and compacts: {n_shards} shards, none lost, torn or doubled"
        )
        built, at_once = Path(name) / "built", finish(Path(name) / "at once")
        n_ends = 0
        for _ in range(given.kills):
            if killed_builder(built, chance.uniform(0, 1.0)):
                n_ends += 1
                assert columns_of(Index(built)) == columns_of(at_once), "rows differ"
                shutil.rmtree(built)
        assert columns_of(finish(built)) == columns_of(at_once), "rows differ"
        print(f"{given.kills} kills of build, append and search, {n_ends + 1} of them to the end: the same rows")
        filled_store(whole, 12)
        missed = [problem for _ in range(given.damages) if (problem := survives_damage(whole, chance))]
        print(f"{given.damages - len(missed)} of {given.damages} damaged files found")
        if missed:
            raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
