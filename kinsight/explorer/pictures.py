"""Pictures that are part of the page itself: images as data URIs, and histograms."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 160
"""Pixels of an image's longer side: twice what the page shows, for dense screens."""

_PHOTO_SIDE = 64
_CHART_WIDTH, _CHART_HEIGHT, _CHART_TOP = 1000.0, 140.0, 30.0
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def data_uri(image: Image) -> str:
    """The image itself as a URI, at most `MAX_SIDE` pixels wide and high: a PNG, or a JPEG where it is a larger photo.

    Example:
        >>> from PIL import Image
        >>> data_uri(Image.new("L", (2, 2)))
        'data:image/png;base64,...'
    """
    small = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGBA" if "A" in image.mode else "RGB")
    if max(small.size) > MAX_SIDE:
        small = small.copy()
        small.thumbnail((MAX_SIDE, MAX_SIDE))
    is_photo = small.mode == "RGB" and max(small.size) > _PHOTO_SIDE
    stream = io.BytesIO()
    if is_photo:
        small.save(stream, "JPEG", quality=85)
    else:
        small.save(stream, "PNG", optimize=True)
    kind = "jpeg" if is_photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram.

    Args:
        low: lower edge.
        high: upper edge.
        n: number of values between them.
    """

    low: float
    high: float
    n: int


def histogram(values: Sequence[float], n_bars: int = 40) -> list[Bar]:
    """About `n_bars` bars with round edges that cover all values. nan is left out.

    Example:
        >>> [(bar.low, bar.high, bar.n) for bar in histogram([0.5, 1.5, 1.7, 3.9], n_bars=4)]
        [(0.0, 1.0, 1), (1.0, 2.0, 2), (2.0, 3.0, 0), (3.0, 4.0, 1)]
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return []
    step = _round_step((max(finite) - min(finite)) / n_bars)
    first = math.floor(min(finite) / step)
    counts = [0] * (math.floor(max(finite) / step) - first + 1)
    for value in finite:
        counts[math.floor(value / step) - first] += 1
    return [Bar((first + i) * step, (first + i + 1) * step, n) for i, n in enumerate(counts)]


N_TICKS = 6
"""Round numbers on an axis, or so."""


def ticks(low: float, high: float) -> list[float]:
    """About `N_TICKS` round numbers from low to high.

    Example:
        >>> ticks(560.0, 1340.0)
        [600.0, 800.0, 1000.0, 1200.0]
    """
    step = _round_step((high - low) / N_TICKS)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _round_step(step: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below."""
    if step <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(step))
    return next(s * scale for s in _STEPS if s * scale >= step * (1 - 1e-9))


def chart(values: Sequence[float], what: str) -> dict[str, Any] | None:
    """A histogram of values, in the coordinates of the drawing, as the template reads it. nan is left out.

    Args:
        values: in any order.
        what: they are, in words.
    """
    known = sorted(value for value in values if math.isfinite(value))
    bars = histogram(known)
    if not bars:
        return None
    low, high, most = bars[0].low, bars[-1].high, max(bar.n for bar in bars)

    def x(value: float) -> float:
        return round((value - low) / (high - low) * _CHART_WIDTH, 1)

    drawn = [
        {
            "x": x(bar.low),
            "width": round(max(x(bar.high) - x(bar.low) - 2, 1), 1),
            "y": round(_CHART_TOP + _CHART_HEIGHT * (1 - bar.n / most), 1),
            "height": round(_CHART_HEIGHT * bar.n / most, 1),
            "text": f"{written(bar.low)} to {written(bar.high)}: {bar.n:,} samples",
        }
        for bar in bars
        if bar.n
    ]
    median = statistics.median(known)
    return {
        "bars": drawn,
        "ticks": [{"x": x(tick), "text": f"{tick:,g}"} for tick in ticks(low, high)],
        "median": written(median),
        "median_x": x(median),
        "description": f"Histogram of the {what} of {len(known):,} samples, from {written(known[0])} to "
        f"{written(known[-1])}, median {written(median)}",
    }


def written(value: float, error: float | None = None) -> str:
    """A number in few digits, with its standard error where it has one.

    Example:
        >>> written(1203.6), written(3.14159), written(120.4, 30.0)
        ('1,204', '3.14', '120 ± 30')
    """
    if error:
        n_digits = max(0, -math.floor(math.log10(error)))
        return f"{value:,.{n_digits}f} ± {error:,.{n_digits}f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
