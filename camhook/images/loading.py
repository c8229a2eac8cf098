"""Photos of files and folders, and a DataLoader that makes batches of images of any kind, read ahead by processes."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from camhook.errors import CamhookError, ImageError
from camhook.images.geometry import Geometry
from camhook.images.preprocessing import Preprocessing
from camhook.interrupts import ignore_interrupts

__all__ = ["Batch", "ImageReader", "load_batches", "photo_files", "unique_names"]

Key = TypeVar("Key")

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_UNREADABLE = (ImageError, OSError, EOFError, SyntaxError, ValueError, struct.error)  # raised by Pillow, and by disks


@dataclass(frozen=True)
class Batch(Generic[Key]):
    """Preprocessed images, and the items that could not be read.

    Attributes
    ----------
    keys : list
        The keys of the images, in order.
    images : Tensor or None
        (B, C, H, W), preprocessed; None if none could be read.
    extras : Any
        What `ImageReader.read` gave beside each image (B entries), or what its ``collate`` made of them.
    geometries : list of Geometry or None
        Where each image lies in its photo (B entries); None for images that came as tensors.
    skipped : list of (key, str)
        The items that could not be read, each with the reason.
    """

    keys: list[Key]
    images: Tensor | None
    extras: Any
    geometries: list[Geometry | None]
    skipped: list[tuple[Key, str]]

    def __len__(self) -> int:
        return len(self.keys) + len(self.skipped)

    def pin_memory(self) -> Batch[Key]:
        """Return it with images in pinned memory; a DataLoader calls this."""
        return replace(self, images=None if self.images is None else self.images.pin_memory())


@dataclass
class ImageReader(Generic[Key]):
    """Reads and preprocesses the images of some keys; a dataset of a DataLoader, so worker processes get a copy.

    Attributes
    ----------
    read : callable
        From a key to (image, extra): a path, PIL image, uint8 array or preprocessed tensor (C, H, W), and anything that
        belongs to it (a label, say).
    preprocessing : Preprocessing or None
        For photos; None if it is not known, which only tensors can do without.
    collate : callable, optional
        From a list of what ``read`` gave to (images (B, C, H, W), extras), instead of preprocessing and stacking.

    Examples
    --------
    >>> reader = ImageReader(lambda index: (torch.zeros(3, 8, 8), "label"), None)
    >>> batch = reader.batch([4, 5])
    >>> batch.keys, batch.images.shape, batch.extras
    ([4, 5], torch.Size([2, 3, 8, 8]), ['label', 'label'])
    """

    read: Callable[[Key], Any]
    preprocessing: Preprocessing | None
    collate: Callable[[list[Any]], tuple[Any, Any]] | None = None

    def batch(self, keys: Sequence[Key]) -> Batch[Key]:
        """Read a batch in this process."""
        return self.joined([self[key] for key in keys])

    def __getitem__(self, key: Key) -> tuple[Key, Any, str | None]:
        """Return the key, what was read, and why it could not be read (None if it could)."""
        try:
            item = self.read(key)
            return key, item if self.collate else self._prepared(item), None
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())
            return key, None, reason if isinstance(error, ImageError) else f"{type(error).__name__}: {reason}"

    def joined(self, found: Sequence[tuple[Key, Any, str | None]]) -> Batch[Key]:
        """Make a batch of what `__getitem__` gave (``collate_fn`` of the DataLoader)."""
        skipped = [(key, reason) for key, _, reason in found if reason is not None]
        keys = [key for key, _, reason in found if reason is None]
        items = [item for _, item, reason in found if reason is None]
        if not items:
            return Batch([], None, [], [], skipped)
        if self.collate:
            images, extras = self.collate(items)
            if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != len(items):
                given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise CamhookError(f"The loader's collate_fn gave {given} for {len(items)} items, expected as many.")
            return Batch(keys, images, extras, [None] * len(items), skipped)
        tensors, extras, geometries = map(list, zip(*items, strict=True))
        if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
            raise CamhookError(f"Found images of different sizes, {sorted(shapes)[:3]}; make them one size.")
        return Batch(keys, torch.stack(tensors), extras, geometries, skipped)

    def _prepared(self, item: tuple[Any, Any]) -> tuple[Tensor, Any, Geometry | None]:
        image, extra = item
        if isinstance(image, Tensor):
            if image.ndim == 3:
                return image, extra, None
            raise CamhookError(f"Found a tensor {tuple(image.shape)} as an image, expected (C, H, W), preprocessed.")
        if self.preprocessing is None:
            raise CamhookError(
                "How to preprocess photos is not known for this model. Pass data_config= (and input_size=) to wrap, or "
                "data of preprocessed tensors (C, H, W)."
            )
        made = self.preprocessing([image])
        return made.tensor[0], extra, made.geometries[0]


def load_batches(
    reader: ImageReader[Key], groups: Iterable[Sequence[Key]], *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch[Key]]:
    """Yield a batch for each group of keys, in order; torch's random state is not touched.

    Parameters
    ----------
    groups
        The keys of each batch; a generator is asked for the next group only when it is to be read.
    workers
        Processes that read ahead; 0: read in this process, when a batch is asked for.
    pin_memory
        Put images into pinned memory, from which copies to a GPU run beside the computation.

    Raises
    ------
    CamhookError
        If a worker process dies.
    """
    loader: DataLoader[Any] = DataLoader(
        reader,  # type: ignore[arg-type]
        batch_sampler=groups,  # type: ignore[arg-type]
        collate_fn=reader.joined,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_interrupts if workers else None,
        generator=torch.Generator(),  # by default a DataLoader draws from torch's global generator
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
            raise
        raise CamhookError(
            f"A process that reads photos died: {error}. Was it killed, for want of memory? What is written is kept; "
            "the same command goes on. Try a smaller --workers or --batch-size."
        ) from error


def photo_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the given files, and the photos in the given folders and their subfolders, sorted.

    Raises
    ------
    ImageError
        If a folder holds no photos.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not found:
            raise ImageError(f"The folder {path} holds no photos ({', '.join(sorted(_SUFFIXES))}).")
        yield from found


def unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """Name each photo by its stem; those that share one by folder and stem, then suffix too, at last by a number.

    Examples
    --------
    >>> list(unique_names([Path("/a/cat.jpg"), Path("/b/cat.jpg"), Path("/b/dog.jpg")]).values())
    ['a-cat', 'b-cat', 'dog']
    """
    names = {file: file.stem for file in files}
    for form in ("{folder}-{stem}", "{folder}-{stem}-{kind}", "{number}-{stem}"):
        shared = Counter(names.values())
        for number, (file, name) in enumerate(list(names.items())):
            if shared[name] > 1:
                parts = {"folder": file.resolve().parent.name, "stem": file.stem, "kind": file.suffix[1:]}
                names[file] = form.format(number=number, **parts)
    return names
