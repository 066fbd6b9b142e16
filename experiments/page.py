"""Writes docs/experiments.md from experiments/results/*.json: `python -m experiments.page`; no number by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments import marks
from experiments.denoising import section as denoising
from experiments.human_noise import section as human_noise
from experiments.label_errors import section as label_errors
from experiments.mnist import section as mnist
from experiments.records import FOLDER
from experiments.tables import Record

PAGE = Path(__file__).parent.parent / "docs" / "experiments.md"

TITLE = """# Experiments

Written by `python -m experiments.page` from experiments/results; every record names its machine, its commits and the
command that does it again. Intervals are 95 % intervals of the mean over seeds (Student's t)."""

SECTIONS: dict[str, Callable[[Sequence[Record]], Iterator[str]]] = {
    "label_errors": label_errors.section, "denoising": denoising.section, "human_noise": human_noise.section,
    "mnist": mnist.section,
}  # fmt: skip


def stored() -> list[Record]:
    """All results, by name."""
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def page(records: Sequence[Record]) -> str:
    """The whole page."""
    parts = [TITLE, *marks.section(records)]
    for question, section in SECTIONS.items():
        own = [record for record in records if record["question"] == question]
        if own:
            parts += section(own)
    return "\n\n".join(parts) + "\n"


def figures(records: Sequence[Record]) -> Iterator[tuple[Path, str]]:
    """Pictures that the page shows, and where they lie."""
    yield from mnist.figures([record for record in records if record["question"] == "mnist"])


def main() -> None:
    """Write the page and its pictures."""
    records = stored()
    for path, text in [(PAGE, page(records)), *figures(records)]:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
