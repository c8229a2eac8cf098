"""What a piece of work costs: seconds, and the memory it needs at its peak."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Cost", "metered"]

_STATM = Path("/proc/self/statm")
_INTERVAL = 0.005  # seconds between two looks at the process's memory


@dataclass
class Cost:
    """What the work in a `metered` block took.

    Attributes
    ----------
    seconds
        Wall time.
    peak_bytes
        Memory at the peak beyond what was held at the start: the device's own count on CUDA, the process's resident
        memory on a CPU under Linux (looked at every 5 ms), None elsewhere.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def metered(device: torch.device) -> Iterator[Cost]:
    """Measure what is done in the block.

    Examples
    --------
    >>> with metered(torch.device("cpu")) as cost:
    ...     _ = torch.zeros(1000)
    >>> cost.seconds > 0
    True
    """
    cost = Cost()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, watch = torch.cuda.memory_allocated(device), None
    else:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what is free but kept would hide what the work needs
        watch = _Watch() if _STATM.exists() else None
        before = watch.peak if watch else 0
    started = time.perf_counter()
    try:
        yield cost
    finally:
        if cuda:
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - started
        if cuda:
            cost.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        elif watch:
            cost.peak_bytes = max(watch.stop() - before, 0)


class _Watch(threading.Thread):
    """Looks at the process's resident memory again and again until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._done = threading.Event()
        self.peak = _resident()
        self.start()

    def run(self) -> None:
        """Keep the largest value seen."""
        while not self._done.wait(_INTERVAL):
            self.peak = max(self.peak, _resident())

    def stop(self) -> int:
        """Stop, and return the largest value seen, in bytes."""
        self._done.set()
        self.join()
        return max(self.peak, _resident())


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
