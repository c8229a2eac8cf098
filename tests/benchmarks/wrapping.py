"""How long `camhook.wrap` takes, over timm's architectures, and a second instance of the same architecture.

Run: python tests/benchmarks/wrapping.py [--every N] [--jobs N]

Models are built on the meta device, outside the timing, and come with their input size, so that wrapping finds a plan.
What drawing stand-in values costs is in the figures; what copying weights would cost is not, since nothing copies any.
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


def timed(name: str) -> tuple[float, float] | str:
    """Return the seconds that wrapping two instances took, one after the other, or why there is none."""
    try:
        models = [made(name) for _ in range(2)]
    except Exception as error:  # whatever an architecture's code may raise on the meta device
        return f"timm could not make it: {type(error).__name__}"
    seconds = []
    for model in models:
        gc.collect()
        begun = time.perf_counter()
        try:
            camhook.wrap(model)
        except CamhookError as error:
            return str(error)
        seconds.append(time.perf_counter() - begun)
    return seconds[0], seconds[1]


def made(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


def told(title: str, seconds: list[float]) -> None:
    deciles = statistics.quantiles(seconds, n=10)
    echo(f"{title}: median {statistics.median(seconds):.3f} s, 90th percentile {deciles[-1]:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take one architecture in so many")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    names = timm.list_models()[:: options.every]
    found = dict(in_parallel(timed, names, options.jobs))
    both = {name: times for name, times in found.items() if isinstance(times, tuple)}
    echo(f"{len(names)} architectures, {len(both)} wrapped")
    for index, title in enumerate(("first wrap", "second wrap of the same architecture")):
        told(title, [times[index] for times in both.values()])
        slowest = sorted(both, key=lambda name: -both[name][index])[:10]
        echo("  slowest: " + ", ".join(f"{name} {both[name][index]:.2f} s" for name in slowest))


if __name__ == "__main__":
    main()
