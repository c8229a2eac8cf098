"""Images as a fit is given them: by number, as a stream, or as features from before; and what an item of them holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from camhook.errors import CamhookError

__all__ = ["ADVICE", "Indexed", "Pooled", "Source", "Stream", "is_batch", "likely_columns", "split"]

ADVICE = (
    "Pass an image folder, a torch Dataset or DataLoader, a datasets.Dataset, an iterable of (images, labels), or "
    "pooled features (N, C) with their targets"
)


@dataclass(frozen=True)
class Indexed:
    """Images by number, so that a killed fit can go on and several ranks can share them.

    Attributes
    ----------
    size : int
        How many.
    items
        Has an item for each number: an image, or an image and its label. Other processes may read it.
    name : callable
        From a number to what to call the image in a list.
    identity
        What tells these data from others, in types that JSON has.
    class_names : tuple of str
        Empty where they are not known.
    labels : Tensor, optional
        (N,) int64, where known before any image is read.
    collate : callable, optional
        From items to a batch (images, labels), where a loader has its own way.
    batch_size, num_workers : int, optional
        Of the loader.
    """

    size: int
    items: Any
    name: Callable[[int], str]
    identity: Mapping[str, Any]
    class_names: tuple[str, ...] = ()
    labels: Tensor | None = None
    columns: tuple[str, str] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    batch_size: int | None = None
    num_workers: int | None = None


@dataclass(frozen=True)
class Stream:
    """Images that come as they come: one after the other, or in batches."""

    items: Iterable[Any]
    class_names: tuple[str, ...] = ()
    columns: tuple[str, str] | None = None
    labels: None = field(default=None, init=False)
    size: None = field(default=None, init=False)

    def peeked(self) -> tuple[Any, Stream]:
        """Return the first item, and the stream with it."""
        items = iter(self.items)
        for first in items:
            return first, Stream(chain([first], items), self.class_names, self.columns)
        raise CamhookError(f"Found no images: the data are empty. {ADVICE}.")


@dataclass(frozen=True)
class Pooled:
    """Features that were pooled before, (N, C), with targets (N,) or (N, K); a weight of 0 leaves a row out."""

    features: Tensor
    targets: Tensor
    weights: Tensor
    class_names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """N."""
        return len(self.features)

    @property
    def labels(self) -> Tensor | None:
        """The labels of the rows with weight, if that is what the targets are."""
        return self.targets[self.weights > 0] if self.targets.ndim == 1 else None


Source = Indexed | Stream | Pooled


def split(item: Any, columns: tuple[str, str] | None = None) -> tuple[Any, Any]:
    """Return the image, or images, of an item, and the label or None.

    Examples
    --------
    >>> split(("a.jpg", 3)), split("b.jpg"), split({"img": "c.jpg", "label": 1})
    (('a.jpg', 3), ('b.jpg', None), ('c.jpg', 1))
    """
    if isinstance(item, Mapping):
        image, label = columns or likely_columns(item)
        if image not in item:
            raise CamhookError(f"Found items with {', '.join(map(str, item))}; pass columns=(image, label), by name.")
        return item[image], item.get(label)
    if isinstance(item, tuple | list) and len(item) == 2:
        named = isinstance(item[1], str) and not isinstance(item[0], str | os.PathLike)  # a label, refused later on
        if named or not _is_image(item[1]):
            return item[0], item[1]
    return item, None


def is_batch(item: Any) -> bool:
    """Tell whether an item of a stream holds several images."""
    images = split(item)[0]
    return images.ndim == 4 if isinstance(images, Tensor | np.ndarray) else isinstance(images, list | tuple)


def _is_image(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim >= 3
    return isinstance(value, str | os.PathLike | Image.Image)


def likely_columns(item: Mapping[Any, Any]) -> tuple[str, str]:
    """Guess the names of the image and of the label among an item's."""
    image = next((n for n in ("image", "img", "images", "pixel_values") if n in item), "image")
    return image, next((n for n in ("label", "labels", "fine_label", "target") if n in item), "label")
