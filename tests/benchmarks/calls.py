"""Python calls that ``cam(photo)`` makes within camhook, and how often they go from one file to another.

Run: python tests/benchmarks/calls.py [--json] [--profile] [MODEL ...]

Counted with `sys.setprofile` at the second call of a wrapped model: every "call" event of a frame whose file lies below
the package's folder or its ``adapters`` folder (by real path). That is every function called, and every comprehension
and every resumption of a generator, which the interpreter reports in the same way (from Python 3.12 on comprehensions
are inlined and no longer reported, so that counts are compared on one Python). A change of file is a call into another
file than that of the call before it; frames of torch, timm and the standard library are passed over.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from click import echo
from PIL import Image

MODELS = ("test_resnet", "test_vit")


@dataclass(frozen=True)
class Calls:
    """What was counted in one call of a wrapped model.

    Attributes
    ----------
    calls, files, changes
        Calls into camhook's own frames, the files they are in, and how often two in a row are in different files.
    functions
        How often each function was entered, as (file, name, count), most often first.
    """

    model: str
    calls: int
    files: int
    changes: int
    functions: tuple[tuple[str, str, int], ...]


def own_files() -> Callable[[str], str | None]:
    """Return a function from a code object's file to its path in the package, or None if it is not of camhook."""
    import camhook

    package = Path(str(camhook.__file__)).resolve().parent
    adapters = (package / "adapters").resolve()  # a folder beside the package in a checkout
    known: dict[str, str | None] = {}

    def own(file: str) -> str | None:
        if file not in known:
            path = Path(os.path.realpath(file))
            inside = [root for root in (package, adapters) if path.is_relative_to(root)]
            known[file] = str(path.relative_to(inside[0].parent)) if inside else None
        return known[file]

    return own


def counted(name: str, run: Callable[[], Any]) -> Calls:
    """Run something and count the calls within camhook."""
    own = own_files()
    entered: list[tuple[str, str]] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (file := own(frame.f_code.co_filename)):
            entered.append((file, getattr(frame.f_code, "co_qualname", frame.f_code.co_name)))  # from Python 3.11 on

    had = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(had)
    files = [file for file, _ in entered]
    changes = sum(one != other for one, other in pairwise(files))
    often = tuple((file, function, count) for (file, function), count in Counter(entered).most_common())
    return Calls(name, len(entered), len(set(files)), changes, often)


def measured(name: str) -> Calls:
    """Wrap a model of random weights and count its second call, on a photo given by path."""
    import timm

    import camhook

    torch.manual_seed(0)
    cam = camhook.wrap(timm.create_model(name).eval())
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photo)
        cam(photo)
        return counted(name, lambda: cam(photo))


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--json", action="store_true", help="all that was counted, as JSON")
    parser.add_argument("--profile", action="store_true", help="the functions entered most often as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [measured(name) for name in args.models]
    if args.json:
        echo(json.dumps([asdict(each) for each in found], indent=1))
        return
    echo(f"{'model':24} {'calls':>7} {'files':>6} {'changes of file':>16}")
    for each in found:
        echo(f"{each.model:24} {each.calls:>7,} {each.files:>6} {each.changes:>16,}")
        for file, function, count in each.functions[:20] if args.profile else ():
            echo(f"    {count:>7,}  {file}  {function}")


if __name__ == "__main__":
    main()
