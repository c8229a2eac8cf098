"""Text in pictures: DejaVu Sans, which matplotlib ships, and the system's fonts for glyphs that it lacks."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Ink", "Paragraph", "draw_text", "text_block"]

Ink = tuple[int, ...]
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # for a character that no font has


@dataclass(frozen=True)
class Paragraph:
    """Text of one size (in pixels) and colour (RGB), with a largest number of lines."""

    text: str
    size: int
    fill: Ink
    max_lines: int


def draw_text(
    sheet: ImageDraw.ImageDraw, position: tuple[float, float], text: str, *, size: float, fill: Ink, anchor: str = "la"
) -> None:
    """Draw one line of text, each character in the first font that has it.

    Parameters
    ----------
    sheet : ImageDraw.ImageDraw
    position : (float, float)
        (x, y) of the anchor, in pixels.
    text : str
        In any script; U+FFFD stands for what no installed font has.
    size : float
        Of the font, in pixels.
    fill : tuple of int
        RGB.
    anchor : str
        Pillow's: "l", "m" or "r" for left, middle or right, then "a", "m" or "s" for ascender, middle or baseline.
    """
    x, y = position
    runs = _runs(text, size)
    x -= {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * sum(font.getlength(run) for font, run in runs)
    ascent, descent = _font(_dejavu(), size).getmetrics()
    y += {"a": ascent, "m": (ascent - descent) / 2, "s": 0}[anchor[1]]
    for font, run in runs:
        sheet.text((x, y), run, fill=fill, font=font, anchor="ls")
        x += font.getlength(run)


def text_block(paragraphs: Sequence[Paragraph], width: int, background: Ink) -> Image.Image:
    """Draw paragraphs one below the other on a picture of that width, just high enough.

    What is wider than the picture is wrapped at spaces, then shortened with an ellipsis.
    """
    lines = [(line, each) for each in paragraphs for line in _wrapped(each, width - 1)]  # letters lean out by a pixel
    page = Image.new("RGB", (width, sum(_line_height(each.size) for _, each in lines)), background)
    sheet, y = ImageDraw.Draw(page), 0
    for line, each in lines:
        draw_text(sheet, (0, y), line, size=each.size, fill=each.fill)
        y += _line_height(each.size)
    return page


def _line_height(size: int) -> int:
    return round(1.35 * size)


def _wrapped(paragraph: Paragraph, width: int) -> Iterator[str]:
    words, size = paragraph.text.split(), paragraph.size
    for number in range(1, paragraph.max_lines + 1):
        if not words:
            return
        taken = 1
        while taken < len(words) and _length(" ".join(words[: taken + 1]), size) <= width:
            taken += 1
        line, words = " ".join(words[:taken]), words[taken:]
        line += "…" if words and number == paragraph.max_lines else ""
        while _length(line, size) > width and len(line) > 1:
            line = line.rstrip("…")[:-1] + "…"
        yield line


def _length(text: str, size: float) -> float:
    """Return the width of a line in pixels."""
    return sum(font.getlength(run) for font, run in _runs(text, size))


def _runs(text: str, size: float) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """Split text into runs of one font each; accents that stand alone are composed with their letters first (NFC)."""
    found = []
    for character in unicodedata.normalize("NFC", text):
        path = _font_path(character)
        found.append((path or _dejavu(), character if path else _REPLACEMENT))
    return [
        (_font(path, size), "".join(character for _, character in run))
        for path, run in groupby(found, key=lambda pair: pair[0])
    ]


@lru_cache(maxsize=32)
def _font(path: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=1)
def _dejavu() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache(maxsize=1)
def _dejavu_characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_dejavu()).get_charmap())


@lru_cache(maxsize=4096)
def _font_path(character: str) -> str | None:
    """Return the file of the first font that has a character: DejaVu Sans, then the system's fonts, upright first."""
    if ord(character) in _dejavu_characters():
        return _dejavu()
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    # matplotlib's list may be older than the system's fonts; Last Resort has a box for every character.
    fonts = [f for f in fontManager.ttflist if not f.name.startswith("Last Resort") and Path(f.fname).is_file()]
    for font in sorted(fonts, key=lambda font: (font.style != "normal", font.weight not in (400, "normal"), font.name)):
        if FT2Font(font.fname).get_char_index(ord(character)):
            return font.fname
    return None
