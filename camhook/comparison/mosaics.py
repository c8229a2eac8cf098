"""Mosaics of confident images, each of another class, for the grid pointing game."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from camhook.comparison.subjects import Subject
from camhook.engine.inputs import size_of
from camhook.errors import CamhookError
from camhook.metrics.localisation import mosaics as laid_out

__all__ = ["Mosaics", "confident_mosaics"]

_CONFIDENT = 0.5  # least probability of the predicted class
_GRID = 2


@dataclass(frozen=True)
class Mosaics:
    """Mosaics, each as often as it has cells.

    Attributes
    ----------
    images : Tensor
        (N, C, H, W), the same mosaic for each of its cells.
    target, cells : Tensor
        (N,), the class of one cell, and which cell that is.
    members : tuple of tuple of int
        Which images went into each mosaic.
    """

    images: Tensor
    target: Tensor
    cells: Tensor
    members: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        height, width = size_of(self.images)
        return f"{len(self.members)} mosaics of {_GRID} x {_GRID} confident images, {height} x {width} pixels"


def confident_mosaics(
    subject: Subject, images: Tensor, labels: Tensor | None, *, limit: int = 8, size: tuple[int, int] | None = None
) -> Mosaics:
    """Lay images that the model is sure of out as 2 x 2 mosaics of different classes (Rao et al. 2022).

    Parameters
    ----------
    images
        (B, C, H, W), as the model takes them. Each is in at most one mosaic.
    labels
        The true classes, (B,): images that the model reads otherwise are left out.
    limit
        At most so many mosaics.
    size
        (height, width) of a mosaic. Default twice the images', or the images' own for a model that takes no other.

    Raises
    ------
    CamhookError
        There are too few confident images of different classes, or the model does not take mosaics of that size.
    """
    if limit < 1:
        raise CamhookError(f"Found mosaics={limit}, expected how many to make at most: 1 or more.")
    confidence, predicted = subject.logits(images).softmax(1).max(1)
    sure = confidence > _CONFIDENT
    if labels is not None:
        sure &= predicted == labels
    waiting = [i for i in confidence.argsort(descending=True).tolist() if sure[i]]
    members: list[tuple[int, ...]] = []
    while len(members) < limit:
        chosen: dict[int, int] = {}  # class to image
        for i in waiting:
            if len(chosen) < _GRID**2:
                chosen.setdefault(int(predicted[i]), i)
        if len(chosen) < _GRID**2:
            break
        members.append(tuple(chosen.values()))
        waiting = [i for i in waiting if i not in chosen.values()]
    if not members:
        classes = len({int(predicted[i]) for i in range(len(images)) if sure[i]})
        raise CamhookError(
            f"The grid pointing game needs {_GRID**2} images of different classes that the model is sure of "
            f"(P over {_CONFIDENT}{', and right' if labels is not None else ''}); found {classes} among {len(images)}. "
            "Give more images, or leave the metric out."
        )
    whole = laid_out(images[[i for each in members for i in each]], grid=_GRID)
    whole = _fitting(subject, whole, size_of(images), size)
    return Mosaics(
        images=whole.repeat_interleave(_GRID**2, 0),
        target=predicted[[i for each in members for i in each]],
        cells=torch.arange(_GRID**2).repeat(len(members)),
        members=tuple(members),
    )


def _fitting(subject: Subject, whole: Tensor, single: tuple[int, int], size: tuple[int, int] | None) -> Tensor:
    """Bring mosaics to a size that the model takes."""
    for wanted in [size] if size else [size_of(whole), single]:
        resized = whole
        if wanted != size_of(whole):
            resized = F.interpolate(whole, wanted, mode="bilinear", antialias=True, align_corners=False)
        try:
            subject.logits(resized[:1])
            subject.cam.reader.plan_for(wanted)
        except (RuntimeError, AssertionError, ValueError, CamhookError) as error:
            refusal = error
        else:
            return resized
    raise CamhookError(f"The model takes no mosaics of {size or single}: {refusal}. Pass another mosaic_size=.")
