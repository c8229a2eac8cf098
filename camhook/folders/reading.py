"""Photos to batches, in processes of their own: read, preprocessed, with what it takes to draw on them later."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from camhook.errors import CamhookError, ImageError
from camhook.folders.photos import Photo, stamp
from camhook.images.geometry import Geometry
from camhook.images.preprocessing import Preprocessing

__all__ = ["Batch", "Reader", "batches"]


@dataclass(frozen=True)
class Batch:
    """Photos as the model takes them, (B, C, H, W), float32; and those that could not be read, with the reason.

    The photos themselves stay behind: whoever draws reads them again, and can tell by the stamps that they are the
    same.
    """

    photos: list[Photo]
    tensor: Tensor | None
    geometries: list[Geometry]
    stamps: list[dict[str, Any]]
    broken: list[tuple[Photo, str]]

    def pin_memory(self) -> Batch:
        """Return it with images that a GPU can fetch on its own; a DataLoader asks for that."""
        return replace(self, tensor=None if self.tensor is None else self.tensor.pin_memory())


class Reader:
    """Reads photos and makes batches of them, here or in a worker's process."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __getitem__(self, photo: Photo) -> tuple[Photo, Any, dict[str, Any], str]:
        """Return the photo, its tensor and geometry, its stamp from before it was read; or why it cannot be read."""
        before = stamp(photo.path)
        try:
            made = self.preprocessing([photo.path])
        except (ImageError, OSError) as error:
            return photo, None, before, " ".join(str(error).split())
        return photo, (made.tensor[0], made.geometries[0]), before, ""

    def joined(self, read: Sequence[Any]) -> Batch:
        """Make a batch of what `__getitem__` gave."""
        good = [(photo, made, before) for photo, made, before, _ in read if made is not None]
        return Batch(
            [photo for photo, _, _ in good],
            torch.stack([tensor for _, (tensor, _), _ in good]) if good else None,
            [geometry for _, (_, geometry), _ in good],
            [before for _, _, before in good],
            [(photo, reason) for photo, made, _, reason in read if made is None],
        )


def batches(
    photos: Iterable[Sequence[Photo]], preprocessing: Preprocessing, *, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Yield a batch for each group of photos, read ahead by so many processes; 0: read here, when asked for.

    Raises
    ------
    CamhookError
        If one of the processes dies.
    """
    reader = Reader(preprocessing)
    loader: DataLoader[Any] = DataLoader(
        reader,  # type: ignore[arg-type]
        batch_sampler=photos,  # type: ignore[arg-type]
        collate_fn=reader.joined,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_left_alone if workers else None,
        generator=torch.Generator(),  # else it draws from torch's own
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


def _left_alone(_: int) -> None:
    """Leave Ctrl-C to the main process, which ends this one in its turn."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
