"""Many pictures on one sheet, each with words below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.reports.figures import shorten
from common.runs.files import atomic

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 6
SIDE = 176  # pixels of a thumbnail's box
_GAP, _LINE, _TITLE = 12, 17, 34  # pixels between boxes, of a line of words, above all
_INK, _GREY, _PAPER, _BOX = "#111111", "#555555", "#ffffff", "#f0f0f0"


@dataclass(frozen=True)
class Cell:
    """One picture, and the lines below it, the first one darker."""

    image: Image.Image
    lines: tuple[str, ...]


def thumbnail(image: Image.Image) -> Image.Image:
    """An image as it fits its box; small ones become larger, their pixels squares."""
    from PIL import Image, ImageOps

    small = max(image.size) < SIDE
    fitted = ImageOps.contain(image, (SIDE, SIDE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
    return fitted.convert("RGB")


def draw_sheet(path: Path, cells: Sequence[Cell], title: str) -> None:
    """Draw thumbnails in rows, as a PNG.

    Args:
        path: of the picture.
        cells: what is on it; all have equally many lines.
        title: above them.
    """
    from PIL import Image, ImageDraw

    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    height = SIDE + _LINE * len(cells[0].lines) + _GAP
    # A sheet of few is as wide as its title needs, up to that of a whole row.
    wide = max(columns * (SIDE + _GAP) + _GAP, min(round(_font(15).getlength(shorten(title, 200))) + 2 * _GAP, 1140))
    sheet = Image.new("RGB", (wide, _TITLE + rows * height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), _fitting(title, 15, wide - 2 * _GAP), _INK, _font(15))
    for place, cell in enumerate(cells):
        left, top = _GAP + place % columns * (SIDE + _GAP), _TITLE + _GAP + place // columns * height
        draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), _BOX)
        image = thumbnail(cell.image)
        sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
        for number, line in enumerate(cell.lines):
            where, ink = (left, top + SIDE + 2 + number * _LINE), _GREY if number else _INK
            draw.text(where, _fitting(line, 12, SIDE), ink, _font(12))
    with atomic(path) as part:
        sheet.save(part, format="PNG")


def _font(size: int) -> Any:
    """matplotlib's own, which every machine that draws has."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _fitting(text: str, size: int, width: int) -> str:
    """As much of a text, in one line, as so many pixels hold."""
    font, text = _font(size), " ".join(shorten(text, 200).split())
    length = len(text)
    while length > 1 and font.getlength(shorten(text, length)) > width:
        length -= 1
    return shorten(text, length)
