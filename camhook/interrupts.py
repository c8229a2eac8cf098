"""Ctrl-C (SIGINT) and SIGTERM: stop at once or after the current step, and leave worker processes to their parent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["ignore_interrupts", "stop_on_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(*, deferred: bool = False) -> Iterator[threading.Event]:
    """Have SIGINT and SIGTERM, which clusters and torchrun send, do the same: raise `KeyboardInterrupt`.

    Signals are handled in the main thread only; elsewhere nothing is changed.

    Parameters
    ----------
    deferred
        Only set the event at the first signal, so that the caller can finish its step; the second one raises.

    Yields
    ------
    threading.Event
        Set once a signal has come.

    Examples
    --------
    >>> with stop_on_signals(deferred=True) as interrupted:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interrupted.is_set()
    True
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def handle(number: int, frame: FrameType | None) -> None:
        first = not interrupted.is_set()
        interrupted.set()
        if not (deferred and first):
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            # None: a handler that was not installed from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def ignore_interrupts(_: int = 0) -> None:
    """Set up a worker process: Ctrl-C, which a terminal sends to all of a command's processes, is left to the parent.

    The parent ends its workers; SIGTERM does, too. Fits as a DataLoader's ``worker_init_fn``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
