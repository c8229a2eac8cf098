"""One rank's run over its photos: load, explain, hand over to the writers; resumable, and stopped by Ctrl-C."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice

import click
import torch
from tqdm import tqdm

from camhook.cam import CAM
from camhook.distributed import Ranks
from camhook.errors import OutputError
from camhook.folders.photos import (
    Photo,
    Selection,
    SkippedPhotos,
    is_done,
    remove_partial_files,
    with_stamp,
)
from camhook.folders.writing import Writer, WriterPool, Written, map_tensors
from camhook.images.loading import Batch, ImageReader, load_batches
from camhook.interrupts import stop_on_signals
from camhook.results.result import CAMResult

__all__ = ["explain_batches", "explain_folder", "explain_photos"]

_CAPTIONED = 100  # up to this many photos, the caption of each map is printed
_INTERRUPTED = 130  # exit status, as shells have it after Ctrl-C


def explain_folder(
    cam: CAM,
    photos: Sequence[Photo],
    selection: Selection,
    writer: Writer,
    *,
    ranks: Ranks,
    batch_size: int,
    workers: int,
) -> int:
    """Explain the photos that are not done yet and print what became of them.

    Parameters
    ----------
    photos
        Those of this rank.
    workers
        Processes that read, and as many that draw and write; 0: do all of it in this process.

    Returns
    -------
    int
        Exit status: 0, 1 if photos were skipped, 130 after Ctrl-C or SIGTERM.

    Raises
    ------
    OutputError
        If the output directory cannot be written to, or holds files of the same names that camhook did not write.
    """
    directory = writer.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The directory {directory} cannot be made: {error}. Choose another path.") from error
    remove_partial_files(directory, photos)
    skipped = SkippedPhotos(directory, ranks, overwrite=writer.overwrite)
    counts: Counter[str] = Counter()
    bar = tqdm(total=len(photos), unit="photo", disable=len(photos) < 4 or ranks.rank > 0)

    def groups() -> Iterator[list[Photo]]:
        waiting = (photo for photo in photos if not done(photo))
        while group := list(islice(waiting, batch_size)):
            yield group

    def done(photo: Photo) -> bool:
        if found := is_done(directory, photo, writer.settings):
            counts["done"] += 1
            bar.update()
        return found

    stopped = False
    try:
        with (
            bar,
            stop_on_signals(),
            WriterPool(writer, workers) as pool,
            closing(explain_photos(cam, groups(), selection, pool, workers=workers)) as outcomes,
        ):
            for written in outcomes:
                bar.update()
                if written.reason:
                    skipped.add(written.photo, written.reason)
                    continue
                counts["explained"] += 1
                for caption in written.captions if len(photos) <= _CAPTIONED else ():
                    tqdm.write(caption, file=sys.stdout)
    except KeyboardInterrupt:
        stopped = True
    finally:
        skipped.write()
    rank = f"Rank {ranks.rank} of {ranks.world}: " if ranks.world > 1 else ""
    already = f", {counts['done']} were done already" if counts["done"] else ""
    click.echo(f"{rank}Explained {counts['explained']} of {len(photos)} photos{already}; wrote to {directory}.")
    if stopped:
        click.echo("Stopped. The same command goes on from here.", err=True)
        return _INTERRUPTED
    if skipped.reasons:
        click.echo(f"Error: {skipped}", err=True)
    ranks.wait()
    return 1 if skipped.reasons else 0


def explain_photos(
    cam: CAM, groups: Iterable[Sequence[Photo]], selection: Selection, pool: WriterPool, *, workers: int
) -> Generator[Written, None, None]:
    """Yield the outcome of each photo, in the order in which they become known."""
    for batch, result in explain_batches(cam, groups, selection, workers=workers):
        yield from (Written(photo, reason=reason) for photo, reason in batch.skipped)
        if result is not None:
            yield from pool.write(result, batch.keys, batch.extras)
    yield from pool.finish()


def explain_batches(
    cam: CAM, groups: Iterable[Sequence[Photo]], selection: Selection, *, workers: int
) -> Iterator[tuple[Batch[Photo], CAMResult | None]]:
    """Yield each batch of photos with its result on the CPU, None if none of its photos could be read.

    The batch's ``extras`` are the photos' stamps. The result holds no photos: whoever draws reads them again, and
    compares stamps.
    """
    reference = next(cam.model.parameters(), torch.zeros(()))
    reader = ImageReader(with_stamp, cam.preprocessing)
    for batch in load_batches(reader, groups, workers=workers, pin_memory=reference.device.type == "cuda"):
        if batch.images is None:
            yield batch, None
            continue
        images = batch.images.to(reference.device, reference.dtype, non_blocking=True)
        result = cam(images, **selection.arguments(len(images))).renamed([photo.name for photo in batch.keys])
        yield batch, map_tensors(result, lambda t: t.cpu(), geometries=tuple(batch.geometries), photos=None)
