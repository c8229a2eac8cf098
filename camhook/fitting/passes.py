"""The one pass over the images: counted once each, saved as it goes, the same on any number of ranks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from camhook.errors import CamhookError, ImageError
from camhook.fitting.batches import Batch
from camhook.fitting.tally import Tally
from camhook.interrupts import stop_on_signals

__all__ = ["go_through"]

_log = logging.getLogger(__name__)

_TOGETHER = 16  # batches between two exchanges of ranks
_ENOUGH = 100  # images of a stream, of unknown length, before the share of unreadable ones says something


def go_through(
    batches: Iterator[Batch | None],
    learn: Callable[[Batch], None],
    tally: Tally,
    name: Callable[[int], str],
    *,
    every: float,
    max_skipped: float,
    progress: bool,
) -> None:
    """Learn from every batch, and save as it goes.

    Parameters
    ----------
    learn
        Counts a batch in ``tally.own``.
    name
        From an image's number to what to call it.
    every
        Seconds between checkpoints; saving takes at most a twentieth of the time, whatever this says.
    max_skipped
        Share of images that may be unreadable.
    progress
        Show a bar.

    Raises
    ------
    ImageError
        More than that share could not be read.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after the batch at hand was counted and the checkpoint written; a second one at once.
    """
    ranks, saved, shown, over = tally.ranks, time.monotonic(), 0, False
    error: Exception | None = None
    bar = tqdm(
        total=tally.size,
        initial=tally.seen_before,
        unit="image",
        desc="features",
        disable=not (progress and ranks.rank == 0),
    )
    with bar, stop_on_signals(deferred=True) as interrupted:
        step, counting = 0, False
        while not over:
            step += 1
            if error is None:
                try:
                    over, batch = _next(batches)
                    if batch is not None:
                        counting = True
                        if batch.images is not None:
                            learn(batch)
                        tally.count(batch, name)
                        counting = False
                except Exception as found:
                    # Ctrl-C also ends the processes that read images, which is no failure. Other ranks would wait for
                    # this one for ever: they are told before it fails.
                    error = found
            if ranks.world > 1 and step % _TOGETHER and not over:
                continue
            due = time.monotonic() - saved >= max(every, 20 * tally.cost)
            broken = error is not None and (counting or not interrupted.is_set())
            flags = [float(broken), float(interrupted.is_set()), float(due and ranks.rank == 0)]
            failed, stopped, save, seen, skipped = ranks.summed([*flags, tally.seen, tally.skipped])
            bar.update(int(seen) - shown)
            shown = int(seen)
            if failed:
                raise error or CamhookError("Another rank failed; its own message says why.")
            if save or stopped or over:
                tally.save()
                saved = time.monotonic()
            if stopped:
                _log.warning("interrupted: %s", _advice(tally))
                raise KeyboardInterrupt
            _check_skipped(tally, int(seen), int(skipped), max_skipped, over=over)


def _next(batches: Iterator[Batch | None]) -> tuple[bool, Batch | None]:
    try:
        return False, next(batches)
    except StopIteration:
        return True, None


def _check_skipped(tally: Tally, seen: int, skipped: int, allowed: float, *, over: bool) -> None:
    """Stop as soon as it is known that too many images cannot be read; every rank must call."""
    skipped += tally.skipped_before
    total = tally.size if tally.size is not None else seen if over or seen >= _ENOUGH else 0
    if not skipped or not total or skipped <= allowed * total:
        return
    known = [*tally.base_progress.skipped.values(), *tally.progress.skipped.values()]
    first = list(dict.fromkeys(said for each in tally.ranks.gathered(known[:5]) for said in each))[:5]
    listed = "".join(f"\n  {file}: {reason}" for file, reason in first)
    raise ImageError(
        f"{skipped:,} of {total:,} images could not be read, and at most {allowed:.3g} of them may be skipped. Mend "
        f"them, or raise max_skipped. The first:{listed}"
    )


def _advice(tally: Tally) -> str:
    if tally.path is None:
        return "nothing is kept, since no checkpoint was asked for"
    return f"the same command goes on from {os.fspath(tally.path)}"
