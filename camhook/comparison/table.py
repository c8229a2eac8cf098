"""What `camhook.compare` gives back: methods side by side, measured, with how sure each number is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camhook.comparison.attributions import METHODS
from camhook.drawing import overlay as drawing
from camhook.drawing.montage import Panel, montage
from camhook.errors import ImageError
from camhook.metrics import METRICS
from camhook.metrics.agreement import rank_correlation, top_overlap

__all__ = ["Agreement", "Comparison", "Row"]

_RESAMPLES = 2000
_SHARE = 0.2  # of the positions, which count as a map's strongest
_SIDE = 56  # maps are averaged down to this before they are ranked against each other


class Row(NamedTuple):
    """A method's mean on a metric."""

    method: str
    metric: str
    mean: float
    low: float
    """Of the 95% bootstrap interval of the mean over images; NaN where there is one value only."""
    high: float
    n: int


class Agreement(NamedTuple):
    """How alike methods' maps are, mean over images."""

    methods: tuple[str, ...]
    spearman: Tensor
    """(M, M): rank correlation."""
    overlap: Tensor
    """(M, M): intersection over union of the strongest 20%."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Methods side by side on the same model, images and targets.

    Attributes
    ----------
    model, explained : str
        The model's name, and what camhook found out about it.
    images, classes : tuple of str
        Each image's name, and the class that was explained.
    pictures : tuple of PIL.Image.Image
        What the model saw.
    confidence : tuple of float
        The model's probability of that class.
    metrics : tuple of str
        What was measured.
    maps : dict of str to Tensor
        By method, (B, H, W) at the model's input, signed, in the method's own unit.
    values : dict of str to dict of str to Tensor
        By method and metric: (n,), or () for a metric of all images together.
    seconds, memory : dict of str
        By method: seconds an image, and the most bytes needed at a time (None where that cannot be told).
    notes, failures : dict of str
        By method: remarks, and why a method could not be used.
    settings, versions : dict of str to str
    """

    model: str
    explained: str
    images: tuple[str, ...]
    pictures: tuple[Image.Image, ...] = field(repr=False)
    classes: tuple[str, ...]
    confidence: tuple[float, ...]
    metrics: tuple[str, ...]
    maps: Mapping[str, Tensor]
    values: Mapping[str, Mapping[str, Tensor]]
    seconds: Mapping[str, float]
    memory: Mapping[str, int | None]
    notes: Mapping[str, tuple[str, ...]]
    failures: Mapping[str, str]
    settings: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that worked, controls last."""
        return tuple(self.maps)

    def renamed(self, names: Sequence[str]) -> Comparison:
        """Return the same with other names for the images."""
        if len(names) != len(self.images):
            raise ImageError(f"{len(names)} names were given for {len(self.images)} images.")
        return replace(self, images=tuple(names))

    def rows(self) -> list[Row]:
        """Return a row for each method and metric that has a value.

        The interval is a percentile bootstrap over images, of 2,000 seeded resamples.
        """
        return [self.row(name, each) for name in self.methods for each in self.metrics if each in self.values[name]]

    def row(self, method: str, metric: str) -> Row:
        """Return a method's mean on a metric, NaN where it has none."""
        values = self.values.get(method, {}).get(metric)
        if values is None:
            return Row(method, metric, math.nan, math.nan, math.nan, 0)
        mean = float(values.mean())
        if values.numel() < 2:
            n = 1 if values.ndim else len(self.images)
            return Row(method, metric, mean, math.nan, math.nan, n)
        drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
        low, high = np.percentile(values.numpy()[drawn].mean(1), [2.5, 97.5])
        return Row(method, metric, mean, float(low), float(high), len(values))

    def beats_controls(self, method: str, metric: str) -> bool | None:
        """Tell whether a method's mean is better than that of every control; None where there is nothing to compare.

        A metric on which it is not says nothing for the method.
        """
        mine = self.row(method, metric).mean
        theirs = [self.row(name, metric).mean for name in self.methods if METHODS[name].is_control]
        theirs = [value for value in theirs if not math.isnan(value)]
        if math.isnan(mine) or not theirs or METHODS[method].is_control:
            return None
        return mine > max(theirs) if METRICS[metric].higher_is_better else mine < min(theirs)

    def best(self, metric: str) -> tuple[str, ...]:
        """Return the method with the best mean on a metric, or all that share it; controls do not count."""
        rows = [self.row(name, metric) for name in self.methods if not METHODS[name].is_control]
        rows = [row for row in rows if not math.isnan(row.mean)]
        choose = max if METRICS[metric].higher_is_better else min
        top = choose((row.mean for row in rows), default=0.0)
        return tuple(row.method for row in rows if math.isclose(row.mean, top, rel_tol=1e-6))

    @cached_property
    def agreement(self) -> Agreement:
        """Rank agreement between methods, on maps averaged down to 56 x 56 positions at most."""
        names = self.methods
        height, width = next(iter(self.maps.values())).shape[1:]
        size = min(height, _SIDE), min(width, _SIDE)
        small = [torch.nn.functional.adaptive_avg_pool2d(self.maps[name].double(), size) for name in names]
        spearman, overlap = (torch.eye(len(names), dtype=torch.float64) for _ in range(2))
        for i in range(len(names)):
            for j in range(i):
                spearman[i, j] = spearman[j, i] = rank_correlation(small[i], small[j]).mean()
                overlap[i, j] = overlap[j, i] = top_overlap(small[i], small[j], share=_SHARE).mean()
        return Agreement(names, spearman, overlap)

    def scale(self, method: str, index: int) -> float:
        """Return what full colour stands for in a picture: the 99th percentile of the map's absolute values."""
        return float(self.maps[method][index].abs().flatten().double().quantile(0.99))

    def overlay(self, method: str, index: int) -> Image.Image:
        """Draw a map over what the model saw: red speaks for the class, blue against it."""
        values = self.maps[method][index].numpy()
        return drawing.signed_overlay(self.pictures[index], values, scale=self.scale(method, index))

    def figure(self, *, limit: int = 8) -> Image.Image:
        """Draw a row for each of the first images: what the model saw, then a column for each method."""
        rows = []
        for index in range(min(len(self.images), limit)):
            what = (f"{self.classes[index]}, P {self.confidence[index]:.2f}",)
            row = [Panel(self.pictures[index], self.images[index], what)]
            for name in self.methods:
                scale = f"full colour {self.scale(name, index):.2g}"
                row.append(Panel(self.overlay(name, index), METHODS[name].title, (scale,)))
            rows.append(row)
        left = len(self.images) - len(rows)
        footer = (
            "Red speaks for the class, blue against it. Each panel has its own scale: full colour is the 99th "
            "percentile of the map's absolute values, in the method's own unit. "
            + f"{left} images are not shown."
            * (left > 0)
        )
        return montage(rows, cell=(200, 200), title=f"{self.model}: explanations side by side", footer=footer)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[str]:
        """Write the comparison.

        Parameters
        ----------
        path
            ``"report.html"``: one page with pictures and tables, which needs nothing else and opens offline; ``.csv``:
            the rows; ``.json``: all numbers, notes and settings; ``.png``: the figure. A directory: all of them.
        overwrite
            Replace files that camhook did not write. Its own are always replaced.

        Returns
        -------
        list of str
            The files written.

        Raises
        ------
        OutputError
            A file is there that camhook did not write, the path cannot be written to, or its ending is unknown.
        """
        from camhook.comparison.files import save

        return save(self, path, overwrite=overwrite)

    def __repr__(self) -> str:
        """Print as a table: a method a line, a metric a column."""
        width = max(len(name) for name in self.methods)
        heads = [f"{each} {'↑' if METRICS[each].higher_is_better else '↓'}" for each in self.metrics]
        lines = [
            f"Comparison of {len(self.methods)} methods on {len(self.images)} images, {self.model}; mean (n as given)"
        ]
        lines.append("  ".join(["".ljust(width), *heads, "s/image"]))
        for name in self.methods:
            cells = [
                _number(self.row(name, each).mean).rjust(len(head))
                for each, head in zip(self.metrics, heads, strict=True)
            ]
            lines.append("  ".join([name.ljust(width), *cells, f"{self.seconds[name]:.2f}".rjust(7)]))
        lines += [f"not possible: {name}: {reason}" for name, reason in self.failures.items()]
        return "\n".join(lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
