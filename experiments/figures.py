"""Curves with intervals, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#1f2328", "#b4430f", "#2f5d8a", "#2a6b46", "#7a5fa8", "#9a7b16", "#0f7f8a", "#a83a6b")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760.0, 420.0, 56.0, 180.0, 64.0, 44.0


@dataclass(frozen=True)
class Curve:
    """Means and half of their intervals, one of each a step."""

    means: Sequence[float]
    halves: Sequence[float]


@dataclass(frozen=True)
class Axes:
    """What lies where: steps across, a part of 0 to 1 up."""

    last: float
    low: float
    high: float

    def across(self, step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / self.last, 1)

    def up(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (self.high - inside) / (self.high - self.low), 1)

    def points(self, steps: Sequence[float], values: Sequence[float]) -> str:
        return " ".join(f"{self.across(x)},{self.up(y)}" for x, y in zip(steps, values, strict=True))


def figure(title: str, note: str, steps: Sequence[float], curves: Mapping[str, Curve], axes: Axes) -> str:
    """All of it.

    Args:
        title: over it.
        note: under the title, also for those who cannot see it.
        steps: where curves have values.
        curves: by name.
        axes: their ends.
    """
    parts = [
        *_frame(title, note, axes),
        *(part for each in enumerate(curves.items()) for part in _curve(each, steps, axes)),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" font-family="sans-serif" '
        f'font-size="11" fill="#1f2328" role="img" aria-label="{escape(f"{title}. {note}", quote=True)}">\n'
        f'<rect width="{WIDTH:g}" height="{HEIGHT:g}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _frame(title: str, note: str, axes: Axes) -> Iterator[str]:
    right, ground = WIDTH - RIGHT, HEIGHT - BOTTOM
    yield f'<text x="{LEFT}" y="26" font-size="15" font-weight="600">{escape(title)}</text>'
    yield f'<text x="{LEFT}" y="45" fill="#5f6670">{escape(note)}</text>'
    for part in range(5):
        value = axes.low + part * (axes.high - axes.low) / 4
        y = axes.up(value)
        yield f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#e4e1da"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:.3g}</text>'
    for part in range(6):
        step = round(part * axes.last / 5)
        yield f'<text x="{axes.across(step)}" y="{ground + 18}" text-anchor="middle">{step:,}</text>'
    yield f'<text x="{(LEFT + right) / 2}" y="{ground + 36}" text-anchor="middle" fill="#5f6670">steps</text>'


def _curve(numbered: tuple[int, tuple[str, Curve]], steps: Sequence[float], axes: Axes) -> Iterator[str]:
    number, (name, curve) = numbered
    color = COLORS[number % len(COLORS)]
    highs, lows = ([m + sign * h for m, h in zip(curve.means, curve.halves, strict=True)] for sign in (1, -1))
    band = f"{axes.points(steps, highs)} {axes.points(steps[::-1], lows[::-1])}"
    y, x = TOP + 4 + 20 * number, WIDTH - RIGHT + 18
    yield f'<polygon points="{band}" fill="{color}" fill-opacity="0.12"/>'
    yield f'<polyline points="{axes.points(steps, curve.means)}" fill="none" stroke="{color}" stroke-width="1.8"/>'
    yield f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" stroke-width="2.5"/>'
    yield f'<text x="{x + 24}" y="{y}">{escape(name)}</text>'
