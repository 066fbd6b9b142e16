"""Building an index: sketches of all samples, shard by shard; what is committed is never computed again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kinsight.batches import has_samples, leaves
from kinsight.errors import ChangedDataError, IncompleteIndexError, InputError, TargetError
from kinsight.identity import check_identity, content_digests, identity_of
from kinsight.indexing.about import check_about
from kinsight.indexing.durable import check_room
from kinsight.indexing.engine import Engine, run
from kinsight.indexing.manifest import MANIFEST
from kinsight.indexing.rows import ROWS, ids_of, matrix_of
from kinsight.indexing.store import Store, check_new
from kinsight.indexing.worker import Worker
from kinsight.kernel import GradientKernel, check_kernel
from kinsight.normalization import Normalization
from kinsight.plan import N_TRIED, some_of
from kinsight.progress import progress_bar
from kinsight.samples import Batch, Id, Samples
from kinsight.sketch import check_dim, error_of, measured_dim, similarities

SHARD_BYTES, SHARD_INPUT_BYTES = 2**25, 2**26
"""Of a shard's sketches, and of its inputs in memory: smaller shards lose less to a crash, larger ones commit less
often (a commit takes about 10 ms and the time that the disk needs for its bytes)."""

MIN_SHARD, MAX_SHARD = 64, 2048

N_MEASURED = 64
"""Samples whose similarities are compared with those of their sketches in the end."""

ERROR = 0.05
"""Root mean square error of a similarity that is asked for where nothing else is said."""


def build(
    folder: Path,
    kernel: GradientKernel,
    samples: Samples,
    *,
    dim: int | None,
    error: float,
    seed: int,
    normalization: Normalization,
    has_previews: bool,
    resume: bool,
    overwrite: bool,
    engine: Engine,
    progress: bool,
) -> None:
    """An index of a data set; see `Index.build`."""
    check_kernel(kernel, normalization)
    if resume and overwrite:
        raise InputError("resume=True keeps what is there, overwrite=True replaces it: pass one of them.")
    if resume and (folder / MANIFEST).exists():
        with Store.open(folder, for_writing=True) as store:
            check_about(store)
            check_identity(kernel, store.about["kernel"], f"Index {str(folder)!r}")
            asked = {"dim": dim, "seed": seed, "normalization": normalization}
            for name, value in asked.items():
                if value is not None and value != store.about[name]:
                    raise InputError(
                        f"The index was begun with {name}={store.about[name]!r}, not {value!r}: sketches of both do "
                        "not compare. Pass the same, or build the index anew with overwrite=True."
                    )
            _check_room(store, len(samples) - store.n_rows(ROWS))
            _fill(store, kernel, samples, 0, engine, progress=progress)
        return
    check_new(folder, overwrite=overwrite)
    if dim is None:
        dim = measured_dim(
            kernel, samples.take(some_of(len(samples), N_TRIED, seed)), error, seed=seed, normalization=normalization
        )
    check_dim(dim)
    what = f"Sketches of {len(samples):,} samples, {dim:,} numbers each,"
    check_room(folder, 2 * dim * len(samples), what, _SHORTER, is_replaced=overwrite)
    about = {
        "kernel": identity_of(kernel), "normalization": normalization, "dim": dim, "seed": seed,
        "has_previews": has_previews, "class_names": samples.class_names, "parts": [_part(samples, dim, first=0)],
    }  # fmt: skip
    with Store.create(folder, about, overwrite=overwrite) as store:
        _fill(store, kernel, samples, 0, engine, progress=progress)


def append(folder: Path, kernel: GradientKernel, samples: Samples, *, engine: Engine, progress: bool) -> None:
    """Add a data set to an index, or go on with adding it; see `Index.append`."""
    with Store.open(folder, for_writing=True) as store:
        check_about(store)
        check_identity(kernel, store.about["kernel"], f"Index {str(folder)!r}")
        parts = store.about["parts"]
        if not parts[-1]["is_complete"] and len(parts) == 1:
            raise IncompleteIndexError(
                f"Index {str(folder)!r} is half built: finish it first, with resume=True and the data it was begun "
                "with."
            )
        n_known = 0 if parts[-1]["is_complete"] else store.n_rows(ROWS) - parts[-1]["first"]
        _check_room(store, len(samples) - n_known)
        if parts[-1]["is_complete"]:
            refuse_taken(samples.ids, taken_ids(store))
            part = _part(samples, store.about["dim"], first=store.n_rows(ROWS))
            _refuse_other_targets(parts[0], part)
            store.update(parts=[*parts, part])
        _fill(store, kernel, samples, len(store.about["parts"]) - 1, engine, progress=progress)


def _check_room(store: Store, n: int) -> None:
    """Raise where so many more samples do not fit on the disk of an index.

    Raises:
        IndexWriteError: it does not.
    """
    dim = store.about["dim"]
    what = f"Sketches of {n:,} samples, {dim:,} numbers each, as the index has them,"
    check_room(store.folder, 2 * dim * n, what, "Make room, or build a shorter index in another folder.")


_SHORTER = (
    "Ask for a larger error= (--error; twice the error takes a quarter of the room) or a smaller dim= (--dim), or name "
    "a folder on another disk."
)


def taken_ids(store: Store) -> set[Id]:
    """The ids of all samples that are committed."""
    parts = store.scan(ROWS, ["id", "is_number"])
    return {id_ for part in parts for id_ in ids_of(part["id"].to_pylist(), part["is_number"].to_pylist())}


def refuse_taken(ids: Iterable[Id], taken: set[Id]) -> None:
    """Raise where an id is one of those taken.

    Raises:
        ChangedDataError: it is.
    """
    for id_ in ids:
        if id_ in taken:
            raise ChangedDataError(
                f"The id {id_!r} is in the index already. An answer could not say which of the two samples is meant: "
                "pass ids= that are not taken."
            )


def check_size(store: Store, samples: Samples) -> None:
    """Raise where data has not as many samples as an index, in the end.

    Raises:
        ChangedDataError: it has more, or less.
    """
    n = sum(part["n"] for part in store.about["parts"])
    if len(samples) != n:
        raise ChangedDataError(
            f"The index is of {n} samples and this data has {len(samples)}: it is not what the index was built from. "
            "Pass the same data, or leave it out for estimates from sketches."
        )


def taken(store: Store, samples: Samples, rows: Sequence[int]) -> Batch:
    """The samples of some rows, from the data an index was built from, compared with what it was then.

    Raises:
        ChangedDataError: the data is another.
    """
    check_size(store, samples)
    batch = samples.take(rows)
    known = store.take(ROWS, rows, ["content"])["content"].to_pylist()
    others = [row for row, stored, now in zip(rows, known, content_digests(batch), strict=True) if stored != now]
    for start, stop in sorted({_shard_of(store, row) for row in others}):
        _check_shard(store, samples, start, stop)
    return batch


def _shard_of(store: Store, row: int) -> tuple[int, int]:
    """The first of the rows that were read and committed with one, and where they end."""
    part = next(part for part in reversed(store.about["parts"]) if part["first"] <= row)
    start = part["first"] + (row - part["first"]) // part["shard_size"] * part["shard_size"]
    return start, min(start + part["shard_size"], part["first"] + part["n"], store.n_rows(ROWS))


def _check_shard(store: Store, samples: Samples, start: int, stop: int) -> None:
    """Compare samples with what they were, read together as then: a loader may pad each to the longest of its batch.

    Raises:
        ChangedDataError: they are others.
    """
    batch = samples.take(range(start, stop))
    known = store.slice(ROWS, start, stop, ["content"])["content"].to_pylist()
    for row, (id_, stored, now) in enumerate(zip(batch.ids, known, content_digests(batch), strict=True), start):
        if stored != now:
            raise ChangedDataError(
                f"The data has changed since the index was built: the sample at position {row} ({id_!r}) has another "
                "input or target. Its true similarity would be that of something else. Build the index anew."
            )


def _part(samples: Samples, dim: int, first: int) -> dict[str, Any]:
    """What the manifest says of one data set."""
    one = next(iter(samples.batches(1)))
    n_bytes = sum(leaf.nbytes for _, leaf in leaves(one.inputs) if has_samples(leaf))
    size = min(SHARD_BYTES // (2 * dim), SHARD_INPUT_BYTES // max(1, n_bytes))
    targets = one.targets
    return {
        "first": first, "n": len(samples), "shard_size": max(MIN_SHARD, min(MAX_SHARD, size)), "is_complete": False,
        "target_shape": None if targets is None else list(targets.shape[1:]),
        "target_type": None if targets is None else str(targets.dtype).removeprefix("torch."),
    }  # fmt: skip


def _refuse_other_targets(known: dict[str, Any], part: dict[str, Any]) -> None:
    """Raise where targets are not of the kind that those of an index are.

    Raises:
        TargetError: they are not.
    """
    names = ("target_type", "target_shape")
    if known["target_type"] is not None and any(known[name] != part[name] for name in names):
        ours, theirs = (" ".join(str(each[name]) for name in names) for each in (known, part))
        raise TargetError(
            f"Targets of the index are {ours}, and those of these samples {theirs} (type, and shape of one). "
            "What is asked about labels is asked about all of an index: give these samples such targets, or build an "
            "index of their own."
        )


def _fill(
    store: Store, kernel: GradientKernel, samples: Samples, number: int, engine: Engine, *, progress: bool
) -> None:
    """Commit what is missing of one part, measure the error of its sketches, and mark it as complete."""
    part = store.about["parts"][number]
    if len(samples) != part["n"]:
        raise ChangedDataError(
            f"The index was begun with {part['n']} samples, and this data has {len(samples)}: it is not the same. Pass "
            "the same data in the same order, or build a new index."
        )
    worker = Worker(store, kernel, samples, number, min(part["n"], store.n_rows(ROWS) - part["first"]))
    with progress_bar("index", len(samples), is_shown=progress) as advance:
        run(worker, engine, advance)
    measured = {**measured_error(store, kernel, samples, part["first"]), "part": number}
    parts = list(store.about["parts"])
    parts[number] = {**part, "is_complete": True, "error": measured}
    store.update(parts=parts)


def measured_error(store: Store, kernel: GradientKernel, samples: Samples, first_row: int) -> dict[str, Any]:
    """`error_of` the sketches that are kept, on all pairs of some random samples of one part."""
    places = some_of(len(samples), N_MEASURED, store.about["seed"])
    truth = similarities(kernel, samples.take(places), store.about["normalization"])
    rows = [first_row + place for place in places]
    values = matrix_of(store.take(ROWS, rows, ["sketch"])["sketch"])
    return {"n_samples": len(places), **error_of(values, truth)}
