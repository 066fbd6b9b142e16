"""A figure of stability: how far every network of a training agrees with the last one, with intervals, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import isnan
from pathlib import Path

from kinsight.agreement import Agreement
from kinsight.errors import IndexExistsError, InputError
from kinsight.stability import Stability

WIDTH = 760.0

MIN_NETWORKS = 3
"""Of a trajectory: two that are compared with a last one."""

_LEFT, _RIGHT, _TOP, _TALL = 56.0, 204.0, 76.0, 280.0
_UPRIGHT, _ASLANT = 36.0, 86.0  # room under the axis for names
_MAX_NAMES, _MAX_LETTERS, _LETTER = 12, 16, 6.5
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
    names = _Names.of(stability.names[:-1])
    height = _TOP + _TALL + (_ASLANT if names.is_aslant else _UPRIGHT)
    parts = [*_frame(stability), *names.draw(len(stability.names) - 1)]
    for number, (name, color, label) in enumerate(_CURVES):
        parts += _curve(getattr(stability, name), color)
        y = _TOP + 4 + 22 * number
        x = WIDTH - _RIGHT + 18
        parts.append(f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" stroke-width="2.5"/>')
        parts.append(f'<text x="{x + 24}" y="{y}">{label}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" font-family="sans-serif" '
        f'font-size="11" fill="#1f2328" role="img" aria-label="{_text(stability.summary())}">\n'
        f'<rect width="{WIDTH:g}" height="{height:g}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _check_length(n_networks: int) -> None:
    if n_networks < MIN_NETWORKS:
        raise InputError(f"A trajectory needs at least three networks, and there are {n_networks}: add checkpoints.")


def _frame(stability: Stability) -> Iterator[str]:
    """Title, axes, and from where neighbors can be trusted."""
    names, right = stability.names[:-1], WIDTH - _RIGHT
    title = f"Agreement with {_text(_last(stability.names[-1], 60))}, the last"
    yield f'<text x="{_LEFT}" y="26" font-size="15" font-weight="600">{title}</text>'
    note = f"{stability.n_neighbors} nearest neighbors among {stability.n_others:,} samples. Bands are 95 % intervals."
    yield f'<text x="{_LEFT}" y="45" fill="#5f6670">{note}</text>'
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _up(tick)
        yield f'<line x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#e4e1da"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>'
    if stability.trusted_from is not None:
        x = _across(names.index(stability.trusted_from), len(names))
        shift, anchor = (5, "start") if x < (_LEFT + right) / 2 else (-5, "end")
        yield (
            f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{_TOP + _TALL}" stroke="#1f2328" stroke-dasharray="3 3"/>'
            f'<text x="{x + shift}" y="{_TOP - 6}" text-anchor="{anchor}">neighbors stay from here on</text>'
        )


@dataclass(frozen=True)
class _Names:
    """Names of networks under the axis, by place: at most a dozen, aslant where they are too long to stand."""

    shown: dict[int, str]
    is_aslant: bool

    @staticmethod
    def of(names: Sequence[str]) -> _Names:
        """The last one, and every so many before it."""
        step = -(-len(names) // _MAX_NAMES)
        shown = {place: name for place, name in enumerate(_short(names)) if (len(names) - 1 - place) % step == 0}
        room = step * (_across(1, len(names)) - _across(0, len(names)))
        return _Names(shown, max(map(len, shown.values())) * _LETTER > room)

    def draw(self, n: int) -> Iterator[str]:
        """As text, for n networks."""
        for place, name in self.shown.items():
            x, y = _across(place, n), _TOP + _TALL + (16 if self.is_aslant else 20)
            how = f'text-anchor="end" transform="rotate(-35 {x} {y})"' if self.is_aslant else 'text-anchor="middle"'
            yield f'<text x="{x}" y="{y}" {how}>{_text(name)}</text>'


def _short(names: Sequence[str]) -> list[str]:
    """The last characters of names; of files, all of one kind, without their suffix where a name is long."""
    suffixes = {Path(name).suffix for name in names}
    if max(map(len, names)) > _MAX_LETTERS and len(suffixes) == 1:
        names = [name.removesuffix(*suffixes) for name in names]
    return [_last(name, _MAX_LETTERS) for name in names]


def _last(name: str, n: int) -> str:
    """The last n characters."""
    return name if len(name) <= n else f"…{name[1 - n :]}"


def _curve(found: Agreement, color: str) -> Iterator[str]:
    """One measure against the last network, with its interval as a band; gaps where it is undefined."""
    t = len(found.values) - 1
    middle, low, high = (each[:t, t].tolist() for each in (found.values, found.low, found.high))
    for run in _runs(middle):
        xs = [_across(place, t) for place in run]
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


def printable(text: str) -> str:
    """The text with a mark in place of control characters, which neither XML nor HTML takes."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _text(text: str) -> str:
    return escape(printable(text), quote=True)


def _points(pairs: list[tuple[float, float]]) -> str:
    return " ".join(f"{x},{_up(value)}" for x, value in pairs)


def _across(place: int, n: int) -> float:
    return round(_LEFT + 20 + (WIDTH - _LEFT - _RIGHT - 40) * place / (n - 1), 1)


def _up(value: float) -> float:
    """Where a value from 0 to 1 lies; what is below 0 is at the bottom."""
    return round(_TOP + _TALL * (1 - min(max(value, 0.0), 1.0)), 1)
