"""One epoch over the images: a frozen feature extractor's pooled features as rows, each image once, on any ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from camhook.distributed import Ranks
from camhook.errors import CamhookError, ImageError
from camhook.fitting.batches import Images, labels_of
from camhook.fitting.rows import Rows
from camhook.fitting.shards import FeatureStore
from camhook.images.loading import Batch
from camhook.images.preprocessing import Preprocessing
from camhook.interrupts import stop_on_signals
from camhook.targets import ClassNames

__all__ = ["FeatureExtractor", "FeatureFacts", "extract_rows", "run_epoch"]

_log = logging.getLogger(__name__)

_TOGETHER = 16  # batches between two exchanges of ranks
_ENOUGH = 100  # images of a stream, of unknown length, before the share of unreadable ones says something
_LARGEST = 64 * 2**20  # bytes of features that wait before they are written as a shard


class FeatureFacts(Protocol):
    """What a probe is fitted on: fields as in `camhook.fitting.probe.ProbeInfo`, the precision of autocast, and sizes.

    ``num_logits`` and ``head_parameters`` (what the model uses after the features) are None without a head.
    """

    model: str
    target_layer: str
    layout: str
    pooling: str
    fingerprint: str
    precision: str
    preprocessing: Mapping[str, Any]
    num_features: int
    num_logits: int | None
    head_parameters: int | None
    class_names: ClassNames


class FeatureExtractor(Protocol):
    """A frozen model as a fit sees it."""

    device: torch.device
    preprocessing: Preprocessing | None

    def facts(self, size: Sequence[int] | None) -> FeatureFacts:
        """Return what is extracted from images of that (height, width), without running the model; None: its own."""

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return pooled features (B, C) and logits (B, K), None without a head, of images (B, C_in, H, W)."""


def extract_rows(extractor: FeatureExtractor, batch: Batch[int], targets: Literal["labels", "logits"]) -> Rows:
    """Return a batch as rows, whose targets are its labels or the model's logits.

    Raises
    ------
    CamhookError
        If an image has no label.
    """
    assert batch.images is not None
    features, logits = extractor.extract(batch.images)
    labels = labels_of(batch)
    top = None if logits is None else logits.argmax(1)
    if targets == "logits":
        assert logits is not None
        single = labels is not None and labels.ndim == 1 and not labels.is_floating_point()
        known = labels.to(features.device) if labels is not None and single else None
        return Rows.of(batch.keys, features, logits, labels=known, predictions=top)
    if labels is None:
        raise CamhookError(f"Found no label for image {batch.keys[0]}; give each image one.")
    return Rows.of(batch.keys, features, labels.to(features.device), predictions=top)


_END: Final = Batch[int]([], None, None, [], [])


def run_epoch(
    batches: Iterator[Batch[int] | None],
    consume: Callable[[Batch[int]], None],
    store: FeatureStore,
    ranks: Ranks,
    source: Images,
    *,
    done: int,
    every: float,
    max_skipped: float,
    progress: bool,
) -> None:
    """Consume every batch, and have the store write its rows as it goes; every rank must call.

    Parameters
    ----------
    consume
        Takes a batch with images.
    source, done : Images, int
        What the batches are of, and how many images are done already.
    every : float
        Seconds between two shards; a shard is also written once it is large.
    max_skipped, progress : float, bool
        Share of images that may be unreadable; whether to show a progress bar.

    Raises
    ------
    ImageError
        If more than that share could not be read.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after the batch at hand was consumed and a shard written; a second one at once.
    """
    skipped_before, quiet = len(store.skipped), not (progress and ranks.rank == 0)
    error, over, step, own, shown, saved = None, False, 0, 0, 0, time.monotonic()
    bar = tqdm(total=source.size, initial=done, unit="image", desc="features", disable=quiet)
    with bar, stop_on_signals(deferred=True) as interrupted:
        while not over:
            step += 1
            if error is None:
                try:
                    if (batch := next(batches, _END)) is _END:
                        over = True
                    elif batch is not None:
                        if batch.images is not None:
                            consume(batch)
                        for index, reason in batch.skipped:
                            store.skip(index, source.name(index), reason)
                        own += len(batch)
                    waited = time.monotonic() - saved
                    if over or interrupted.is_set() or waited >= every or store.waiting >= _LARGEST:
                        store.flush(waited)
                        saved += waited
                except Exception as found:  # raised below, once other ranks, which would wait for this one, know
                    error = found
            if ranks.world > 1 and step % _TOGETHER and not over:
                continue
            # Signals end the processes that read images too, which is no failure of its own.
            flags = [float(error is not None and not interrupted.is_set()), float(interrupted.is_set())]
            failed, stopped, seen, skipped = ranks.summed([*flags, own, len(store.skipped) - skipped_before])
            bar.update(int(seen) - shown)
            shown = int(seen)
            if failed:
                raise error or CamhookError("Another rank failed; its own message says why.")
            if stopped:
                store.flush(time.monotonic() - saved)
                kept = f"the same command goes on from {store.folder}" if store.folder else "nothing is kept"
                _log.warning("interrupted: %s", kept)
                raise KeyboardInterrupt
            total = source.size if source.size is not None else shown if over or shown >= _ENOUGH else 0
            _check_skipped(store, ranks, skipped_before + int(skipped), total, max_skipped)


def _check_skipped(store: FeatureStore, ranks: Ranks, skipped: int, total: int, allowed: float) -> None:
    """Raise as soon as it is known that too many images cannot be read; every rank must call."""
    if not skipped or not total or skipped <= allowed * total:
        return
    known = ranks.gathered(list(store.skipped.values())[:5])
    first = list(dict.fromkeys(entry for each in known for entry in each))[:5]
    listed = "".join(f"\n  {file}: {reason}" for file, reason in first)
    raise ImageError(
        f"{skipped:,} of {total:,} images could not be read, and at most {allowed:.3g} of them may be skipped. Mend "
        f"them, or raise max_skipped. The first:{listed}"
    )
