"""The report: one HTML file with its pictures inside that loads nothing, runs no script and reads on any device."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinsight.explorer.findings import Findings, examine
from kinsight.explorer.page import Headline, headlines, page_of
from kinsight.kernel import GradientKernel
from kinsight.normalization import Normalization

if TYPE_CHECKING:
    from kinsight.index import Index
    from kinsight.stability import Stability


@dataclass(frozen=True, eq=False)
class ReportSummary:
    """What was written, and what it says.

    Args:
        path: of the file.
        n_bytes: its size.
        headlines: the findings at its top, a number and what it counts.
        findings: all of them.
    """

    path: Path
    n_bytes: int
    headlines: tuple[Headline, ...]
    findings: Findings


def write_report(
    path: str | Path,
    kernel: GradientKernel,
    data: Any,
    *,
    queries: Any = None,
    n_queries: int = 8,
    n_neighbors: int = 8,
    n_lonely: int = 12,
    n_crowded: int = 12,
    n_suspects: int = 24,
    n_examples: int = 6,
    n_noisy: int = 6,
    n_volatile: int = 6,
    weight_decay: float = 0.0,
    normalization: Normalization = "flat",
    truth: Any = None,
    index: Index | None = None,
    stability: Stability | None = None,
    title: str = "",
    progress: bool = False,
) -> ReportSummary:
    """A page about what the network finds alike: nearest neighbors, crowds, suspected label errors.

    One HTML file. Its images are inside it, it makes no request and runs no script; names and texts from the data are
    shown as text. The arguments after `path` are those of `kinsight.explorer.examine`; where its `Findings` are there
    already, write `render(findings)`.

    Args:
        path: of the file; what is there is replaced.
        kernel: the gradient kernel of the network.
        data: whatever `Samples` takes.
        queries: samples whose neighbors are shown; some of the data where left out.
        n_queries: the first so many of them.
        n_neighbors: shown for each query.
        n_lonely: samples with the lowest soft counts that are shown.
        n_crowded: samples with the highest.
        n_suspects: suspected labels that are shown.
        n_examples: samples of each regime of over- and underfit that are shown; 0 leaves that out.
        n_noisy: samples shown whose predictions keep most noise of labels, where targets are values; 0 leaves that out.
        n_volatile: samples shown that networks see most differently, where there is `stability`.
        weight_decay: of training, as in torch.optim.SGD: what is said of noise depends on it.
        normalization: which similarity, in all of it; that of the index, where there is one.
        truth: targets known to be right, [n], to compare the suspects with.
        index: of the data, built with this kernel: then counts and suspects are estimates from its sketches.
        stability: what `kinsight.compare` says of this network and others, on this data: a section with a figure.
        title: of the page; made of the model's name where left out.
        progress: whether to show progress bars.
    """
    findings = examine(
        kernel, data, queries=queries, n_queries=n_queries, n_neighbors=n_neighbors, n_lonely=n_lonely,
        n_crowded=n_crowded, n_suspects=n_suspects, n_examples=n_examples, n_noisy=n_noisy, n_volatile=n_volatile,
        weight_decay=weight_decay, normalization=normalization, truth=truth, index=index, stability=stability,
        title=title, progress=progress,
    )  # fmt: skip
    page = render(findings).encode()
    Path(path).write_bytes(page)
    return ReportSummary(Path(path), len(page), headlines(findings), findings)


def render(findings: Findings) -> str:
    """The page of these findings, as HTML. The same findings give the same page."""
    style = _resource("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    page: str = _template().render(
        page=page_of(findings),
        style=_trusted(style),
        style_hash=f"sha256-{digest}",
        version=_version(),
    )
    return page


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False, lstrip_blocks=False)
    return environment.from_string(_resource("report.html"))


def _trusted(text: str) -> str:
    """Text of ours that is put on the page as it is."""
    from markupsafe import Markup

    return Markup(text)


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _version() -> str:
    try:
        return metadata.version("kinsight")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "(a checkout)"
