"""What an index says of itself in its manifest, and what of that a reader refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch

from kinsight.errors import IndexFormatError
from kinsight.indexing.rows import ROWS, schema_of
from kinsight.indexing.store import Store
from kinsight.sketch import MAX_DIM

KEPT = ("kernel", "normalization", "dim", "seed", "has_previews", "class_names", "parts")
"""What an index was built with."""

LATER = {"neighbors": ("k", "n"), "search": ("n_probes", "refine", "n_partitions", "n_rows")}
"""What may have been made of it later, and numbers that say how."""


def check_about(store: Store) -> None:
    """Raise unless what a store says of itself makes sense, and fits its rows.

    Raises:
        IndexFormatError: it does not.
    """
    problem = problem_of(store.about) or _problem_with_rows(store)
    if problem:
        raise IndexFormatError(
            f"Index {str(store.folder)!r} makes no sense: {problem}. It was written by something else, or changed by "
            "hand: restore its manifest.json from a copy, or build it anew."
        )


def problem_of(about: Any) -> str:
    """What is wrong with it; '' where nothing is."""
    if not isinstance(about, Mapping) or not set(about) >= set(KEPT):
        return "it does not say what it was built with"
    if not _is_count(about["dim"]) or not 1 <= about["dim"] <= MAX_DIM or not _is_int(about["seed"]):
        return "it has no length of sketches, or no seed"
    if about["normalization"] not in ("whitened", "flat") or not _is_kernel(about["kernel"]):
        return "it has no normalization, or no kernel"
    names = about["class_names"]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return "its class names are no texts"
    if not isinstance(about["has_previews"], bool):
        return "it does not say whether it has previews"
    for key, needed in LATER.items():
        facts = about.get(key, {})
        if facts is not None and not isinstance(facts, Mapping):
            return f"{key!r} is no object"
        if facts and not all(_is_count(facts.get(name)) for name in needed):
            return f"{key!r} lacks a number"
    return _problem_of_parts(about["parts"])


def _problem_of_parts(parts: Any) -> str:
    if not isinstance(parts, list) or not parts:
        return "it has no parts"
    first = 0
    for number, part in enumerate(parts):
        if not isinstance(part, Mapping) or not all(_is_count(part.get(key)) for key in ("first", "n", "shard_size")):
            return f"part {number} lacks a number"
        if part["first"] != first or not part["shard_size"]:
            return f"part {number} begins at row {part['first']} and not at {first}, or has empty shards"
        is_complete, error = part.get("is_complete"), part.get("error")
        if is_complete not in (True, False) or (not is_complete and number < len(parts) - 1):
            return f"part {number} is not complete, and others follow"
        if is_complete and not (isinstance(error, Mapping) and all(_is_error(error.get(name)) for name in ERRORS)):
            return f"part {number} does not say how far its similarities are off"
        if not _is_target(part.get("target_shape"), part.get("target_type")):
            return f"part {number} has targets of no type or shape"
        first += part["n"]
    return ""


ERRORS = ("inner", "inner_standard_error", "cosine", "cosine_standard_error", "expected")
"""What is measured of a complete part."""


def problem_of_columns(schema: pa.Schema, dim: int) -> str:
    """What is wrong with the columns of a table of rows; '' where nothing is."""
    outputs = schema.field("outputs").type if "outputs" in schema.names else None
    n_outputs = outputs.list_size if isinstance(outputs, pa.FixedSizeListType) else 0
    return "" if schema.remove_metadata().equals(schema_of(dim, n_outputs)) else "its rows have other columns"


def _problem_with_rows(store: Store) -> str:
    parts, n = store.about["parts"], store.n_rows(ROWS)
    if not parts[-1]["first"] <= n <= parts[-1]["first"] + parts[-1]["n"]:
        return f"it has {n} rows, and parts of other sizes"
    if parts[-1]["is_complete"] and n != parts[-1]["first"] + parts[-1]["n"]:
        return f"its parts are complete, and {n} rows are there"
    if ROWS not in store.tables:
        return ""
    found = store.dataset(ROWS)
    if found.count_rows() != n:
        return f"its table has {found.count_rows()} rows, and its shards {n}"
    return problem_of_columns(found.schema, store.about["dim"])


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_error(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _is_kernel(kernel: object) -> bool:
    names = ("model", "weights", "output", "parameters")
    return (
        isinstance(kernel, Mapping)
        and all(isinstance(kernel.get(name), str) for name in names)
        and _is_count(kernel.get("n_parameters"))
    )


def _is_target(shape: object, dtype: object) -> bool:
    if shape is None or dtype is None:
        return shape is dtype
    is_shape = isinstance(shape, list) and all(_is_count(size) for size in shape)
    return is_shape and isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)
