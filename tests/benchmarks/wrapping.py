"""How long `camhook.wrap` takes, over timm's architectures.

Run: python tests/benchmarks/wrapping.py [--every N] [--jobs N]

Models are built on the meta device, outside the timing, and come with their input size, so that wrapping finds a plan.
Drawing random parameters is in the figures; copying weights would not be, but nothing copies any.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

import timm
import torch
from click import echo

import camhook
from camhook.cli.models import in_parallel
from camhook.errors import CamhookError


def timed(name: str) -> float | str:
    """Return the seconds that wrapping took, or why it could not be done."""
    try:
        model = made(name)
    except Exception as error:  # whatever an architecture's code may raise on the meta device
        return f"timm could not make it: {type(error).__name__}"
    gc.collect()
    begun = time.perf_counter()
    try:
        camhook.wrap(model)
    except CamhookError as error:
        return str(error)
    return time.perf_counter() - begun


def made(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take one architecture in so many")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    names = timm.list_models()[:: options.every]
    found = dict(in_parallel(timed, names, options.jobs))
    seconds = {name: taken for name, taken in found.items() if isinstance(taken, float)}
    median, tenth = statistics.median(seconds.values()), statistics.quantiles(seconds.values(), n=10)[-1]
    echo(f"{len(names)} architectures, {len(seconds)} wrapped: median {median:.3f} s, 90th percentile {tenth:.3f} s")
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:10]
    echo("slowest: " + ", ".join(f"{name} {seconds[name]:.2f} s" for name in slowest))


if __name__ == "__main__":
    main()
