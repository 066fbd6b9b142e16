"""A figure of stability: how far every network of a training agrees with the last one, with intervals, as SVG."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from math import isnan
from pathlib import Path

from kinsight.agreement import Agreement
from kinsight.errors import IndexExistsError, InputError
from kinsight.stability import Stability

WIDTH, HEIGHT = 760.0, 420.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 190.0, 48.0, 92.0
_MAX_NAMES = 12
_CURVES = (
    ("neighbors", "#b4430f", "nearest neighbors in common"),
    ("similarities", "#2f5d8a", "rank correlation of similarities"),
    ("counts", "#2a6b46", "rank correlation of counts"),
    ("alignments", "#7a5fa8", "centered alignment"),
)


def write_trajectory(path: str | Path, stability: Stability, *, overwrite: bool = False) -> Path:
    """Write the figure: one curve a measure, over the networks in order, against the last of them.

    Args:
        path: of the file; it ends in .svg.
        stability: of at least three networks, the last one being what others are compared with.
        overwrite: replace a file that is there.

    Raises:
        InputError, IndexExistsError: see `check_figure`.
    """
    path = Path(path)
    check_figure(path, len(stability.names), overwrite=overwrite)
    path.write_text(trajectory(stability), encoding="utf-8")
    return path


def check_figure(path: str | Path, n_networks: int, *, overwrite: bool = False) -> None:
    """Whether a figure of so many networks can be written there: what `write_trajectory` asks, before all the work.

    Raises:
        InputError: the name ends in something else, its folder is not there, or there are too few networks.
        IndexExistsError: the file is there already.
    """
    path = Path(path)
    _check_length(n_networks)
    if path.suffix != ".svg":
        raise InputError(f"{str(path)!r}: the figure is an .svg file.")
    if path.exists() and not overwrite:
        raise IndexExistsError(f"{str(path)!r} is there already: pass overwrite=True to replace it.")
    if not path.parent.is_dir():
        raise InputError(f"{str(path)!r}: there is no folder {str(path.parent)!r} to write it into: make it first.")


def trajectory(stability: Stability) -> str:
    """The figure.

    Raises:
        InputError: there are fewer than three networks.
    """
    _check_length(len(stability.names))
    parts = [*_frame(stability)]
    for number, (name, color, label) in enumerate(_CURVES):
        parts += _curve(getattr(stability, name), color)
        y = _TOP + 14 + 22 * number
        x = WIDTH - _RIGHT + 18
        parts.append(f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" stroke-width="2.5"/>')
        parts.append(f'<text x="{x + 24}" y="{y}">{label}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" font-family="sans-serif" '
        f'font-size="11" fill="#1f2328" role="img" aria-label="{_text(stability.summary())}">\n'
        f'<rect width="{WIDTH:g}" height="{HEIGHT:g}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _check_length(n_networks: int) -> None:
    if n_networks < 3:
        raise InputError(f"A trajectory needs at least three networks, and there are {n_networks}: add checkpoints.")


def _frame(stability: Stability) -> Iterator[str]:
    """Title, axes, names of networks, and from where neighbors can be trusted."""
    names, right = stability.names, WIDTH - _RIGHT
    yield f'<text x="{_LEFT}" y="24" font-size="15" font-weight="600">Agreement with {_text(names[-1])}</text>'
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _up(tick)
        yield f'<line x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#e4e1da"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>'
    step = max(1, -(-len(names) // _MAX_NAMES))
    for place, name in enumerate(names):
        if place % step == 0 or place == len(names) - 1:
            x, y = _across(place, len(names)), HEIGHT - _BOTTOM + 16
            shown = _text(name if len(name) <= 18 else f"…{name[-17:]}")
            yield f'<text x="{x}" y="{y}" text-anchor="end" transform="rotate(-35 {x} {y})">{shown}</text>'
    if stability.trusted_from is not None:
        x = _across(names.index(stability.trusted_from), len(names))
        yield (
            f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" stroke="#1f2328" stroke-dasharray="3 3"/>'
            f'<text x="{x + 5}" y="{_TOP - 6}">neighbors stay from here on</text>'
        )


def _curve(found: Agreement, color: str) -> Iterator[str]:
    """One measure against the last network, with its interval as a band; gaps where it is undefined."""
    t = len(found.values) - 1
    middle, low, high = (each[:t, t].tolist() for each in (found.values, found.low, found.high))
    for run in _runs(middle):
        xs = [_across(place, t + 1) for place in run]
        band = [*((x, high[p]) for x, p in zip(xs, run, strict=True))]
        band += [(x, low[p]) for x, p in zip(reversed(xs), reversed(run), strict=True)]
        yield f'<polygon points="{_points(band)}" fill="{color}" fill-opacity="0.13"/>'
        curve = [(x, middle[p]) for x, p in zip(xs, run, strict=True)]
        yield f'<polyline points="{_points(curve)}" fill="none" stroke="{color}" stroke-width="2"/>'
        for x, value in curve:
            yield f'<circle cx="{x}" cy="{_up(value)}" r="3" fill="{color}"><title>{value:.3f}</title></circle>'


def _runs(values: list[float]) -> list[list[int]]:
    """Places of values that are numbers, one list for every stretch without a gap."""
    places = [place for place, value in enumerate(values) if not isnan(value)]
    return [[p for _, p in run] for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0])]


def _text(text: str) -> str:
    """As XML takes it: control characters, which it does not, are replaced."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text), quote=True)


def _points(pairs: list[tuple[float, float]]) -> str:
    return " ".join(f"{x},{_up(value)}" for x, value in pairs)


def _across(place: int, n: int) -> float:
    return round(_LEFT + 12 + (WIDTH - _LEFT - _RIGHT - 24) * place / max(1, n - 1), 1)


def _up(value: float) -> float:
    """Where a value from 0 to 1 lies; what is below 0 is at the bottom."""
    return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - min(max(value, 0.0), 1.0)), 1)
