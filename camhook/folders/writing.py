"""Drawing and writing of results in worker processes, one photo a task, with a bounded queue."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from camhook.errors import CamhookError, OutputError
from camhook.folders.photos import Photo, stamp
from camhook.images.photos import load_photo
from camhook.interrupts import ignore_interrupts
from camhook.results.result import CAMResult
from camhook.results.saving import save_one
from camhook.targets import ClassNames

__all__ = ["Writer", "WriterPool", "Written", "map_tensors"]


@dataclass(frozen=True)
class Written:
    """The outcome of a photo: a caption for each map, or the reason why it has no files."""

    photo: Photo
    captions: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Writer:
    """Writes the files of one photo, in this process or in a worker.

    Attributes
    ----------
    directory : Path
        Where to, an existing directory.
    settings : dict
        What the manifests hold of the run; see `settings_of`.
    overlays : bool
        Draw, or write raw maps and manifests only.
    overwrite : bool
        Replace files that camhook did not write.
    """

    directory: Path
    settings: dict[str, Any]
    overlays: bool
    overwrite: bool

    def __call__(self, photo: Photo, seen: dict[str, Any], packed: bytes) -> Written:
        """Write the files of a photo, which is read again if there is something to draw on it.

        Parameters
        ----------
        seen
            The photo's stamp from before it was explained.
        packed
            Its result, pickled.

        Raises
        ------
        OutputError
            If a file cannot be written: it would be the same with other photos.
        """
        result: CAMResult = pickle.loads(packed)
        try:
            if self.overlays:
                result = replace(result, photos=[load_photo(photo.path)])
            if stamp(photo.path) != seen:
                return Written(photo, reason="it was changed or removed while it was being explained")
            facts = {"settings": self.settings, "photo": seen}
            save_one(result.files(overlays=self.overlays), self.directory, facts=facts, overwrite=self.overwrite)
        except OutputError:
            raise
        except CamhookError as error:
            return Written(photo, reason=" ".join(str(error).split()))
        captions = (f"{photo.name}: {result.caption(0, position)}" for position in range(result.target.shape[1]))
        return Written(photo, tuple(captions))


class WriterPool:
    """A context manager with this many processes that write; with 0, `write` writes at once, in this process.

    Leaving the block waits for the photos that are being written, and drops those that still wait.
    """

    def __init__(self, writer: Writer, processes: int) -> None:
        self._writer, self._limit = writer, 4 * processes
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            self._pool = ProcessPoolExecutor(processes, initializer=_start_worker, initargs=(os.getpid(),))
        self._waiting: set[Future[Written]] = set()

    def __enter__(self) -> WriterPool:
        if self._pool is not None:
            self._pool.submit(int)  # starts the processes now, before the DataLoader's, which they must not inherit
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def write(self, result: CAMResult, photos: Sequence[Photo], stamps: Sequence[dict[str, Any]]) -> Iterator[Written]:
        """Queue the results of a batch, and yield the photos of any batch that have been written meanwhile."""
        for index, (photo, seen) in enumerate(zip(photos, stamps, strict=True)):
            task = photo, seen, _packed(result[index])
            if self._pool is None:
                yield self._writer(*task)
                continue
            yield from self._finished(self._limit - 1)
            try:
                self._waiting.add(self._pool.submit(self._writer, *task))
            except BrokenProcessPool as error:
                raise _died(error) from error

    def finish(self) -> Iterator[Written]:
        """Wait for the photos that are not written yet, and yield them."""
        yield from self._finished(0)

    def _finished(self, most: int) -> Iterator[Written]:
        """Yield what is written, until at most this many tasks wait."""
        while self._waiting:
            timeout = None if len(self._waiting) > most else 0
            done, self._waiting = wait(self._waiting, timeout, FIRST_COMPLETED)
            for future in done:
                try:
                    yield future.result()
                except BrokenProcessPool as error:
                    raise _died(error) from error
            if not done:
                return


def map_tensors(result: CAMResult, function: Callable[[Tensor], Tensor], **changes: Any) -> CAMResult:
    """Return a result with a function applied to each of its tensors, and with other fields changed."""
    tensors = {name: function(value) for name, value in vars(result).items() if isinstance(value, Tensor)}
    return replace(result, **{**tensors, **changes})


def _packed(result: CAMResult) -> bytes:
    """Pickle a result of one image, reduced to what is written: no photo, no logits, the names of its own classes.

    As bytes, since torch would pass tensors to another process in shared memory, which is scarce in containers.
    """
    names = ClassNames({c: result.class_names.label(c) for c in result.target[0].tolist()})
    reduced = replace(result, class_names=names, logits=result.logits[:, :0], photos=None)
    return pickle.dumps(map_tensors(reduced, torch.clone))  # a view would be pickled with its whole storage


def _start_worker(parent: int) -> None:
    """Set up a worker: one thread, since there are many workers; no Ctrl-C; an end when the parent is gone."""
    torch.set_num_threads(1)
    ignore_interrupts()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # the parent was killed; files are replaced atomically, so that this may come at any moment

    threading.Thread(target=watch, daemon=True).start()


def _died(error: BrokenProcessPool) -> CamhookError:
    return CamhookError(
        f"A process that draws and writes died: {error} Was it killed, for want of memory? What is written is kept; "
        "the same command goes on. Try a smaller --workers."
    )
