"""Batches of preprocessed images and labels, read from indexed data or a stream and shared between ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from camhook.distributed import Ranks
from camhook.errors import CamhookError
from camhook.images.loading import Batch, ImageReader, load_batches
from camhook.images.preprocessing import Preprocessing

__all__ = ["ADVICE", "Images", "first_batch", "is_batch", "labels_of", "likely_columns", "rank_batches", "split"]

ADVICE = (
    "Pass an image folder, a torch Dataset or DataLoader, a datasets.Dataset, an iterable of (images, labels), or "
    "pooled features (N, C) with their targets"
)
_TRIES = 1000  # images looked at for a first that can be read
_PART = 2**20  # image numbers listed at a time: there may be a billion


@dataclass(frozen=True)
class Images:
    """Images by number, so that a killed fit can go on and ranks can share them; or a stream, in the order they come.

    Attributes
    ----------
    items
        ``items[index]`` is an image, or an image and its label, also in worker processes. Of a stream, which is only
        iterable, an item may also be a batch.
    size : int, optional
        Number of images N; None for a stream.
    identity : mapping
        What distinguishes these data from others, in types that JSON has.
    name : callable
        From a number to what to call the image in a list.
    class_names, labels
        Empty if they are not known; (N,) int64 or (N, K), if known before any image is read.
    columns : (str, str), optional
        Names of image and label, where items are dictionaries.
    collate, batch_size, num_workers
        Of a loader; ``collate`` makes a batch (images, labels) of items.
    """

    items: Any
    size: int | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    name: Callable[[int], str] = "image {}".format
    class_names: tuple[str, ...] = ()
    labels: Tensor | None = None
    columns: tuple[str, str] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    batch_size: int | None = None
    num_workers: int | None = None


def rank_batches(
    source: Images,
    done: npt.NDArray[np.bool_],
    preprocessing: Preprocessing | None,
    ranks: Ranks,
    *,
    batch_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch[int] | None]:
    """Yield this rank's batches of the images that are not done (N,); None where only other ranks have one left.

    Every rank gets as many, no image twice. Images of a stream are numbered as they come.
    """
    if source.size is None:
        yield from _streamed(source, preprocessing, ranks, batch_size)
        return
    left = len(done) - int(done.sum())
    groups = _groups(done, batch_size, ranks)
    reader = _reader(source, preprocessing)
    mine = iter(load_batches(reader, groups, workers=num_workers, pin_memory=pin_memory))
    for _ in range(math.ceil(math.ceil(left / ranks.world) / batch_size)):
        yield next(mine, None)


def first_batch(source: Images, preprocessing: Preprocessing | None) -> tuple[Batch[int], Images]:
    """Return the first image that can be read, as a batch of one, and the data to fit on.

    Raises
    ------
    CamhookError
        If none can be read.
    """
    if source.size is None:
        items = iter(source.items)
        for first in items:
            item = _unbatched(first, source.columns)[0] if is_batch(first) else first
            batch = ImageReader(partial(_read, [item], source.columns), preprocessing).batch([0])
            return batch, replace(source, items=chain([first], items))
        raise CamhookError(f"Found no images: the data are empty. {ADVICE}.")
    reader, reason = _reader(source, preprocessing), ""
    for index in range(min(source.size, _TRIES)):
        batch = reader.batch([index])
        if batch.images is not None:
            return batch, source
        reason = reason or batch.skipped[0][1]
    tried = "none" if source.size <= _TRIES else f"none of the first {_TRIES}"
    raise CamhookError(f"Found {source.size} images and {tried} of them could be read. The first: {reason}")


def labels_of(batch: Batch[int]) -> Tensor | None:
    """Return the labels (B,) or (B, K) of a batch, or None if its images have none.

    Raises
    ------
    CamhookError
        If only some have one, or they are not numbers, as many for each image.
    """
    labels = batch.extras
    if labels is None or isinstance(labels, Tensor):
        return labels
    missing = sum(label is None for label in labels)
    if missing == len(labels):
        return None
    if missing:
        raise CamhookError(f"Found {missing} images without a label among {len(labels)}; give each one, or none.")
    try:
        return torch.as_tensor(np.stack([np.asarray(label) for label in labels]))
    except (TypeError, ValueError) as error:
        raise CamhookError(
            f"Found labels {labels[0]!r}, ... that are not numbers, or not as many for each image. Pass a class number "
            "per image, or 0 or 1 for each class."
        ) from error


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
    """Return whether an item of a stream holds several images."""
    images = split(item)[0]
    return images.ndim == 4 if isinstance(images, Tensor | np.ndarray) else isinstance(images, list | tuple)


def _is_image(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim >= 3
    return isinstance(value, str | os.PathLike | Image.Image)


def likely_columns(item: Mapping[Any, Any]) -> tuple[str, str]:
    """Return the probable names of the image and of the label among an item's."""
    image = next((n for n in ("image", "img", "images", "pixel_values") if n in item), "image")
    return image, next((n for n in ("label", "labels", "fine_label", "target") if n in item), "label")


def _reader(source: Images, preprocessing: Preprocessing | None) -> ImageReader[int]:
    if source.collate is None:
        return ImageReader(partial(_read, source.items, source.columns), preprocessing)
    return ImageReader(source.items.__getitem__, preprocessing, partial(_collated, source.collate, source.columns))


def _read(items: Any, columns: tuple[str, str] | None, index: int) -> tuple[Any, Any]:
    return split(items[index], columns)


def _collated(
    collate: Callable[[list[Any]], Any], columns: tuple[str, str] | None, items: list[Any]
) -> tuple[Any, Any]:
    return split(collate(items), columns)


def _groups(done: npt.NDArray[np.bool_], batch_size: int, ranks: Ranks) -> Iterator[list[int]]:
    """Yield the numbers of every world-th image that is not done, a batch at a time."""
    done = done.copy()  # as it is now: batches are read ahead of the fit
    waiting: list[int] = []
    offset = ranks.rank
    for start in range(0, len(done), _PART):
        part = np.flatnonzero(~done[start : start + _PART]) + start
        waiting += part[offset :: ranks.world].tolist()
        offset = (offset - len(part)) % ranks.world
        whole = len(waiting) - len(waiting) % batch_size
        for first in range(0, whole, batch_size):
            yield waiting[first : first + batch_size]
        waiting = waiting[whole:]
    if waiting:
        yield waiting


def _streamed(
    source: Images, preprocessing: Preprocessing | None, ranks: Ranks, batch_size: int
) -> Iterator[Batch[int] | None]:
    """Yield every world-th batch of a stream, its images numbered: every rank goes through the whole stream."""
    numbers = count()
    groups = ({next(numbers): item for item in items} for items in _batched(source, batch_size))
    while window := list(islice(groups, ranks.world)):
        mine = window[ranks.rank] if ranks.rank < len(window) else None
        reader = None if mine is None else ImageReader(partial(_read, mine, source.columns), preprocessing)
        yield None if reader is None or mine is None else reader.batch(list(mine))


def _batched(source: Images, batch_size: int) -> Iterator[list[Any]]:
    """Yield the items of a stream in lists: its own batches, or single items gathered."""
    waiting: list[Any] = []
    for item in source.items:
        if is_batch(item):
            yield _unbatched(item, source.columns)
            continue
        waiting.append(item)
        if len(waiting) == batch_size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _unbatched(item: Any, columns: tuple[str, str] | None) -> list[Any]:
    images, labels = split(item, columns)
    if labels is None:
        return list(images)
    if len(images) != len(labels):
        raise CamhookError(f"Found a batch of {len(images)} images and {len(labels)} labels; give each its own.")
    return list(zip(images, labels, strict=True))
