"""The demo's pictures: digits in the terminal, and the sheet of neighbors and suspects for the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from kinsight.explorer import Findings

CELLS = 14  # columns that a digit takes in the terminal; every one of its characters shows two pixels
SIDE, GAP, MARGIN = 76, 12, 28
INK, SOFT, LINE, ALERT = "#1f2328", "#5c636d", "#d5d1c8", "#b4430f"


def in_terminal(image: Tensor) -> Text:
    """A digit in half blocks, 14 columns and 7 lines. [1 28 28]."""
    small = torch.nn.functional.avg_pool2d(image[None], 28 // CELLS)[0, 0]
    levels = (255 * small.clamp(0, 1) ** 0.8).to(torch.int).tolist()
    lines = []
    for upper, lower in zip(levels[::2], levels[1::2], strict=True):
        cells = [
            ("▀", f"rgb({above},{above},{above}) on rgb({below},{below},{below})")
            for above, below in zip(upper, lower, strict=True)
        ]
        lines.append(Text.assemble(*cells))
    return Text("\n").join(lines)


def show_strip(console: Console, images: Sequence[Tensor], captions: Sequence[str]) -> None:
    """Digits side by side, as many as the terminal is wide, with a line under each."""
    n = max(1, (console.width + 1) // (CELLS + 1))
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(*(in_terminal(image) for image in images[:n]))
    table.add_row(*captions[:n])
    console.print(table)


def draw_sheet(found: Findings, images: Tensor, held_out: Tensor, path: Path, n_rows: int = 6) -> None:
    """Left, held-out digits and their nearest neighbors; right, suspected labels and the neighbors that contradict."""
    neighbors, suspects = found.neighbors, found.suspects
    assert neighbors is not None
    assert suspects is not None
    step = SIDE + GAP
    n_near, n_support = 6, 4
    split = MARGIN + step + 14 + n_near * step + 44
    width = split + step + 150 + n_support * step - GAP + MARGIN
    top, row_height = 92, SIDE + 42
    sheet = Image.new("RGB", (width, top + n_rows * row_height + 4), "white")
    pen = ImageDraw.Draw(sheet)
    title, font = ImageFont.load_default(24), ImageFont.load_default(17)
    pen.text((MARGIN, 22), "What the network finds alike", fill=INK, font=title)
    pen.text((MARGIN, 56), "a held-out digit, and the training digits most similar to it", fill=SOFT, font=font)
    pen.text((split, 22), "Labels the neighborhood contradicts", fill=INK, font=title)
    pen.text((split, 56), "a training digit, its label, and what its neighbors say", fill=SOFT, font=font)
    pen.line((split - 30, 24, split - 30, sheet.height - 24), fill=LINE, width=2)
    for row in range(min(n_rows, len(neighbors))):
        y = top + row * row_height
        query = found.queries[row]
        _paste(sheet, held_out[row], (MARGIN, y), f"label {query.label}", INK, font, outline=INK)
        for column, place in enumerate(neighbors.positions[row, :n_near].tolist()):
            label, value = found.portraits[place].label, float(neighbors.similarities[row, column])
            color = SOFT if label == query.label else ALERT
            _paste(sheet, images[place], (MARGIN + (column + 1) * step + 14, y), f"{label}   {value:.2f}", color, font)
    for row, place in enumerate(suspects.positions[:n_rows].tolist()):
        y = top + row * row_height
        _paste(sheet, images[place], (split, y), "", INK, font, outline=ALERT)
        pen.text((split + step + 4, y + 8), f"labeled {found.portraits[place].label}", fill=ALERT, font=font)
        pen.text((split + step + 4, y + 34), f"suggested {found.suggestions[row]}", fill=INK, font=font)
        for column, supporter in enumerate(suspects.supporter_positions[row, :n_support].tolist()):
            value = float(suspects.supporter_similarities[row, column])
            corner = (split + step + 150 + column * step, y)
            _paste(sheet, images[supporter], corner, f"{value:.2f}", SOFT, font)
    sheet.save(path, optimize=True)


def _paste(
    sheet: Image.Image,
    image: Tensor,
    corner: tuple[int, int],
    caption: str,
    color: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    *,
    outline: str = LINE,
) -> None:
    """A digit, dark on light, with a line under it. [1 28 28]."""
    pixels = (255 * (1 - image[0])).clamp(0, 255).to(torch.uint8).numpy()
    x, y = corner
    sheet.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS), corner)
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((x - 2, y - 2, x + SIDE + 1, y + SIDE + 1), outline=outline, width=2)
    pen.text((x, y + SIDE + 6), caption, fill=color, font=font)
