"""From data to batches that a model takes: read, preprocessed, numbered, shared between ranks."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from camhook.errors import CamhookError, ImageError
from camhook.fitting.checkpoints import Progress
from camhook.fitting.items import Pooled, Source, Stream, is_batch, split
from camhook.images.preprocessing import Preprocessing

__all__ = ["Batch", "batches", "first_of"]

_UNREADABLE = (ImageError, OSError, EOFError, SyntaxError, ValueError, struct.error)  # by Pillow, and by disks
_ROWS = 4096  # of pooled features in a batch
_TRIES = 1000  # images looked at for a first that can be read


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W), or pooled features (B, C), and labels (B,) or (B, K), ready for the model.

    Those that could not be read are in ``skipped``, as (index, reason).
    """

    indices: list[int]
    images: Tensor | None
    labels: Tensor | None
    skipped: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.indices) + len(self.skipped)

    def pin_memory(self) -> Batch:
        """Return it with images that a GPU can fetch on its own; a DataLoader asks for that."""
        return replace(self, images=None if self.images is None else self.images.pin_memory())


@dataclass
class Reader:
    """Reads items and makes batches of them, here or in a worker's process."""

    items: Any
    preprocessing: Preprocessing | None
    columns: tuple[str, str] | None = None
    collate: Any = None

    def __getitem__(self, index: int) -> Any:
        """Return the number, and the item with its image read, or why that failed."""
        try:
            item = self.items[index]
            return index, item if self.collate else self.prepared(item), None
        except _UNREADABLE as error:
            return index, None, _reason(error)

    def prepared(self, item: Any) -> tuple[Tensor, Any]:
        """Return the image as the model takes it, and its label."""
        image, label = split(item, self.columns)
        if isinstance(image, Tensor):
            if image.ndim == 3:
                return image, label
            raise CamhookError(f"Found a tensor {tuple(image.shape)} as an image, expected (C, H, W), preprocessed.")
        if self.preprocessing is None:
            raise CamhookError(
                "How to preprocess photos is not known for this model. Pass data_config= (and input_size=) to wrap, or "
                "data of preprocessed tensors (C, H, W)."
            )
        return self.preprocessing([image]).tensor[0], label

    def joined(self, read: Sequence[Any]) -> Batch:
        """Make a batch of what `__getitem__` gave."""
        skipped = tuple((index, reason) for index, _, reason in read if reason is not None)
        indices = [index for index, _, reason in read if reason is None]
        items = [item for _, item, reason in read if reason is None]
        if not items:
            return Batch([], None, None, skipped)
        if self.collate:
            images, labels = split(self.collate(items), self.columns)
            if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != len(items):
                found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise CamhookError(f"The loader's collate_fn gave {found} for {len(items)} items, expected as many.")
            return Batch(indices, images, None if labels is None else _whole(labels), skipped)
        shapes = {tuple(image.shape) for image, _ in items}
        if len(shapes) > 1:
            raise CamhookError(f"Found images of different sizes, {sorted(shapes)[:3]}; make them one size.")
        return Batch(indices, torch.stack([image for image, _ in items]), _labels([y for _, y in items]), skipped)


def batches(
    source: Source,
    progress: Progress,
    preprocessing: Preprocessing | None,
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch | None]:
    """Yield this rank's batches of what is not done, with None where only other ranks still have one.

    Every rank is given as many. Nothing is padded, so that no image comes twice.
    """
    if isinstance(source, Stream):
        yield from _streamed(source, preprocessing, batch_size, rank, world)
        return
    rows = _ROWS if isinstance(source, Pooled) else batch_size
    steps = math.ceil(math.ceil((progress.size - len(progress)) / world) / rows)
    mine: Iterator[Any] = _shared(progress, rows, rank, world)
    if isinstance(source, Pooled):
        mine = (_pooled(source, indices) for indices in mine)
    else:
        reader = Reader(source.items, preprocessing, source.columns, source.collate)
        mine = iter(
            DataLoader(
                reader,  # type: ignore[arg-type]
                batch_sampler=mine,
                collate_fn=reader.joined,
                num_workers=num_workers,
                pin_memory=pin_memory,
                generator=torch.Generator(),  # else it draws from torch's own
            )
        )
    for _ in range(steps):
        yield next(mine, None)


def first_of(source: Source, preprocessing: Preprocessing | None) -> tuple[Batch, Source]:
    """Return the first image that can be read, as a batch of one, and the data to fit on.

    Raises
    ------
    CamhookError
        None could be read.
    """
    if isinstance(source, Pooled):
        return _pooled(source, [0]), source
    if isinstance(source, Stream):
        first, source = source.peeked()
        item = _unbatched(first, source.columns)[0] if is_batch(first) else first
        read = [Reader([item], preprocessing, source.columns)[0]]
        return Reader([], None).joined(read), source
    reader, said = Reader(source.items, preprocessing, source.columns, source.collate), ""
    for index in range(min(source.size, _TRIES)):
        batch = reader.joined([reader[index]])
        if batch.images is not None:
            return batch, source
        said = said or batch.skipped[0][1]
    tried = "none" if source.size <= _TRIES else f"none of the first {_TRIES}"
    raise CamhookError(f"Found {source.size} images and {tried} of them could be read. The first: {said}")


def _shared(progress: Progress, rows: int, rank: int, world: int) -> Iterator[list[int]]:
    """Yield the numbers of every world-th image that is not done, a batch at a time."""
    start = Progress(progress.size)  # as it is now: batches are read ahead of the fit
    start.bits = progress.bits.copy()
    waiting: list[int] = []
    offset = rank
    for part in start.parts():
        waiting += part[offset::world].tolist()
        offset = (offset - len(part)) % world
        whole = len(waiting) - len(waiting) % rows
        for first in range(0, whole, rows):
            yield waiting[first : first + rows]
        waiting = waiting[whole:]
    if waiting:
        yield waiting


def _pooled(source: Pooled, indices: list[int]) -> Batch:
    return Batch(indices, source.features[indices], source.targets[indices])


def _streamed(
    source: Stream, preprocessing: Preprocessing | None, batch_size: int, rank: int, world: int
) -> Iterator[Batch | None]:
    """Yield every world-th batch of a stream, its images numbered: every rank goes through the whole stream."""
    mine, last, start = None, world - 1, 0
    for number, items in enumerate(_groups(source, batch_size)):
        last = number % world
        if last == rank:
            reader = Reader(items, preprocessing, source.columns)
            read = [reader[index] for index in range(len(items))]
            mine = reader.joined([(start + index, item, reason) for index, item, reason in read])
        start += len(items)
        if last == world - 1:
            yield mine
            mine = None
    if last != world - 1:
        yield mine


def _groups(source: Stream, batch_size: int) -> Iterator[list[Any]]:
    """Yield the items of a stream in lists: its own batches, or so many single items."""
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


def _labels(labels: Sequence[Any]) -> Tensor | None:
    missing = sum(label is None for label in labels)
    if missing == len(labels):
        return None
    if missing:
        raise CamhookError(f"Found {missing} images without a label among {len(labels)}; give each one, or none.")
    return _whole(labels)


def _whole(labels: Any) -> Tensor:
    if isinstance(labels, Tensor):
        return labels
    try:
        return torch.as_tensor(np.stack([np.asarray(label) for label in labels]))
    except (TypeError, ValueError) as error:
        raise CamhookError(
            f"Found labels {labels[0]!r}, ... that are no numbers, or not as many for each image. Pass a class number "
            "an image, or 0 or 1 for each class."
        ) from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ImageError) else f"{type(error).__name__}: {text}"
