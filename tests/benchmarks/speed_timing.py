"""Rounds of interleaved runs: every row beside plain forward passes of the same minute."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peers import CAMHOOK, CLASSES, PLAIN, CannotRun, Subject, tools

__all__ = ["COUNTS", "LEAST_PAIRS", "Row", "time_model", "try_out"]

COUNTS = {"one": 1, "ten": 10}
LEAST_PAIRS = 3
# A plain run follows once the runs since the last one took this many times as long: slow rows have one on each side.
PLAIN_AFTER = 4.0


@dataclass
class Row:
    """One tool with one number of classes, and its samples.

    Attributes
    ----------
    first, seconds
        Of each run: until the first class was there, and in all.
    plain
        Seconds of a plain forward pass around each run: the mean of the last before it and the next after it.
    cannot
        Why it gives no maps; empty where it does.
    """

    tool: str
    classes: str
    first: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    scaled: bool = False
    cannot: str = ""

    @property
    def ratios(self) -> list[float]:
        """Seconds of each run over those of the plain ones around it."""
        return [a / b for a, b in zip(self.seconds, self.plain, strict=True)]

    def scaled_to(self, count: int) -> Row:
        """Return the row for all classes of a tool that loops over them: linear in the classes after the first."""
        timed = COUNTS[self.classes]
        rest = [(total - first) / (timed - 1) for first, total in zip(self.first, self.seconds, strict=True)]
        seconds = [first + each * (count - 1) for first, each in zip(self.first, rest, strict=True)]
        return Row(self.tool, "all", list(self.first), seconds, list(self.plain), not self.cannot, self.cannot)


def clock(device: str) -> float:
    """Return the time once the device has nothing left to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def run_once(steps: Any, device: str) -> tuple[float, float]:
    """Return the seconds until the first class's maps, and until the last."""
    started, first = clock(device), 0.0
    for maps in steps:
        first = first or clock(device) - started
        del maps
    return first, clock(device) - started


def try_out(steps: Any, subject: Subject, *, peer: bool) -> str:
    """Warm up; return why a peer cannot run, or an empty string."""
    found = subject.cam.describe()
    try:
        shapes = [tuple(maps.shape) for maps in steps]
    except (CannotRun, ImportError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        if not peer:
            raise
        return str(error) if isinstance(error, CannotRun) else f"{type(error).__name__}: {error}".split("\n")[0][:200]
    wrong = [shape for shape in shapes if shape[-2:] not in (found.grid_size, found.input_size)]
    if peer and (wrong or not shapes):
        return f"gives shape {wrong[0]}, no map" if wrong else "gives nothing"
    return ""


def time_model(
    subject: Subject,
    *,
    pairs: int,
    budget: float,
    wanted: Sequence[str],
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Time every wanted tool on one subject.

    A round is one run of each row in random order, with plain runs before, after and between. A peer's row leaves the
    rounds once it has taken its budget in seconds (and has `LEAST_PAIRS`); camhook's rows stay for all of them.
    """
    device = str(subject.images.device)
    ready = tools(subject)
    total = subject.cam.describe().num_classes
    counts = {**COUNTS, "all": total}
    rows = [Row(PLAIN, "one")] if PLAIN in wanted else []
    for tool in ready:
        if tool in wanted and tool != PLAIN:
            rows += [Row(tool, classes) for classes in CLASSES if tool == CAMHOOK or classes in COUNTS]
    for _ in range(2):
        run_once(ready[PLAIN](1), device)
    for row in rows:
        peer = row.tool not in (PLAIN, CAMHOOK)
        count = min(2, counts[row.classes]) if peer else counts[row.classes]  # peers loop: two turns warm up as ten do
        row.cannot = try_out(ready[row.tool](count), subject, peer=peer)
        subject.model.zero_grad()
    order = random.Random(seed)
    for _ in range(pairs):
        left = [row for row in rows if not row.cannot and not _is_spent(row, budget)]
        order.shuffle(left)
        _round(left, ready, counts, subject, device)
    timed = ", ".join(f"{row.tool} {row.classes} {len(row.seconds)}" for row in rows if not row.cannot)
    say(f"{subject.name}, batch {len(subject.images)}: pairs {timed}")
    return rows + [row.scaled_to(total) for row in rows if row.classes == "ten" and row.tool != CAMHOOK]


def _is_spent(row: Row, budget: float) -> bool:
    if row.tool in (PLAIN, CAMHOOK) or len(row.seconds) < LEAST_PAIRS:
        return False
    return sum(row.seconds) + row.seconds[-1] > budget


def _round(rows: list[Row], ready: dict[str, Any], counts: dict[str, int], subject: Subject, device: str) -> None:
    gc.collect()
    before, since, waiting = run_once(ready[PLAIN](1), device)[1], 0.0, []
    for i, row in enumerate(rows):
        first, seconds = run_once(ready[row.tool](counts[row.classes]), device)
        row.first.append(first)
        row.seconds.append(seconds)
        subject.model.zero_grad()  # what a peer's backward pass left; not on the clock
        waiting.append(row)
        since += seconds
        if since > PLAIN_AFTER * before or i == len(rows) - 1:
            after = run_once(ready[PLAIN](1), device)[1]
            for done in waiting:
                done.plain.append((before + after) / 2)
            before, since, waiting = after, 0.0, []
