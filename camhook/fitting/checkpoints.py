"""Where a fit stands, saved so that a killed run goes on without counting an image twice or losing one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.errors import CamhookError
from camhook.fitting.files import read_tensors, write_tensors
from camhook.fitting.statistics import Statistics

__all__ = ["Progress", "load_checkpoint", "save_checkpoint"]

_KIND = "camhook checkpoint 1"
_PART = 2**20  # images, a multiple of 8
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)  # in each byte


class Progress:
    """Which images of an indexed data set are done, one bit each, and which of them were skipped.

    Parameters
    ----------
    size : int
        How many images the data has.

    Attributes
    ----------
    skipped : dict
        (file, reason) by index.
    seconds : float
        How long that took, for a rate.

    Examples
    --------
    >>> progress = Progress(5)
    >>> progress.add([0, 3])
    >>> progress.skip(1, "b.jpg", "truncated")
    >>> progress.remaining().tolist(), len(progress)
    ([2, 4], 3)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.bits = np.zeros((size + 7) // 8, dtype=np.uint8)
        self.skipped: dict[int, tuple[str, str]] = {}
        self.seconds = 0.0

    def __len__(self) -> int:
        return int(_ONES[self.bits].sum(dtype=np.int64))

    def add(self, indices: npt.ArrayLike | Tensor) -> None:
        """Mark images (B,) as done.

        Raises
        ------
        CamhookError
            One is done already, or the data has no such image; nothing is marked then.
        """
        index = np.asarray(indices, dtype=np.int64).reshape(-1)
        if ((index < 0) | (index >= self.size)).any():
            raise CamhookError(f"Found image {index.max() if index.min() >= 0 else index.min()} of {self.size} images.")
        byte, bit = index >> 3, (1 << (index & 7)).astype(np.uint8)
        if (self.bits[byte] & bit).any() or len(np.unique(index)) < len(index):
            raise CamhookError("An image was done twice; number the images of the data, each once.")
        np.bitwise_or.at(self.bits, byte, bit)

    def skip(self, index: int, file: str, reason: str) -> None:
        """Mark an image as done that could not be used."""
        self.add([index])
        self.skipped[index] = (file, reason)

    def remaining(self) -> npt.NDArray[np.int64]:
        """Return the images that are not done, in order."""
        return np.concatenate([np.zeros(0, np.int64), *self.parts()])

    def parts(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the images that are not done, in order, a part of the data at a time: there may be a billion."""
        for start in range(0, self.size, _PART):
            part = self.bits[start // 8 : (start + _PART) // 8]
            done = np.unpackbits(part, count=min(_PART, self.size - start), bitorder="little")
            yield np.flatnonzero(done == 0).astype(np.int64) + start

    def merge(self, other: Progress) -> None:
        """Take over what another rank has done.

        Raises
        ------
        CamhookError
            The two are of different data, or both have done an image.
        """
        if self.size != other.size:
            raise CamhookError(f"Found progress over {other.size} images, expected {self.size}: it is of other data.")
        if (self.bits & other.bits).any():
            raise CamhookError("An image was done twice; give every rank its own images.")
        self.bits |= other.bits
        self.skipped |= other.skipped


def save_checkpoint(
    path: str | os.PathLike[str], statistics: Statistics, progress: Progress, run: Mapping[str, Any]
) -> None:
    """Write statistics and progress as one file, in one step; the earlier one stays until then.

    Parameters
    ----------
    run
        What makes this run what it is (model, fingerprint, data, options), in types that JSON has: only a run that says
        the same goes on from the file.

    Raises
    ------
    OutputError
        The path cannot be written to.
    CamhookError
        Features that wait to be summed up are not finite.
    """
    skipped = [[index, *said] for index, said in progress.skipped.items()]
    facts = {"run": run, "statistics": statistics.settings, "size": progress.size}
    facts |= {"skipped": skipped, "seconds": progress.seconds}
    write_tensors(path, _KIND, {**statistics.state_dict(), "done": torch.from_numpy(progress.bits)}, facts)


def load_checkpoint(
    path: str | os.PathLike[str], run: Mapping[str, Any], *, device: torch.device | str = "cpu"
) -> tuple[Statistics, Progress] | None:
    """Return where an earlier run stood, or None where there is no file.

    Raises
    ------
    CamhookError
        The file is broken, is none of camhook's checkpoints, or is of another run: what differs is listed.
    """
    if not Path(path).exists():
        return None
    tensors, facts = read_tensors(path, _KIND)
    run = json.loads(json.dumps(run))  # as it was written: JSON has no tuples
    differing = [
        f"{name}: {facts['run'].get(name)!r} then, {run.get(name)!r} now"
        for name in sorted({*facts["run"], *run})
        if facts["run"].get(name) != run.get(name)
    ]
    if differing:
        advice = "Run the earlier command again, or pass another checkpoint file."
        raise CamhookError(f"{os.fspath(path)} is of another run ({'; '.join(differing)}). {advice}")
    statistics, progress = Statistics(**facts["statistics"], device=device), Progress(facts["size"])
    progress.bits[:] = tensors.pop("done").numpy()
    progress.skipped = {index: (file, reason) for index, file, reason in facts["skipped"]}
    progress.seconds = facts.get("seconds", 0.0)
    statistics.load_state_dict(tensors)
    return statistics, progress
