"""What a fit has counted so far, on one process or several, and its checkpoint."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from camhook.distributed import Ranks
from camhook.errors import CamhookError
from camhook.fitting.batches import Batch
from camhook.fitting.checkpoints import Progress, load_checkpoint, save_checkpoint
from camhook.fitting.statistics import Statistics

__all__ = ["Tally"]

_log = logging.getLogger(__name__)


class Tally:
    """What has been counted: up to the last checkpoint (``base``, on the first rank), and since then (``own``).

    In a single process the two are the same.

    Parameters
    ----------
    empty
        Makes statistics without images.
    size
        How many images there are; None for a stream.
    ranks, path, run
        The checkpoint, if any, and what makes this run what it is.

    Attributes
    ----------
    seen, seen_before, skipped, skipped_before : int
        Images of this rank in this run, and of earlier runs; and those of them that could not be read.
    """

    def __init__(
        self,
        empty: Callable[[], Statistics],
        size: int | None,
        ranks: Ranks,
        path: str | os.PathLike[str] | None,
        run: Mapping[str, Any],
    ) -> None:
        self.size, self.ranks, self.path, self.run = size, ranks, path, run
        self._empty = empty
        self.base, self.base_progress = empty(), Progress(size or 0)
        self._load()
        self.seen_before, self.skipped_before = len(self.base_progress), len(self.base_progress.skipped)
        self.started = time.monotonic()
        single = ranks.world == 1
        self.own = self.base if single else empty()
        self.progress = self.base_progress if single else Progress(size or 0)
        self.seen = self.skipped = 0
        self.cost = 0.0
        self.flush: Callable[[], None] = lambda: None  # has what the checkpoint relies on written before it

    def count(self, batch: Batch, name: Callable[[int], str]) -> None:
        """Mark a batch as done, after its statistics were made."""
        if self.size is not None:
            self.progress.add(batch.indices)
        for index, reason in batch.skipped:
            if self.size is None:
                self.progress.skipped[index] = (name(index), reason)
            else:
                self.progress.skip(index, name(index), reason)
        self.seen += len(batch)
        self.skipped += len(batch.skipped)

    def save(self) -> None:
        """Write a checkpoint; every rank must call."""
        if self.path is None:
            return
        started = time.monotonic()
        self.flush()
        if self.ranks.world > 1:
            reduced, progress = self.own.all_reduce(), self._all_progress(self.progress)
            if self.ranks.rank == 0:
                self.base.merge(reduced)
            self.base_progress.merge(progress)
            self.own, self.progress = self._empty(), Progress(self.size or 0)
        self.base_progress.seconds += time.monotonic() - self.started
        self.started = time.monotonic()
        error = ""
        if self.ranks.rank == 0:
            try:
                save_checkpoint(self.path, self.base, self.base_progress, self.run)
            except CamhookError as found:
                error = str(found)
        if error := next(filter(None, self.ranks.gathered(error)), ""):
            raise CamhookError(error)
        self.cost = time.monotonic() - started

    def total(self) -> tuple[Statistics, Progress]:
        """Return what all ranks have counted, the same on each; every rank must call."""
        self.base_progress.seconds += time.monotonic() - self.started
        if self.ranks.world == 1:
            return self.base, self.base_progress
        progress = self._all_progress(self.progress)
        self.base_progress.merge(progress)
        self.base_progress.seconds = self.ranks.gathered(self.base_progress.seconds)[0]
        self.base.merge(self.own)
        return self.base.all_reduce(), self.base_progress

    def _all_progress(self, mine: Progress) -> Progress:
        found = Progress(mine.size)
        found.bits[:] = self.ranks.sum_(torch.from_numpy(mine.bits.copy())).numpy()
        for skipped in self.ranks.gathered(mine.skipped):
            found.skipped |= skipped
        return found

    def _load(self) -> None:
        """Go on from a checkpoint; the first rank reads it."""
        if self.path is None:
            return
        found, error = None, ""
        if self.ranks.rank == 0:
            try:
                found = load_checkpoint(self.path, self.run, device=self.base.device)
            except CamhookError as refused:
                error = str(refused)
        if error := self.ranks.gathered(error)[0]:
            raise CamhookError(error)
        if found is not None:
            self.base, self.base_progress = found
        if self.ranks.world > 1:
            self.base_progress = self._all_progress(self.base_progress)
        if done := len(self.base_progress):
            _log.info("going on from %s: %s of %s images are done", os.fspath(self.path), f"{done:,}", f"{self.size:,}")
