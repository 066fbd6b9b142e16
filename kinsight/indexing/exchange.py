"""An index as one Parquet file, for other programs to read, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kinsight.errors import IndexExistsError, IndexFormatError, NoIndexError
from kinsight.indexing.about import KEPT, problem_of, problem_of_columns
from kinsight.indexing.building import MAX_SHARD
from kinsight.indexing.durable import sync, writing
from kinsight.indexing.rows import ROWS, schema_of
from kinsight.indexing.store import Store

ABOUT = b"kinsight index"
"""Under this key of the file's metadata stands what the index was built with, as JSON."""


def write_parquet(store: Store, file: Path, *, overwrite: bool) -> int:
    """Write all rows to a file, which is there as a whole or not at all. How many.

    Raises:
        IndexExistsError: the file exists.
        IndexWriteError: it cannot be written.
    """
    if file.exists() and not overwrite:
        raise IndexExistsError(
            f"{str(file)!r} is there already: pass overwrite=True (--overwrite) to replace it, or another name."
        )
    about = {key: store.about[key] for key in KEPT}
    schema: pa.Schema = store.dataset(ROWS).schema.with_metadata({ABOUT: json.dumps(about, sort_keys=True).encode()})
    beside = file.with_name(f".{file.name}.part")
    with writing(file):
        try:
            with pq.ParquetWriter(beside, schema, compression="zstd") as writer:
                for batch in store.scan(ROWS, schema.names, MAX_SHARD):
                    writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            sync(beside)
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)
    return store.n_rows(ROWS)


def read_parquet(file: Path, folder: Path, *, overwrite: bool) -> None:
    """Make an index of a file that `write_parquet` wrote.

    Raises:
        NoIndexError: there is no such file.
        IndexFormatError: it is not the index of kinsight, or makes no sense.
        IndexExistsError, IndexWriteError: the folder cannot be written.
    """
    if not file.is_file():
        raise NoIndexError(f"There is no file {str(file)!r}.")
    try:
        parquet = pq.ParquetFile(file)
        about = json.loads((parquet.schema_arrow.metadata or {}).get(ABOUT, b"null"))
        problem = _problem_of(about, parquet.schema_arrow, parquet.metadata.num_rows)
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        problem, about, parquet = f"it cannot be read: {str(error)[:200]}", {}, None
    if problem or parquet is None:
        raise IndexFormatError(f"{str(file)!r} is not an index that kinsight has exported: {problem}.")
    n_outputs = parquet.schema_arrow.field("outputs").type.list_size
    schema = schema_of(about["dim"], n_outputs)
    with Store.create(folder, about, overwrite=overwrite) as store:
        start = 0
        try:
            for batch in parquet.iter_batches(MAX_SHARD):
                rows = pa.Table.from_batches([batch]).cast(schema)  # Parquet names the entries of lists otherwise
                if rows["row"].to_pylist() != list(range(start, start + rows.num_rows)):
                    raise IndexFormatError(f"{str(file)!r}: rows are not in order from row {start} on.")
                store.append(ROWS, rows, start=start)
                start += rows.num_rows
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, IndexFormatError):
                raise
            raise IndexFormatError(f"{str(file)!r} cannot be read from row {start} on: {str(error)[:200]}.") from error


def _problem_of(about: Any, schema: pa.Schema, n: int) -> str:
    """What is wrong with what a file says of itself; '' where nothing is."""
    problem = problem_of(about)
    if problem or set(about) != set(KEPT):
        return problem or "its metadata say more than what it was built with"
    if not about["parts"][-1]["is_complete"]:
        return "it is not complete"
    if sum(part["n"] for part in about["parts"]) != n:
        return f"it has {n} rows, and says otherwise"
    return problem_of_columns(schema, about["dim"])
