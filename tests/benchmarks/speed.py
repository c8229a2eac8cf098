"""What maps cost beside a plain forward pass: camhook and its peers, in interleaved pairs on the same images.

Run: pip install -e ".[bench,demo]" && python tests/benchmarks/speed.py --json speed.json
Also: --memory (peak memory, a fresh process for each row), --readme (the table between the markers in README.md),
--profile MODEL (where a camhook call spends its time). How each tool is used: peers.py;
how rows are timed: speed_timing.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from click import echo
from peers import CAMHOOK, PLAIN, Subject
from speed_memory import measure_memory, peak
from speed_table import compact, into_readme, summarised, table
from speed_timing import time_model

MODELS = (
    "resnet50",
    "tf_efficientnet_lite0",
    "convnext_tiny",
    "mobilenetv3_large_100",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_224",
)
ROWS = {
    "plain": PLAIN,
    "camhook": CAMHOOK,
    "grad-cam": "grad-cam GradCAM",
    "torchcam-cam": "torchcam CAM",
    "torchcam-gradcam": "torchcam GradCAM",
    "captum": "Captum LayerGradCam",
}
PACKAGES = ("torch", "timm", "captum", "grad-cam", "torchcam", "camhook", "numpy")
README = Path(__file__).parents[2] / "README.md"


def cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(threads: int, device: str) -> dict[str, Any]:
    """Return what the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu
    return {
        "device": device,
        "device_name": name,
        "cpu": cpu,
        "cores": cores(),
        "threads": threads,
        "ram_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the version of each package, "none" where it is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole benchmark; return the report that `--json` writes."""
    wanted = [ROWS[row] for row in options.rows]
    report: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(options.threads, options.device),
        "versions": versions(),
        "options": {
            key: value for key, value in vars(options).items() if key not in ("json", "readme", "profile", "peak")
        },
        "results": [],
        "memory": [],
    }
    for model in options.models:
        for batch_size in options.batch_sizes:
            subject = Subject.of(model, batch_size, options.device)
            rows = time_model(
                subject, pairs=options.pairs, budget=options.budget, wanted=wanted, say=lambda t: echo(t, err=True)
            )
            place = {
                "model": subject.name,
                "batch_size": batch_size,
                "target_layer": subject.cam.describe().target_layer,
            }
            report["results"] += [summarised({**place, **asdict(row)}) for row in rows]
            del subject
            if options.memory:
                asked = {"threads": options.threads, "device": options.device}
                report["memory"] += measure_memory(model, batch_size, wanted, **asked)
            if options.json:  # after each model, so that a long run that ends early leaves what it had
                options.json.write_text(json.dumps(report, indent=1))
    return report


def profile(model: str, batch_size: int, device: str) -> None:
    """Print where a camhook call for one class spends its time, by operator and by function, beside a plain forward."""
    import cProfile
    import pstats

    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watched

    subject = Subject.of(model, batch_size, device)

    def plain() -> Any:
        with torch.inference_mode():
            return subject.model(subject.images)

    def call() -> Any:
        return subject.cam(subject.images)

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * device.startswith("cuda")
    spent: list[dict[str, tuple[float, int]]] = []
    for run in (plain, call):
        run()
        with watched(activities=kinds) as seen:
            run()
        spent.append({e.key: (e.self_cpu_time_total + e.self_device_time_total, e.count) for e in seen.key_averages()})
    extra = {key: (us - spent[0].get(key, (0.0, 0))[0], n, us) for key, (us, n) in spent[1].items()}
    echo(f"{subject.name}, batch {batch_size}: operators, self time beyond the plain forward\n")
    echo(f"{'ms beyond':>10} {'ms in call':>10} {'calls':>6}  operator")
    for key, (us, n, whole) in sorted(extra.items(), key=lambda item: -item[1][0])[:25]:
        echo(f"{us / 1e3:10.3f} {whole / 1e3:10.3f} {n:6d}  {key}")
    watch = cProfile.Profile()
    watch.runcall(call)
    echo("\nFunctions of the call, the forward included, by cumulative time\n")
    pstats.Stats(watch, stream=sys.stdout).strip_dirs().sort_stats("cumulative").print_stats(25)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[8])
    parser.add_argument("--pairs", type=int, default=30, help="rounds (default 30)")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds for a peer's row, at least 3 pairs")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--profile", metavar="MODEL")
    parser.add_argument("--peak", nargs=4, metavar=("MODEL", "TOOL", "CLASSES", "BATCH"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    if options.peak:
        model, tool, classes, batch_size = options.peak
        echo(json.dumps(peak(model, tool, classes, int(batch_size), options.device)))
        return
    if options.profile:
        profile(options.profile, options.batch_sizes[0], options.device)
        return
    if options.readme:
        into_readme(README.read_text(), "")  # to fail before an hour's work, not after it
    report = measured(options)
    echo(table(report))
    if options.readme:
        README.write_text(into_readme(README.read_text(), compact(report, options.batch_sizes[0])))


if __name__ == "__main__":
    main()
