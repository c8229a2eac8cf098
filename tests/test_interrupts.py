"""Ctrl-C and SIGTERM: at once or after the step at hand, with the handlers put back afterwards."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from camhook.interrupts import ignore_interrupts, stop_on_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


def steps_done(number: signal.Signals, *, deferred: bool) -> list[bool]:
    """Send the signal after each of three steps; return for each step done whether a signal had come by then."""
    done: list[bool] = []
    try:
        with stop_on_signals(deferred=deferred) as interrupted:
            for _ in range(3):
                done.append(interrupted.is_set())
                signal.raise_signal(number)
    except KeyboardInterrupt:
        return done
    raise AssertionError("no signal raised KeyboardInterrupt")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_or_if_deferred_at_the_second_one(number: signal.Signals) -> None:
    before = handlers()
    assert steps_done(number, deferred=False) == [False]
    assert steps_done(number, deferred=True) == [False, True]
    assert handlers() == before


def test_another_thread_leaves_signals_alone() -> None:
    before, seen = handlers(), []

    def within() -> None:
        with stop_on_signals(deferred=True) as interrupted:
            seen.append((handlers(), interrupted.is_set()))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_a_worker_leaves_ctrl_c_to_its_parent() -> None:
    before = handlers()
    try:
        ignore_interrupts()
        assert handlers() == [signal.SIG_IGN, signal.SIG_DFL]
        signal.raise_signal(signal.SIGINT)  # nothing happens
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
