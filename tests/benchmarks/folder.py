"""Thousands of photos through `camhook explain`: killed and resumed, memory, throughput beside plain inference.

Run: python tests/benchmarks/folder.py [resume | memory | throughput]... [--photos 2000] [--workers 1]

Photos are made of scikit-image's, a few broken among them. The model is the demo's.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click import echo
from PIL import Image

import camhook
from camhook.demo import demo_model, demo_photos
from camhook.folders.explaining import explain_batches, explain_photos
from camhook.folders.photos import Photo, Selection, list_photos, with_stamp
from camhook.folders.writing import Writer, WriterPool
from camhook.images.loading import ImageReader, load_batches

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 64 if DEVICE == "cuda" else 8
BROKEN = 20


def make_folder(folder: Path, count: int) -> Path:
    """Random crops of photos, about 500 x 375, every so many broken in one of four ways."""
    sources = [photo.convert("RGB") for photo in map(opened, demo_photos().values())]
    folder.mkdir()
    for index in range(count):
        random = np.random.RandomState(index)
        photo = sources[index % len(sources)]
        edge = random.uniform(0.5, 1)
        width, height = int(photo.width * edge), int(photo.height * edge)
        left, top = random.randint(0, photo.width - width + 1), random.randint(0, photo.height - height + 1)
        crop = photo.resize((500, 375), box=(left, top, left + width, top + height))
        file = folder / f"{index:05}.jpg"
        crop.save(file, quality=85)
        if index % (count // BROKEN) == 7:
            whole = file.read_bytes()
            file.write_bytes([whole[: len(whole) // 2], b"no photo", b"", b"\0" * 4000][index // (count // BROKEN) % 4])
    return folder


def opened(photo: Any) -> Image.Image:
    return photo if isinstance(photo, Image.Image) else Image.open(photo)


def explaining(folder: Path, out: Path, workers: int, *more: str) -> list[str]:
    options = ["--model", "demo", "--output", str(out), "--workers", str(workers), "--batch-size", str(BATCH)]
    return [sys.executable, "-m", "camhook", "explain", str(folder), *options, *more]


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """What no file has in common with one that took its place."""
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.iterdir()}


def resume(folder: Path, out: Path, workers: int) -> None:
    """Kill it half way, run it again: each good photo explained once, each broken one listed."""
    count, started = len(list(folder.iterdir())), time.perf_counter()
    with subprocess.Popen(
        explaining(folder, out, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        while not out.is_dir() or len(list(out.glob("*.json"))) < count // 2:
            assert run.poll() is None, "it ended before it could be killed"
            time.sleep(0.2)
        run.send_signal(signal.SIGKILL)
    seconds = time.perf_counter() - started
    time.sleep(1)  # its workers see within half a second that they are alone
    before = identities(out)
    half = [name for name in before if name.endswith(".json")]
    made = {file for name in half for file in json.loads((out / name).read_text())["files"]}
    echo(f"killed after {seconds:.0f} s with {len(half):,} of {count:,} done")
    started = time.perf_counter()
    again = subprocess.run(explaining(folder, out, workers), check=False, capture_output=True, text=True)
    said = next(line for line in again.stdout.splitlines() if line.startswith("Explained"))
    echo(f"resumed for {time.perf_counter() - started:.0f} s, exit status {again.returncode}: {said}")
    after = identities(out)
    twice = [name for name in [*half, *made] if after[name] != before[name]]
    done = {file.stem for file in out.glob("*.json")}
    listed = (out / "skipped.txt").read_text().splitlines()[1:]
    broken = {f"{index:05}" for index in range(count) if index % (count // BROKEN) == 7}
    good = {file.stem for file in folder.iterdir()} - broken
    checks = {
        "each good photo explained": done == good,
        "none twice": not twice,
        "each broken one listed": sorted(name for line in listed for name in broken if name in line) == sorted(broken),
        "nothing half-written left": not list(out.glob(".*")),
        "exit status 1": again.returncode == 1,
    }
    echo("  " + ", ".join(f"{name}: {'yes' if holds else 'NO'}" for name, holds in checks.items()))


def memory(folder: Path, out: Path, workers: int) -> None:
    """Peak memory of the main process on a quarter of the photos, and on all."""
    for divisor in (4, 1):
        count = len(list(folder.iterdir())) // divisor
        arguments = [sys.executable, __file__, f"peak={count}", "--folder", str(folder), "--workers", str(workers)]
        done = subprocess.run([*arguments, "--out", str(out)], check=True, capture_output=True, text=True)
        echo(done.stdout.strip())


def peak(count: int, folder: Path, out: Path, workers: int) -> None:
    """Explain so many photos in this process, maps only, and say what memory that took."""
    from camhook.cli.main import main

    files = [str(file) for file in sorted(folder.iterdir())[:count]]
    options = explaining(folder, out / str(count), workers, "--no-overlays")[5:]
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):  # some are broken: exit status 1
        main(["explain", *files, *options], standalone_mode=False)
    assert len(list((out / str(count)).glob("*.json"))) > 0.9 * count
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    echo(f"{count:,} photos: peak of the main process {most:,.0f} MiB")


def throughput(folder: Path, out: Path, workers: int, rounds: int = 5) -> None:
    """Plain inference over the loader, maps, maps written, overlays written: in turn, on the same photos."""
    cam = camhook.wrap(demo_model().to(DEVICE))
    photos = list_photos([folder])[: 64 * BATCH if DEVICE == "cuda" else 128]
    assert cam.preprocessing is not None
    numbers = itertools.count()

    def groups() -> Iterator[list[Photo]]:
        return (photos[first : first + BATCH] for first in range(0, len(photos), BATCH))

    def plain() -> None:
        with torch.inference_mode():
            reader = ImageReader(with_stamp, cam.preprocessing)
            for batch in load_batches(reader, groups(), workers=workers, pin_memory=DEVICE == "cuda"):
                if batch.images is not None:
                    cam.model(batch.images.to(DEVICE, non_blocking=True)).cpu()

    def maps() -> None:
        for _ in explain_batches(cam, groups(), Selection(), workers=workers):
            pass

    def to_files(overlays: bool) -> None:
        directory = out / f"throughput{next(numbers)}"
        directory.mkdir(parents=True)
        with WriterPool(Writer(directory, {}, overlays, overwrite=False), workers) as pool:
            for _ in explain_photos(cam, groups(), Selection(), pool, workers=workers):
                pass

    ways: dict[str, Callable[[], None]] = {
        "plain inference": plain,
        "maps": maps,
        "maps written": lambda: to_files(False),
        "overlays written": lambda: to_files(True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    for name, taken in seconds.items():
        ratio = statistics.median(bare / each for bare, each in zip(seconds["plain inference"], taken, strict=True))
        rate = len(photos) / statistics.median(taken)
        echo(f"{name}: {rate:.4g} photos/s on {DEVICE}, ratio {ratio:.3f} (median of {rounds}), workers {workers}")


PARTS: dict[str, Callable[[Path, Path, int], None]] = {"resume": resume, "memory": memory, "throughput": throughput}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="Use these photos; default: make them.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or make_folder(Path(scratch) / "photos", given.photos)
        for part in given.parts:
            out = (given.out or Path(scratch)) / part.split("=")[0]
            if part.startswith("peak="):
                peak(int(part.removeprefix("peak=")), folder, out, given.workers)
            else:
                PARTS[part](folder, out, given.workers)


if __name__ == "__main__":
    main()
