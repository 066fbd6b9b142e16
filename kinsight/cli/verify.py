"""kinsight verify."""

from __future__ import annotations

from typing import Annotated

import typer

from kinsight.cli.options import AsJson, Folder, flag
from kinsight.cli.printing import print_rows


def print_damage(
    index: Folder,
    as_json: AsJson = False,
    quiet: Annotated[bool, flag("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Compare every byte of an index with what was committed; damaged files are named, and the exit status is 1."""
    from kinsight.indexing.store import Store
    from kinsight.progress import progress_bar

    store, damages = Store.open(index), []
    with progress_bar("verify", len(store.files), is_shown=not quiet) as advance:
        for _, damage in store.verify():
            if damage is not None:
                damages.append({"file": damage.file, "damage": damage.what})
            advance(1)
    leftovers = store.leftovers()
    print_rows(damages, as_json=as_json, n_files=len(store.files), leftovers=leftovers)
    if damages:
        raise typer.Exit(1)
