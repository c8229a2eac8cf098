"""Peak memory of one run, each in a fresh process."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from peers import CAMHOOK, CLASSES, PLAIN, Subject, tools
from speed_timing import COUNTS, try_out

__all__ = ["measure_memory", "peak"]

# So that glibc gives memory back, from one arena: else the warm-up's leftovers hide what the run takes.
STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20


def measure_memory(
    model: str, batch_size: int, wanted: list[str], *, threads: int, device: str
) -> list[dict[str, Any]]:
    """Return the peak of every wanted tool on one model, and its ratio to that of a plain forward pass.

    Peers loop, so that their peak for all classes is that for ten but for the maps they keep: it is not measured.
    """
    rows: list[dict[str, Any]] = []
    for tool in [PLAIN, *(tool for tool in wanted if tool != PLAIN)]:
        for classes in ("one",) if tool == PLAIN else CLASSES if tool == CAMHOOK else tuple(COUNTS):
            asked = [model, tool, classes, str(batch_size)]
            command = [sys.executable, str(Path(__file__).with_name("speed.py")), "--peak", *asked]
            done = subprocess.run(
                [*command, "--threads", str(threads), "--device", device],
                env={**os.environ, **STEADY},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            if not rows[-1]["cannot"]:
                rows[-1]["ratio"] = (rows[-1]["peak_mib"] - rows[-1]["maps_mib"]) / rows[0]["peak_mib"]
    return rows


def peak(model: str, tool: str, classes: str, batch_size: int, device: str) -> dict[str, Any]:
    """Measure in this process: the peak above the state after loading and a warm-up at batch 1; maps are kept."""
    subject = Subject.of(model, 1, device)
    count = COUNTS.get(classes, subject.cam.describe().num_classes)
    row = {"model": subject.name, "batch_size": batch_size, "tool": tool, "classes": classes}
    cannot = try_out(tools(subject)[tool](count), subject, peer=tool not in (PLAIN, CAMHOOK))
    if cannot:
        return {**row, "cannot": cannot}
    run = tools(subject.with_batch(batch_size))[tool]
    subject.model.zero_grad()
    gc.collect()
    before = _restart(device)
    kept = list(run(count))
    highest = _highest(device)
    size = sum(maps.nbytes for maps in kept) if tool != PLAIN else 0
    return {**row, "cannot": "", "peak_mib": (highest - before) / MIB, "maps_mib": size / MIB}


def _restart(device: str) -> int:
    """Return the bytes in use, and let the highest number of bytes start from there."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if not CLEAR.exists():
        raise SystemExit("Peak memory on a CPU is read from /proc, which only Linux has.")
    CLEAR.write_text("5")  # resets VmHWM; ru_maxrss would remember loading the model
    return _status("VmRSS")


def _highest(device: str) -> int:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
