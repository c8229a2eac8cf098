"""Inputs of the metrics: which are chosen, boxes and masks at the model's input, and mosaics for the pointing game."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from camhook.comparison.subjects import Subject
from camhook.engine.inputs import size_of
from camhook.errors import CamhookError, ImageError
from camhook.images.geometry import Geometry
from camhook.images.preprocessing import ImageBatch
from camhook.metrics import METRICS, Metric, metric
from camhook.metrics import mosaics as joined
from camhook.metrics.arguments import as_boxes, as_object_masks
from camhook.metrics.types import Boxes, Masks

__all__ = ["Mosaics", "chosen_metrics", "confident_mosaics", "ground_truth"]

_ALWAYS = ("maps", "images", "target", "model", "explain", "explainer", "cells")
_NOT_DEFAULT = (
    "road", "road_lerf", "road_morf", "infidelity", "sensitivity_max", "randomisation", "max_box_acc",
)  # fmt: skip
_CONFIDENT = 0.5  # least probability of the predicted class
_GRID = 2


def chosen_metrics(names: str | Sequence[str] | None, *, boxes: Any = None, masks: Any = None) -> list[Metric]:
    """Return the metrics of these names; for ``"all"`` and None, those that need no more boxes or masks than given.

    ``"all"`` leaves out grid_pointing_game, and None the expensive ones as well.

    Raises
    ------
    CamhookError
        A name is unknown, or a metric needs boxes or masks that are not given.
    """
    given = {"boxes": boxes, "masks": masks, **dict.fromkeys(_ALWAYS, True)}
    if names is None or names == "all":
        left_out = {"grid_pointing_game", *(_NOT_DEFAULT if names is None else ())}
        return [each for each in METRICS.values() if each.name not in left_out and not each.missing(given)]
    found = [metric(name) for name in dict.fromkeys([names] if isinstance(names, str) else names)]
    for each in found:
        if missing := each.missing(given):
            first = missing.split(" or ")[0]
            raise CamhookError(
                f"The metric {each.name!r} needs {missing}: where the object is in each image. Pass {first}=, or leave "
                "the metric out."
            )
    if not found:
        raise CamhookError("No metric was named; name at least one, or pass None for the default.")
    return found


def ground_truth(boxes: Boxes | None, masks: Masks | None, images: Tensor, batch: ImageBatch | None) -> dict[str, Any]:
    """Return boxes and masks at the model's input.

    Raises
    ------
    CamhookError
        There is not one entry per image, or all boxes of a photo lie outside the model's crop.
    """
    found: dict[str, Any] = {}
    for name, entries in (("boxes", boxes), ("masks", masks)):
        if entries is not None and (count := len(entries)) != len(images):  # type: ignore[arg-type]
            raise ImageError(f"Found {name} of {count} images for {len(images)} images, expected one entry per image.")
    if boxes is not None and batch is None:
        found["boxes"] = as_boxes(boxes, size_of(images))
    elif boxes is not None and batch is not None:
        places = zip(boxes, batch.geometries, batch.names, strict=True)
        found["boxes"] = [_at_input(each, geometry, name) for each, geometry, name in places]
    if masks is not None:
        found["masks"] = as_object_masks(masks, images[:, 0])
    return found


def _at_input(boxes: Any, geometry: Geometry, name: str) -> npt.NDArray[np.float64]:
    """Return a photo's boxes (n, 4) in pixels of the model's input."""
    (rows,) = as_boxes([boxes], geometry.photo_size)
    (down, right), (top, left), (height, width) = geometry.scale, geometry.offset, geometry.input_size
    moved = (rows * [right, down, right, down] + [left, top, left, top]).clip(0, [width, height, width, height])
    kept: npt.NDArray[np.float64] = moved[(moved[:, 2] - moved[:, 0] > 0.5) & (moved[:, 3] - moved[:, 1] > 0.5)]
    if not len(kept):
        raise ImageError(
            f"The boxes of {name} lie outside what the model sees of the photo, after resizing and cropping. Leave it "
            "out, or pass data_config= with a wider crop to wrap."
        )
    return kept


@dataclass(frozen=True)
class Mosaics:
    """Mosaics for the grid pointing game, each repeated for each of its cells."""

    images: Tensor  # (N, C, H, W)
    target: Tensor  # (N,), the class of one cell
    cells: Tensor  # (N,), that cell in row-major order
    members: tuple[tuple[int, ...], ...]  # indices of the images in each mosaic

    def __str__(self) -> str:
        height, width = size_of(self.images)
        return f"{len(self.members)} mosaics of {_GRID} x {_GRID} confident images, {height} x {width} pixels"


def confident_mosaics(
    subject: Subject, images: Tensor, labels: Tensor | None, *, limit: int = 8, size: tuple[int, int] | None = None
) -> Mosaics:
    """Join confidently classified images of different classes into 2 x 2 mosaics (Rao et al. 2022).

    Parameters
    ----------
    images : Tensor (B, C, H, W)
        Preprocessed. Each is used in at most one mosaic.
    labels : Tensor (B,) or None
        True classes: misclassified images are left out.
    limit : int
        Largest number of mosaics.
    size : (int, int), optional
        (height, width) of a mosaic. Default: twice the images', or theirs for a model that takes no other size.

    Raises
    ------
    CamhookError
        There are too few confident images of different classes, or the model does not take mosaics of that size.
    """
    if limit < 1:
        raise CamhookError(f"Found mosaics={limit}, expected the largest number of mosaics: 1 or more.")
    confidence, predicted = subject.logits(images).softmax(1).max(1)
    usable = confidence > _CONFIDENT
    if labels is not None:
        usable &= predicted == labels
    unused = [i for i in confidence.argsort(descending=True).tolist() if usable[i]]
    members: list[tuple[int, ...]] = []
    while len(members) < limit:
        chosen: dict[int, int] = {}  # class to image
        for i in unused:
            if len(chosen) < _GRID**2:
                chosen.setdefault(int(predicted[i]), i)
        if len(chosen) < _GRID**2:
            break
        members.append(tuple(chosen.values()))
        unused = [i for i in unused if i not in chosen.values()]
    if not members:
        classes = len(predicted[usable].unique())
        raise CamhookError(
            f"The grid pointing game needs {_GRID**2} images of different classes with a predicted probability over "
            f"{_CONFIDENT}{', classified correctly' if labels is not None else ''}; found {classes} among "
            f"{len(images)}. Give more images, or leave the metric out."
        )
    order = [i for each in members for i in each]
    whole = _resized(subject, joined(images[order], grid=_GRID), size_of(images), size)
    return Mosaics(
        images=whole.repeat_interleave(_GRID**2, 0),
        target=predicted[order],
        cells=torch.arange(_GRID**2).repeat(len(members)),
        members=tuple(members),
    )


def _resized(subject: Subject, whole: Tensor, single: tuple[int, int], size: tuple[int, int] | None) -> Tensor:
    """Resize mosaics to the first size that the model takes."""
    for wanted in [size] if size else [size_of(whole), single]:
        resized = whole
        if wanted != size_of(whole):
            resized = F.interpolate(whole, wanted, mode="bilinear", antialias=True, align_corners=False)
        try:
            subject.logits(resized[:1])
            subject.grid_size(wanted)
        except (RuntimeError, AssertionError, ValueError, CamhookError) as error:
            refusal = error
        else:
            return resized
    raise CamhookError(f"The model takes no mosaics of {size or single}: {refusal}. Pass another mosaic_size=.")
