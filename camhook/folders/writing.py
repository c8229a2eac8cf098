"""Draw and write, in processes of their own: one photo a task, and never more tasks waiting than a few."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator
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

__all__ = ["Writer", "Writers", "Written"]


@dataclass(frozen=True)
class Written:
    """What became of a photo: a caption for each map, or the reason why there are no files of it."""

    photo: Photo
    captions: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Writer:
    """Writes the files of one photo, here or in a worker's process."""

    directory: Path
    settings: dict[str, Any]
    overlays: bool
    overwrite: bool

    def __call__(self, photo: Photo, seen: dict[str, Any], packed: bytes) -> Written:
        """Read the photo once more where there is something to draw on it, and write.

        Raises
        ------
        OutputError
            If a file cannot be written: no photo would fare better.
        """
        result: CAMResult = pickle.loads(packed)
        try:
            if self.overlays:
                result = replace(result, photos=[load_photo(photo.path)])
            if stamp(photo.path) != seen:
                return Written(photo, reason="it was changed or removed while it was being explained")
            facts = {"settings": self.settings, "photo": seen}
            save_one(result, self.directory, facts=facts, overlays=self.overlays, overwrite=self.overwrite)
        except OutputError:
            raise
        except CamhookError as error:
            return Written(photo, reason=" ".join(str(error).split()))
        captions = (f"{photo.name}: {result.caption(0, position)}" for position in range(result.target.shape[1]))
        return Written(photo, tuple(captions))


class Writers:
    """So many processes that write, to be used in a ``with``; 0: what is handed over is written at once.

    Leaving the block waits for the photos that are being written, and drops those that still wait if it is left by an
    exception.
    """

    def __init__(self, writer: Writer, processes: int) -> None:
        self._writer, self._limit = writer, 4 * processes
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            self._pool = ProcessPoolExecutor(processes, initializer=_left_alone, initargs=(os.getpid(),))
        self._waiting: set[Future[Written]] = set()

    def __enter__(self) -> Writers:
        if self._pool is not None:
            self._pool.submit(int)  # starts the processes: before there is anything here that they would inherit
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def write(self, result: CAMResult, photos: list[Photo], stamps: list[dict[str, Any]]) -> Iterator[Written]:
        """Hand over a batch, one result for each photo, and yield what has been written by now, of any batch."""
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

    def rest(self) -> Iterator[Written]:
        """Wait for what is not written yet, and yield it."""
        yield from self._finished(0)

    def _finished(self, most: int) -> Iterator[Written]:
        """Yield what is written, until no more than so many tasks wait."""
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


def _packed(result: CAMResult) -> bytes:
    """Pickle a result of one image without its photo, and with no more than it takes to write it.

    As bytes, since torch would hand tensors over in shared memory, of which there is not much.
    """
    changes: dict[str, Any] = {name: value.clone() for name, value in vars(result).items() if isinstance(value, Tensor)}
    changes["class_names"] = ClassNames({c: result.class_names.label(c) for c in result.target[0].tolist()})
    changes |= {"logits": result.logits[:, :0].clone(), "photos": None}
    return pickle.dumps(replace(result, **changes))


def _left_alone(parent: int) -> None:
    """Set up a process: one thread, since there are many; Ctrl-C is the main process's; none outlives that one."""
    torch.set_num_threads(1)
    ignore_interrupts()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # killed without a chance to say so: files are whole or not there, wherever this comes

    threading.Thread(target=watch, daemon=True).start()


def _died(error: BrokenProcessPool) -> CamhookError:
    return CamhookError(
        f"A process that draws and writes died: {error} Was it killed, for want of memory? What is written is kept; "
        "the same command goes on. Try a smaller --workers."
    )
