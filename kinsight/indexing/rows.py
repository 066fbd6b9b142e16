"""The rows of an index: what is kept of each sample, as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from kinsight.identity import CONTENT_BYTES
from kinsight.samples import Id
from kinsight.sketch import Sketch

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = "rows"
"""The table of samples."""

PREVIEW_PIXELS = 96
"""Longest side of a thumbnail."""

MAX_PREVIEW_BYTES, MAX_PREVIEW_CHARACTERS, MAX_PREVIEW_NUMBERS = 2**15, 2000, 64
"""Of a thumbnail, a text, a small array: what is longer is cut, a thumbnail made smaller."""

PREVIEW = pa.struct([("png", pa.binary()), ("text", pa.string()), ("numbers", pa.list_(pa.float32()))])


def schema_of(dim: int, n_outputs: int) -> pa.Schema:
    """Columns of the table of rows; see docs/index-format.md."""
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("id", pa.string(), nullable=False),
            pa.field("is_number", pa.bool_(), nullable=False),
            pa.field("content", pa.binary(CONTENT_BYTES), nullable=False),
            pa.field("sketch", pa.list_(pa.float16(), dim), nullable=False),
            pa.field("norm", pa.float64(), nullable=False),
            pa.field("rank", pa.int32(), nullable=False),
            pa.field("outputs", pa.list_(pa.float64(), n_outputs), nullable=False),
            pa.field("target", pa.list_(pa.float64())),
            pa.field("preview", PREVIEW),
        ]
    )


def as_table(
    sketch: Sketch, first_row: int, contents: Sequence[bytes], targets: Tensor | None, previews: Sequence[Any]
) -> pa.Table:
    """Rows of some samples.

    Args:
        sketch: of the samples.
        first_row: number of the first one.
        contents: digests of what they are.
        targets: [n] or [n d].
        previews: an image, a text, a small array or None for each.
    """
    n, dim = sketch.values.shape
    n_outputs = sketch.outputs.shape[1]
    half = sketch.values.to(torch.float16).numpy()
    outputs = sketch.outputs.double().numpy()
    known = [None] * n if targets is None else targets.double().reshape(n, -1).tolist()
    columns = [
        pa.array(np.arange(first_row, first_row + n)),
        pa.array([str(id_) for id_ in sketch.ids]),
        pa.array([isinstance(id_, int) for id_ in sketch.ids]),
        pa.array(list(contents), pa.binary(CONTENT_BYTES)),
        pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), dim),
        pa.array(sketch.norms.double().numpy()),
        pa.array(sketch.ranks.numpy().astype(np.int32)),
        pa.FixedSizeListArray.from_arrays(pa.array(outputs.reshape(-1)), n_outputs),
        pa.array(known, pa.list_(pa.float64())),
        pa.array([as_preview(preview) for preview in previews], PREVIEW),
    ]
    return pa.Table.from_arrays(columns, schema=schema_of(dim, n_outputs))


def as_preview(shown: Image | str | Tensor | None) -> dict[str, Any] | None:
    """What is kept of a sample to show it, of bounded size."""
    if shown is None:
        return None
    if isinstance(shown, str):
        return {"text": shown[:MAX_PREVIEW_CHARACTERS]}
    if isinstance(shown, Tensor):
        return {"numbers": shown.detach().float().flatten()[:MAX_PREVIEW_NUMBERS].tolist()}
    pixels = PREVIEW_PIXELS
    while pixels >= 8:
        small = shown.copy()
        small.thumbnail((pixels, pixels))
        file = io.BytesIO()
        (small if small.mode in ("L", "RGB") else small.convert("RGB")).save(file, "PNG", optimize=True)
        if file.tell() <= MAX_PREVIEW_BYTES:
            return {"png": file.getvalue()}
        pixels //= 2
    return None


def ids_of(texts: Sequence[str], are_numbers: Sequence[bool]) -> list[Id]:
    """The ids as they were given."""
    return [int(text) if is_number else text for text, is_number in zip(texts, are_numbers, strict=True)]


def matrix_of(column: Any) -> Tensor:
    """A column of lists of one length, [n k]."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat: np.ndarray[Any, Any] = column.flatten().to_numpy(zero_copy_only=False)
    return torch.tensor(flat).reshape(len(column), -1)  # a copy: what Lance reads into is its own
