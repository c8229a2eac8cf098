"""Figures of several pictures: rows of captioned panels, and the colour bar."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageOps

from camhook.drawing.overlay import colorize
from camhook.drawing.text import Paragraph, draw_text, text_block
from camhook.errors import CamhookError

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

    heading = text_block([Paragraph(title, round(1.4 * em), ink, 3)], inner, paper)
    closing = text_block([Paragraph(footer, em - 1, muted, 8)], inner, paper)
    placed = [(left, margin, heading)]  # (x, y, picture), from top to bottom
    marks = []  # (x, y, sign), at the middle of the gaps
    y = margin + heading.height + (round(0.5 * em) if title else 0)
    for row, fitted in zip(rows, pictures, strict=True):
        middle, bottom = y + max(picture.height for picture in fitted) / 2, y
        for number, (panel, picture) in enumerate(zip(row, fitted, strict=True)):
            x, below = left + number * (column + gap), y + picture.height
            texts = [Paragraph(panel.title, em, ink, 2), *(Paragraph(line, em - 1, muted, 2) for line in panel.lines)]
            caption = text_block(texts, column, paper)
            placed += [(x, y, picture), (x, below + round(0.4 * em), caption)]
            marks.append((x - gap / 2, middle, panel.sign))
            bottom = max(bottom, below + (round(0.4 * em) + caption.height if caption.height else 0))
        y = bottom + round(1.2 * em)
    placed.append((left, y, closing))
    bottom = y + closing.height if footer else bottom

    page = Image.new("RGB", (left + inner + margin, bottom + margin), paper)
    for x, y, picture in placed:
        page.paste(picture, (x, y))
    sheet = ImageDraw.Draw(page)
    for center, middle, sign in marks:
        draw_text(sheet, (center, middle), sign, size=1.8 * em, fill=muted, anchor="mm")
    return page


def data_uri(picture: Image.Image) -> str:
    """Return a picture as PNG in a ``data:`` URI, to embed in HTML."""
    packed = io.BytesIO()
    picture.save(packed, "PNG")
    return f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"


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
    sheet = ImageDraw.Draw(page)
    numbers = [("0", 0, "ls"), (f"{scale / 2:.3g}", width / 2, "ms"), (f"{scale:.3g} {unit}", width, "rs")]
    for number, x, anchor in numbers if scale > 0 else [("no positive evidence", 0, "ls")]:
        draw_text(sheet, (x, height - 0.2 * text), number, size=0.75 * text, fill=_INK, anchor=anchor)
    return page
