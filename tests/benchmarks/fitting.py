"""What a fit costs: time beside plain feature extraction, memory as images grow, the solve.

Run: python tests/benchmarks/fitting.py [throughput | memory | solve | head]...

Measured figures are in `camhook.fitting.fit.fit`'s notes; this prints them anew, on the machine at hand.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from click import echo
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import camhook
from camhook.fitting.rows import Rows
from camhook.fitting.solvers import solve_ridge
from camhook.fitting.state import FitState

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Made(Dataset[Any]):
    """Pictures made up on the fly, always the same, that take no memory."""

    def __init__(self, count: int, side: int, classes: int) -> None:
        self.count, self.side, self.classes = count, side, classes
        self.noise = torch.randn(3, side, side, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.noise.roll(index, 2) * (1 + index % 7), index % self.classes


def synchronised() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def throughput(name: str = "resnet50", batch_size: int = 16, batches: int = 4, rounds: int = 5) -> None:
    """Fit and plain extraction in turn, on the same images."""
    if DEVICE == "cuda":
        batch_size, batches, rounds = 256, 20, 7
    torch.manual_seed(0)
    model: Any = timm.create_model(name).eval().to(DEVICE)
    cam = camhook.wrap(model)
    items = Made(256, 224, 10)
    images = torch.stack([items[i][0] for i in range(256)]).repeat(-(-batch_size * batches // 256), 1, 1, 1)
    labels = torch.arange(len(images)) % 10
    images, labels = images[: batch_size * batches], labels[: batch_size * batches]
    parts = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))

    def plain() -> float:
        started = synchronised()
        with torch.inference_mode():
            for part, _ in parts:
                model(part.to(DEVICE)).sum()
        return len(images) / (synchronised() - started)

    def pass_alone(**options: Any) -> float:
        report = cam.fit(parts, num_classes=10, holdout=0, penalty=1.0, progress=False, **options)
        return report.images_per_second

    for label, options in (("labels", {}), ("logits", {"targets": "logits"})):
        plain()
        pairs = [(plain(), pass_alone(**options)) for _ in range(rounds)]
        ratio = statistics.median(fit / bare for bare, fit in pairs)
        rates = [statistics.median(column) for column in zip(*pairs, strict=True)]
        echo(
            f"{name}, {label}, batches of {batch_size} on {DEVICE}: plain {rates[0]:.4g} images/s, fit {rates[1]:.4g}, "
            f"ratio {ratio:.3f} (median of {rounds})"
        )


def memory(counts: tuple[int, ...] = (1000, 20000)) -> None:
    """Peak memory of a process that fits on so many images."""
    for count in counts:
        done = subprocess.run([sys.executable, __file__, f"peak={count}"], check=True, capture_output=True, text=True)
        echo(done.stdout.strip())


def peak(count: int) -> None:
    torch.manual_seed(0)
    cam = camhook.wrap(timm.create_model("test_resnet", num_classes=0), input_size=(64, 64))
    loader = DataLoader(Made(count, 64, 10), batch_size=50)
    report = cam.fit(loader, num_classes=10, capacity=500, progress=False)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    echo(f"{count:,} images: peak {most:,.0f} MiB, {report.images_per_second:.4g} images/s")


def solve(features: int = 2048, classes: int = 1000, images: int = 20000) -> None:
    """The moments of so many images, and ridge from them."""
    torch.manual_seed(0)
    state = FitState(features, classes, device=DEVICE)
    started = synchronised()
    for first in range(0, images, 1000):
        labels = torch.arange(first, first + 1000, device=DEVICE) % classes
        state.update(Rows.of(range(first, first + 1000), torch.randn(1000, features, device=DEVICE), labels))
    state.total()
    summed = synchronised()
    for penalty in (1.0, None):
        begun = synchronised()
        solution = solve_ridge(state, penalty=penalty)
        tried = f"{max(len(solution.curve), 1)} penalties"
        echo(f"{features:,} features x {classes:,} classes, {tried}: solved in {synchronised() - begun:.3g} s")
    size = sum(value.nbytes for each in (*state.folds, state.holdout) for value in vars(each).values())
    echo(f"  moments: {(summed - started) / images * 1e6:.3g} us an image; state {size / 2**20:,.0f} MiB on {DEVICE}")


def head(counts: tuple[int, ...] = (250, 1000, 4000)) -> None:
    """How near the demo model's own head comes as photos (random crops of the 250 shared ones, or of a few) grow."""
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from camhook.demo import demo_model, demo_photos

    shared = Path("/work/shared/data/imagenet-sample")
    photos = sorted(shared.rglob("*.jpg")) or list(demo_photos().values())

    class Crops(Dataset[Any]):
        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, index: int) -> Image.Image:
            random = np.random.RandomState(index)
            photo = Image.open(photos[index % len(photos)]).convert("RGB")
            edge = random.randint(min(photo.size) // 2, min(photo.size) + 1)
            left, top = (random.randint(0, length - edge + 1) for length in photo.size)
            crop = photo.crop((left, top, left + edge, top + edge))
            return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.rand() < 0.5 else crop

    model = demo_model()
    cam, own = camhook.wrap(model, input_size=(96, 96)), model.get_classifier().weight.detach()  # type: ignore[operator]
    for count in counts:
        report = cam.fit(Crops(count), targets="logits", batch_size=64, progress=False)
        assert cam.probe is not None
        far = float((cam.probe.weight - own).norm() / own.norm())
        echo(
            f"{count:,} photos: |W - own| / |own| = {far:.3g}, R2 {report.fidelity.r2:.4f}, agreement "
            f"{report.fidelity.agreement:.3f}, penalty {report.penalty:.2g}"
        )


PARTS: dict[str, Callable[[], None]] = {"throughput": throughput, "memory": memory, "solve": solve, "head": head}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    for part in parser.parse_args().parts:
        if part.startswith("peak="):
            peak(int(part.removeprefix("peak=")))
        else:
            PARTS[part]()


if __name__ == "__main__":
    main()
