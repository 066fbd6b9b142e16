"""What an index says of itself is refused where it makes no sense, digest or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kinsight import GradientKernel, Index
from kinsight.errors import IndexFormatError, InputError
from kinsight.indexing.durable import write_record
from kinsight.indexing.manifest import MANIFEST
from tests.indexes import data, network

CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "nothing": (lambda about: about.clear(), "does not say what it was built with"),
    "no parts": (lambda about: about.update(parts=[]), "it has no parts"),
    "parts are a text": (lambda about: about.update(parts="all"), "it has no parts"),
    "a part is a number": (lambda about: about.update(parts=[3]), "part 0 lacks a number"),
    "a negative part": (lambda about: about["parts"][0].update(n=-1), "part 0 lacks a number"),
    "a huge part": (
        lambda about: about["parts"][0].update(n=2**62),
        "are complete, and 40 rows are there",
    ),
    "a part that begins late": (lambda about: about["parts"][0].update(first=7), "begins at row 7 and not at 0"),
    "empty shards": (lambda about: about["parts"][0].update(shard_size=0), "has empty shards"),
    "a part twice": (lambda about: about["parts"].append(about["parts"][0]), "begins at row 0 and not at 40"),
    "an open part": (
        lambda about: about["parts"].insert(0, {**about["parts"][0], "n": 0, "is_complete": False}),
        "part 0 is not complete, and others follow",
    ),
    "no error": (lambda about: about["parts"][0].pop("error"), "how far its similarities are off"),
    "an error that is a text": (lambda about: about["parts"][0]["error"].update(inner="1"), "how far"),
    "targets that are code": (lambda about: about["parts"][0].update(target_type="load"), "targets of no type"),
    "targets without shape": (lambda about: about["parts"][0].update(target_shape=None), "targets of no type"),
    "a huge sketch": (lambda about: about.update(dim=2**40), "no length of sketches"),
    "another sketch": (lambda about: about.update(dim=32), "its rows have other columns"),
    "a seed that is none": (lambda about: about.update(seed=True), "no length of sketches, or no seed"),
    "no normalization": (lambda about: about.update(normalization="none"), "no normalization"),
    "no kernel": (lambda about: about.update(kernel={"model": "X"}), "no kernel"),
    "class names": (lambda about: about.update(class_names=[1]), "class names are no texts"),
    "previews": (lambda about: about.update(has_previews="yes"), "whether it has previews"),
    "a search": (lambda about: about.update(search={"n_probes": "all"}), "'search' lacks a number"),
    "neighbors": (lambda about: about.update(neighbors=[1]), "'neighbors' is no object"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_makes_no_sense_is_refused(what: str, tmp_path: Path) -> None:
    change, message = CHANGES[what]
    kernel = GradientKernel(network())
    Index.build(tmp_path, kernel, data(40), dim=16)
    record = json.loads((tmp_path / MANIFEST).read_text())
    record.pop("digest")
    change(record["about"])
    write_record(tmp_path / MANIFEST, record)  # with the digest it should have
    for ask in (
        lambda: Index(tmp_path),
        lambda: Index(tmp_path, partial=True),
        lambda: Index.build(tmp_path, kernel, data(40), dim=16, resume=True),
    ):
        with pytest.raises(IndexFormatError, match=message):
            ask()


def test_an_index_that_is_whole_is_not_refused(tmp_path: Path) -> None:
    kernel = GradientKernel(network())
    index = Index.build(tmp_path, kernel, data(300), dim=16).build_search()
    index.build_neighbors(n_neighbors=2)
    index = index.append(kernel, data(5, ids=range(300, 305)))
    assert len(Index(tmp_path)) == len(index) == 305
    with pytest.raises(InputError, match="begun with dim=16"):
        Index.build(tmp_path, kernel, data(300), dim=32, resume=True)
