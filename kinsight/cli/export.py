"""kinsight export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kinsight.cli.options import AsJson, Folder, flag
from kinsight.cli.printing import print_facts


def write_export(
    index: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .parquet file.")],
    overwrite: Annotated[bool, flag("--overwrite", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """All rows of an index as one Parquet file: ids, sketches, norms, outputs, targets, previews."""
    from kinsight.index import Index

    n = Index(index).export(out, overwrite=overwrite)
    print_facts({"file": str(out), "rows": n, "bytes": out.stat().st_size}, as_json=as_json)
