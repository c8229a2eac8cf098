"""Line charts side by side, drawn with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from camhook.errors import CamhookError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Chart", "Point", "draw_charts"]

Point = tuple[float, float]

_COLORS = ("#1450be", "#969696")  # of the first line, and of the others
_DPI = 100


@dataclass(frozen=True)
class Chart:
    """Lines through points (x, y), the first in colour; points that are not finite are left out.

    Attributes
    ----------
    lines : sequence of lines
        Each a sequence of points.
    title, x_label : str
        Above the axes, and below.
    log_x : bool
        A logarithmic x axis; points at 0 or below are left out.
    mark : (x, y), optional
        A point to show.
    dots : bool
        Show the points of the first line.
    """

    lines: Sequence[Sequence[Point]]
    title: str = ""
    x_label: str = ""
    log_x: bool = False
    mark: Point | None = None
    dots: bool = False

    def draw(self, axes: Axes) -> None:
        """Draw it.

        Raises
        ------
        CamhookError
            If there is no point to draw.
        """
        kept = [[p for p in line if all(map(math.isfinite, p)) and (p[0] > 0 or not self.log_x)] for line in self.lines]
        if not any(kept):
            raise CamhookError("Found no points to draw, expected one or more that are finite.")
        for number, line in enumerate(kept):
            marker = "o" if self.dots and number == 0 else None
            axes.plot(*np.reshape(line, (-1, 2)).T, color=_COLORS[min(number, 1)], marker=marker, zorder=-number)
        if self.mark is not None:
            axes.plot(*self.mark, "o", color="#c8141e")
        if self.log_x:
            axes.set_xscale("log")
        axes.set_title(self.title)
        axes.set_xlabel(self.x_label)
        axes.grid(color="#e2e2e2")
        axes.set_axisbelow(True)


def draw_charts(
    charts: Sequence[Chart], *, title: str = "", footer: str = "", size: tuple[int, int] = (400, 440)
) -> Image.Image:
    """Draw charts side by side, with a title above and a line of text below.

    Parameters
    ----------
    size : (int, int)
        (height, width) of each chart, in pixels.

    Raises
    ------
    CamhookError
        If a chart has no point to draw.

    Examples
    --------
    >>> draw_charts([Chart([[(0.0, 1.0), (2.0, 3.0)]], "Rising")], size=(200, 300)).size
    (300, 200)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = size[0] / _DPI, max(1, len(charts)) * size[1] / _DPI
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # of its own: pyplot's state, which is the user's, is not touched
    for place, chart in enumerate(charts, 1):
        chart.draw(figure.add_subplot(1, len(charts), place))
    if title:
        figure.suptitle(title)
    if footer:
        figure.supxlabel(footer, fontsize="medium")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
