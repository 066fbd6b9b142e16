"""kinsight info."""

from __future__ import annotations

from kinsight.cli.options import AsJson, Folder
from kinsight.cli.printing import print_facts


def print_info(index: Folder, as_json: AsJson = False) -> None:
    """What an index was built from, how much of it is there, and how far its similarities are off."""
    from kinsight.index import Index

    print_facts(Index(index, partial=True).info(), as_json=as_json)
