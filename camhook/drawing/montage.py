"""Lay pictures out with captions: rows of panels, a legend, and CAM's own equation drawn as a picture."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from camhook.drawing.overlay import colorize
from camhook.errors import CamhookError

Ink = tuple[int, ...]

_INK, _MUTED = (25, 25, 25), (112, 112, 112)


@dataclass(frozen=True)
class Panel:
    """A picture with a title and smaller lines below it, and a sign ("+", "=") in the gap to its left."""

    picture: Image.Image
    title: str = ""
    lines: tuple[str, ...] = ()
    sign: str = ""


def montage(
    rows: Sequence[Sequence[Panel]],
    *,
    cell: tuple[int, int] = (300, 300),
    title: str = "",
    footer: str = "",
    background: str = "white",
) -> Image.Image:
    """Lay panels out in rows, each picture fitted in its cell and captioned below.

    Text grows with the cell. What is wider than its column is wrapped, then shortened with an ellipsis.

    Parameters
    ----------
    rows : sequence of rows of Panel
        Rows may differ in length; empty ones are left out.
    cell : (int, int)
        Largest (height, width) of a picture, in pixels; small pictures are enlarged to it, aspect kept.
    title, footer : str
        Text above and below all rows.
    background : str
        A colour, by name or "#rrggbb"; text is dark on a light one and light on a dark one.

    Raises
    ------
    CamhookError
        There is no panel, or the cell is too small for a caption.
    """
    rows = [row for row in rows if len(row)]
    if not rows or min(cell) < 48:
        found = f"{sum(map(len, rows))} panels and cell={cell}"
        raise CamhookError(f"Found {found}, expected one panel and (48, 48) or more; pass panels, or a larger cell.")
    paper = ImageColor.getrgb(background)[:3]
    ink, muted = (_INK, _MUTED) if sum(paper) > 384 else ((240, 240, 240), (160, 160, 160))
    em = max(14, round(cell[1] / 20))  # the size of a panel's title, and the measure of every distance

    pictures = [[ImageOps.contain(panel.picture.convert("RGB"), cell[::-1]) for panel in row] for row in rows]
    column = max(2 * cell[1] // 3, *(picture.width for row in pictures for picture in row))
    signs = any(panel.sign for row in rows for panel in row)
    gap, margin = round((2.4 if signs else 1.2) * em), round(1.6 * em)
    left = gap if any(row[0].sign for row in rows) else margin
    columns = max(map(len, rows))
    inner = columns * column + (columns - 1) * gap

    heading = _written([(title, round(1.4 * em), ink, 3)], inner, paper)
    closing = _written([(footer, em - 1, muted, 8)], inner, paper)
    placed = [(left, margin, heading)]  # (x, y, picture), from top to bottom
    marks = []  # (x, y, sign), at the middle of the gaps
    y = margin + heading.height + (round(0.5 * em) if title else 0)
    for row, fitted in zip(rows, pictures, strict=True):
        middle, bottom = y + max(picture.height for picture in fitted) / 2, y
        for number, (panel, picture) in enumerate(zip(row, fitted, strict=True)):
            x, below = left + number * (column + gap), y + picture.height
            texts = [(panel.title, em, ink, 2), *((line, em - 1, muted, 2) for line in panel.lines)]
            caption = _written(texts, column, paper)
            placed += [(x, y, picture), (x, below + round(0.4 * em), caption)]
            marks.append((x - gap / 2, middle, panel.sign))
            bottom = max(bottom, below + (round(0.4 * em) + caption.height if caption.height else 0))
        y = bottom + round(1.2 * em)
    placed.append((left, y, closing))
    bottom = y + closing.height if footer else bottom

    page = Image.new("RGB", (left + inner + margin, bottom + margin), paper)
    for x, y, picture in placed:
        page.paste(picture, (x, y))
    sheet, large = ImageDraw.Draw(page), ImageFont.load_default(1.8 * em)
    for center, middle, sign in marks:
        sheet.text((center, middle), sign, fill=muted, font=large, anchor="mm")
    return page


def color_bar(width: int, height: int, *, scale: float, colormap: str = "turbo", unit: str = "logits") -> Image.Image:
    """Draw the legend of `colorize`: its colours from 0 to ``scale``, with numbers below.

    Parameters
    ----------
    width, height : int
        Size of the picture in pixels; half of the height is text.
    scale : float
        The value at the last colour. At 0 or less the legend says that there is no positive evidence.
    colormap, unit : str
        The colours' name, and what the numbers count.
    """
    text = height // 2
    ramp = np.linspace(0, 1, width)[None].repeat(height - text, axis=0)
    page = Image.new("RGB", (width, height), "white")
    page.paste(Image.fromarray(colorize(ramp, scale=float(scale > 0), colormap=colormap)))
    sheet, font = ImageDraw.Draw(page), ImageFont.load_default(0.75 * text)
    numbers = [("0", 0, "ls"), (f"{scale / 2:.3g}", width / 2, "ms"), (f"{scale:.3g} {_plain(unit)}", width, "rs")]
    for number, x, anchor in numbers if scale > 0 else [("no positive evidence", 0, "ls")]:
        sheet.text((x, height - 0.2 * text), number, fill=_INK, font=font, anchor=anchor)
    return page


def _written(texts: Sequence[tuple[str, int, Ink, int]], width: int, paper: Ink) -> Image.Image:
    """Write (text, size, ink, most lines) one below the other, on paper that is just high enough."""
    lines = [
        (line, size, ink)
        for text, size, ink, most in texts
        for line in _lines(_plain(text).split(), ImageFont.load_default(size), width, most)
    ]
    page = Image.new("RGB", (width, sum(round(1.35 * size) for _, size, _ in lines)), paper)
    sheet, y = ImageDraw.Draw(page), 0
    for line, size, ink in lines:
        sheet.text((0, y), line, fill=ink, font=ImageFont.load_default(size), anchor="la")
        y += round(1.35 * size)
    return page


def _lines(
    words: list[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int
) -> Iterator[str]:
    for number in range(1, most + 1):
        if not words:
            return
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        line, words = " ".join(words[:taken]), words[taken:]
        line += "…" if words and number == most else ""
        while font.getlength(line) > width and len(line) > 1:
            line = line.rstrip("…")[:-1] + "…"
        yield line


def _plain(text: str) -> str:
    """Strip accents: PIL's built-in font has little more than ASCII and draws boxes instead."""
    return "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
