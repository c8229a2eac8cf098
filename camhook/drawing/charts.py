"""Small line charts, drawn with what draws the pictures: no plotting library is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from camhook.errors import CamhookError

__all__ = ["Point", "chart"]

Point = tuple[float, float]

_INK, _MUTED, _GRID = (25, 25, 25), (112, 112, 112), (226, 226, 226)
_COLORS = ((20, 80, 190), (150, 150, 150))  # of the first line, and of the others
_FINE = 3  # drawn so many times larger, then shrunk: smooth lines


def chart(
    lines: Sequence[Sequence[Point]],
    *,
    x_label: str = "",
    log_x: bool = False,
    mark: Point | None = None,
    dots: bool = False,
    size: tuple[int, int] = (300, 400),
) -> Image.Image:
    """Draw lines through points (x, y), the first in colour; points that are not finite are left out.

    Parameters
    ----------
    lines : sequence of lines
    x_label : str
        What x is, below the axis.
    log_x : bool
        A logarithmic x axis; points at 0 or below are left out.
    mark : (x, y), optional
        A point to show.
    dots : bool
        Show the points of the first line.
    size : (int, int)
        (height, width) of the picture, in pixels.

    Raises
    ------
    CamhookError
        There is no point to draw.
    """
    kept = [[p for p in line if all(map(math.isfinite, p)) and (p[0] > 0 or not log_x)] for line in lines]
    points = [p for line in kept for p in line]
    if not points:
        raise CamhookError("Found no points to draw, expected one or more that are finite.")
    height, width = (_FINE * side for side in size)
    em = 13 * _FINE
    left, right, top, bottom = round(4.2 * em), width - em, em, height - round(2.6 * em)
    x_low, x_high = _range([_axis(x, log_x) for x, _ in points])
    y_low, y_high = _range([y for _, y in points])

    def place(point: Point) -> Point:
        x, y = (_axis(point[0], log_x) - x_low) / (x_high - x_low), (point[1] - y_low) / (y_high - y_low)
        return left + x * (right - left), bottom - y * (bottom - top)

    page = Image.new("RGB", (width, height), "white")
    sheet, font = ImageDraw.Draw(page), ImageFont.load_default(em)
    for step in range(5):
        share = step / 4
        y = bottom - share * (bottom - top)
        sheet.line([(left, y), (right, y)], fill=_GRID, width=_FINE)
        sheet.text((left - em / 2, y), f"{y_low + share * (y_high - y_low):.3g}", fill=_INK, font=font, anchor="rm")
    for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        value = x_low + share * (x_high - x_low)
        text = f"{10**value if log_x else value:.4g}"
        sheet.text((left + share * (right - left), bottom + em / 3), text, fill=_INK, font=font, anchor=anchor)
    sheet.text(((left + right) / 2, height - em / 4), x_label, fill=_MUTED, font=font, anchor="ms")
    for number in reversed(range(len(kept))):
        where = [place(point) for point in kept[number]]
        sheet.line(where, fill=_COLORS[min(number, 1)], width=2 * _FINE, joint="curve")
        if dots and number == 0:
            _dots(sheet, where, _COLORS[0])
    if mark is not None:
        _dots(sheet, [place(mark)], (200, 20, 30))
    return page.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def _axis(x: float, log_x: bool) -> float:
    return math.log10(x) if log_x else x


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _dots(sheet: ImageDraw.ImageDraw, where: Sequence[Point], color: tuple[int, int, int]) -> None:
    for x, y in where:
        sheet.ellipse((x - 4 * _FINE, y - 4 * _FINE, x + 4 * _FINE, y + 4 * _FINE), fill=color)
