"""From photos to files: read ahead, explain a batch, hand it over to be drawn and written."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from camhook.cam import CAM
from camhook.folders.photos import Photo, with_stamp
from camhook.folders.writing import Writers, Written
from camhook.images.loading import ImageReader, load_batches
from camhook.results.result import CAMResult

__all__ = ["Question", "explain_photos", "results"]


@dataclass(frozen=True)
class Question:
    """Which maps are asked for: some classes by index or name, or the highest; against their rivals or not."""

    targets: Sequence[int | str] | None = None
    topk: int | None = None
    rivals: bool = False

    def ask(self, cam: CAM, tensor: Tensor) -> CAMResult:
        """Explain preprocessed images (B, C, H, W)."""
        targets = None if self.targets is None else [list(self.targets)] * len(tensor)
        return cam(tensor, targets, topk=self.topk, contrast="rivals" if self.rivals else None)


def results(
    cam: CAM, photos: Iterable[Sequence[Photo]], question: Question, *, workers: int
) -> Iterator[tuple[CAMResult | None, list[Photo], list[dict[str, Any]], list[tuple[Photo, str]]]]:
    """Yield a result on the CPU for each group of photos, with the photos it is of, their stamps, and broken ones."""
    assert cam.preprocessing is not None
    reference = next(cam.model.parameters(), torch.zeros(()))
    pinned = reference.device.type == "cuda"
    reader = ImageReader(with_stamp, cam.preprocessing)
    for batch in load_batches(reader, photos, workers=workers, pin_memory=pinned):
        if batch.images is None:
            yield None, [], [], batch.skipped
            continue
        tensor = batch.images.to(reference.device, reference.dtype, non_blocking=True)
        found = question.ask(cam, tensor).renamed([photo.name for photo in batch.keys])
        values = {name: value.cpu() for name, value in vars(found).items() if isinstance(value, Tensor)}
        found = replace(found, **values, geometries=tuple(batch.geometries), photos=None)  # type: ignore[arg-type]
        yield found, batch.keys, batch.extras, batch.skipped


def explain_photos(
    cam: CAM, photos: Iterable[Sequence[Photo]], question: Question, writers: Writers, *, workers: int
) -> Generator[Written, None, None]:
    """Yield what became of each photo, as it becomes known."""
    for result, good, stamps, broken in results(cam, photos, question, workers=workers):
        yield from (Written(photo, reason=reason) for photo, reason in broken)
        if result is not None:
            yield from writers.write(result, good, stamps)
    yield from writers.rest()
