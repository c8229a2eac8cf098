"""Results of a comparison: values by method and metric, bootstrap intervals, agreement of maps, and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camhook.comparison.methods import METHODS
from camhook.drawing.montage import Panel, montage
from camhook.drawing.overlay import signed_overlay
from camhook.errors import ImageError
from camhook.metrics import METRICS, rank_correlation, top_overlap
from camhook.text_tables import text_table

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Agreement", "ComparisonTable", "Row"]

_RESAMPLES = 2000
_SHARE = 0.2  # of the positions, which count as a map's highest
_SIDE = 56  # maps are averaged down to this before they are ranked


class Row(NamedTuple):
    """Mean of a metric for a method, with its 95% bootstrap interval over images."""

    method: str
    metric: str
    mean: float  # NaN where the method has no value
    low: float  # NaN where there is a single value
    high: float
    n: int  # number of images


class Agreement(NamedTuple):
    """Agreement of the maps of M methods, mean over images."""

    methods: tuple[str, ...]
    spearman: Tensor  # (M, M), Spearman's rank correlation
    overlap: Tensor  # (M, M), intersection over union of the highest 20% of the positions


@dataclass(frozen=True, eq=False, repr=False)
class ComparisonTable:
    """Attribution methods measured on the same model, images and targets.

    Attributes
    ----------
    model, explained : str
        The model's name, and how camhook reads its map.
    images, classes : tuple of str
        Name and explained class of each image.
    pictures : tuple of PIL.Image.Image
        The model's inputs.
    confidence : tuple of float
        Softmax probability of that class.
    metrics : tuple of str
        Names of the metrics.
    maps : dict of str to Tensor
        By method, (B, H, W) at the model's input, signed, in the method's own unit.
    values : dict of str to dict of str to Tensor
        By method and metric: (n,), or () for a metric of all images together.
    seconds : dict of str to float
        By method, per image.
    memory : dict of str to int or None
        By method: peak CUDA memory in bytes beyond that at the start; None on other devices, where it is not measured.
    notes, failures : dict of str
        By method: remarks, and why a method could not be applied.
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
        """Names of the methods that could be applied, controls last."""
        return tuple(self.maps)

    def renamed(self, names: Sequence[str]) -> Self:
        """Return a copy with other names of the images.

        Raises
        ------
        ImageError
            There is not one name per image.
        """
        if len(names) != len(self.images):
            raise ImageError(f"Found {len(names)} names for {len(self.images)} images, expected one per image.")
        return replace(self, images=tuple(names))

    def rows(self) -> list[Row]:
        """Return a row for each method and metric that has a value.

        The interval is a percentile bootstrap over images, of 2,000 seeded resamples.
        """
        return [self.row(name, each) for name in self.methods for each in self.metrics if each in self.values[name]]

    def row(self, method: str, metric: str) -> Row:
        """Return the mean of a metric for a method, NaN where it has no value."""
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
        """Return whether a method's mean is better than that of each control; None if there is nothing to compare.

        If it is not, the metric is no evidence for the method.
        """
        mine = self.row(method, metric).mean
        controls = [self.row(name, metric).mean for name in self.methods if METHODS[name].is_control]
        controls = [value for value in controls if not math.isnan(value)]
        if math.isnan(mine) or not controls or METHODS[method].is_control:
            return None
        return mine > max(controls) if METRICS[metric].higher_is_better else mine < min(controls)

    def best(self, metric: str) -> tuple[str, ...]:
        """Return the method with the best mean, or all that share it; controls do not count."""
        rows = [self.row(name, metric) for name in self.methods if not METHODS[name].is_control]
        rows = [row for row in rows if not math.isnan(row.mean)]
        choose = max if METRICS[metric].higher_is_better else min
        top = choose((row.mean for row in rows), default=0.0)
        return tuple(row.method for row in rows if math.isclose(row.mean, top, rel_tol=1e-6))

    @cached_property
    def agreement(self) -> Agreement:
        """Agreement of the methods' maps, averaged down to 56 x 56 positions at most."""
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
        """Return the value of full colour in a picture: the 99th percentile of the map's absolute values."""
        return float(self.maps[method][index].abs().flatten().double().quantile(0.99))

    def overlay(self, method: str, index: int) -> Image.Image:
        """Draw a map over the model's input: red for the class, blue against it."""
        return signed_overlay(self.pictures[index], self.maps[method][index].numpy(), scale=self.scale(method, index))

    def figure(self, *, limit: int = 8) -> Image.Image:
        """Draw a row for each of the first images: the model's input, then a column for each method."""
        rows = []
        for index in range(min(len(self.images), limit)):
            what = (f"{self.classes[index]}, P {self.confidence[index]:.2f}",)
            row = [Panel(self.pictures[index], self.images[index], what)]
            for name in self.methods:
                scale = f"full colour {self.scale(name, index):.2g}"
                row.append(Panel(self.overlay(name, index), METHODS[name].title, (scale,)))
            rows.append(row)
        left_out = len(self.images) - len(rows)
        footer = (
            "Red: for the class. Blue: against it. Each panel has its own scale: full colour is the 99th percentile of "
            "the map's absolute values, in the method's own unit."
        )
        footer += f" {left_out} images are not shown." if left_out else ""
        return montage(rows, cell=(200, 200), title=f"{self.model}: attribution methods compared", footer=footer)

    def __repr__(self) -> str:
        """Return a text table: a row per method, a column per metric."""
        head = [f"{each} {'↑' if METRICS[each].higher_is_better else '↓'}" for each in self.metrics]
        means = [[self.row(name, each).mean for each in self.metrics] for name in self.methods]
        rows = [
            [name, *("-" if math.isnan(mean) else f"{mean:.3g}" for mean in line), f"{self.seconds[name]:.2f}"]
            for name, line in zip(self.methods, means, strict=True)
        ]
        title = f"Comparison of {len(self.methods)} methods on {len(self.images)} images, {self.model}; means"
        failures = [f"not possible: {name}: {reason}" for name, reason in self.failures.items()]
        return "\n".join([title, text_table([["", *head, "s/image"], *rows], align="lr"), *failures])
