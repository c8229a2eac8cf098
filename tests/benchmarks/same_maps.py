"""Maps of many architectures written to a file, and two such files compared: has a change of the code moved a number?

Run on the code before and after, with the same script and the same environment (PYTHONPATH says which camhook):
    PYTHONPATH=/path/to/before python tests/benchmarks/same_maps.py dump before.npz --names swept --double
    PYTHONPATH=/path/to/after python tests/benchmarks/same_maps.py dump after.npz --names swept --double
    python tests/benchmarks/same_maps.py compare before.npz after.npz

Each architecture is made with random weights (seed 0), jittered, wrapped, and explains two random images for a few
classes and for all. Deviations are relative to the architecture's largest absolute map value; logits are compared too,
relative to the largest logit, so that a model that is not deterministic is not taken for a changed map.

How to read it: in float32 (no ``--double``) another order of the same additions moves maps by 1e-7 to 1e-4 of the
largest value, more in deep networks, so float32 rows are held to ``--float32-tolerance`` only. In float64 the same
rounding is below 1e-12: rows whose name ends in ``:float64`` are held to ``--tolerance``, 1e-6, and one that exceeds it
computes something else.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import threading
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from click import echo
from torch import nn

TESTS = Path(__file__).parents[1]
NUM_CLASSES = 40  # more than the engine takes one by one, so that "all" is computed in another way than a few
SMALL = 128
DOUBLE = ":float64"
FEW = [[1, 2], [3, 4]]

Arrays = dict[str, npt.NDArray[Any]]


def listed(kind: str) -> list[str]:
    """Read the architectures ``TINY`` or ``SWEPT`` out of the sweep's test, wherever in tests/ it lies."""
    for file in sorted(TESTS.rglob("test_sweep.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and [ast.unparse(each) for each in node.targets] == [kind.upper()]:
                # The list is written as "...".split().
                texts = [each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
                return [name for text in texts if isinstance(text, str) for name in text.split()]
    raise SystemExit(f"No list {kind.upper()} was found in {TESTS}/**/test_sweep.py.")


def made(name: str) -> tuple[Any, tuple[int, int]]:
    """Make an architecture for a small input, if it can be, and return it with that (height, width)."""
    import timm

    name, _, given = name.partition(":")
    extra = {key: int(value) for key, value in (pair.split("=") for pair in given.split(",") if pair)}
    for options in ({"img_size": SMALL} | extra, extra):
        try:
            with torch.device("meta"):
                model: Any = timm.create_model(name, num_classes=NUM_CLASSES, **options).eval()
                channels, *own = timm.data.resolve_model_data_config(model)["input_size"]
            for size in ((SMALL, SMALL), tuple(own)):
                if size != (SMALL, SMALL) and "img_size" in options:
                    continue
                try:
                    with torch.device("meta"):
                        model(torch.empty(2, channels, *size))
                except (RuntimeError, AssertionError, ValueError):
                    continue
                torch.manual_seed(0)
                return timm.create_model(name, num_classes=NUM_CLASSES, **options).eval(), size
        except (TypeError, RuntimeError, AssertionError, ValueError):
            continue
    raise AssertionError(f"{name} runs on no input")


def jitter(model: nn.Module) -> None:
    """Move every parameter a little, in place: a fresh mixer's head is zero, and all maps would agree on nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            fresh = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.05
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter), alpha=0.1 * spread if spread > 1e-4 else fresh)


def explained(name: str) -> Arrays:
    """Return the maps, offsets and logits of an architecture for a few classes and for all, or the error as text."""
    import timm

    import camhook

    torch.set_num_threads(1)
    plain = name.removesuffix(DOUBLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own, of deprecated names and the like
        try:
            model, size = made(plain)
            jitter(model)
            channels = timm.data.resolve_model_data_config(model)["input_size"][0]
            images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))
            if name.endswith(DOUBLE):
                model, images = model.double(), images.double()
            cam = camhook.wrap(model, input_size=size)
            found: Arrays = {}
            for asked, target in (("few", FEW), ("all", "all")):
                result = cam(images, target)
                for part in ("maps", "offset", "logits"):
                    found[f"{asked}/{part}"] = getattr(result, part).detach().cpu().numpy()
                found[f"{asked}/read"] = np.array(f"{result.method} through {result.head} at {result.target_layer}")
            return found
        except Exception as error:  # the run goes on; comparing shows the error
            return {
                "error": np.array(f"{type(error).__name__}: {error}"),
                "traceback": np.array(traceback.format_exc()),
            }


def in_processes(function: Callable[[str], Arrays], names: Sequence[str], jobs: int) -> Iterator[tuple[str, Arrays]]:
    """Yield what a function returns for each name, as it comes; a process that dies costs its own name only."""
    own = threading.local()

    def run(name: str) -> Arrays:
        if not hasattr(own, "pool"):
            own.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            found: Arrays = own.pool.submit(function, name).result()
        except BrokenProcessPool:
            del own.pool
            return {"error": np.array("the process died")}
        return found

    with ThreadPoolExecutor(jobs) as threads:
        futures = {threads.submit(run, name): name for name in names}
        for future in as_completed(futures):
            yield futures[future], future.result()


def dump(out: Path, names: Sequence[str], jobs: int, *, resume: bool) -> int:
    """Write what was explained to an ``.npz``, each architecture as it is done; return how many failed."""
    import camhook

    echo(f"camhook from {Path(str(camhook.__file__)).parent}, torch {torch.__version__}, {len(names)} architectures")
    if not resume:
        out.unlink(missing_ok=True)
    had = set(load(out)) if out.exists() else set()
    failed, started = 0, time.perf_counter()
    for name, arrays in in_processes(explained, [name for name in names if name not in had], jobs):
        with zipfile.ZipFile(out, "a") as archive:  # closed after each, so that a run that is cut off can be resumed
            for part, array in arrays.items():
                packed = io.BytesIO()
                np.save(packed, array)
                archive.writestr(f"{name}/{part}.npy", packed.getvalue())
        failed += "error" in arrays
        echo(f"{time.perf_counter() - started:7.1f} s  {name}  {arrays.get('error', 'done')}")
    return failed


def load(path: Path) -> dict[str, Arrays]:
    """Return a dump's arrays by architecture."""
    found: dict[str, Arrays] = {}
    with np.load(path) as archive:
        for key in archive.files:
            name, _, part = key.partition("/")
            found.setdefault(name, {})[part] = archive[key]
    return found


@dataclass(frozen=True)
class Deviation:
    """How far an architecture's maps, offsets and logits differ at most, relative to the largest map or logit."""

    name: str
    maps: float = 0.0
    offset: float = 0.0
    logits: float = 0.0
    error: str = ""

    @property
    def worst(self) -> float:
        """The larger of maps' and offsets'; infinite for an error."""
        return float("inf") if self.error else max(self.maps, self.offset)

    def __str__(self) -> str:
        if self.error:
            return f"{self.name:48} {self.error}"
        return f"{self.name:48} maps {self.maps:.1e}  offset {self.offset:.1e}  logits {self.logits:.1e}"


def compared(name: str, before: Arrays, after: Arrays) -> Deviation:
    """Compare two runs of an architecture."""
    for which, run, other in (("before", before, after), ("after", after, before)):
        if "error" in run:
            both = " (and so did the other run)" if "error" in other else ""
            return Deviation(name, error=f"failed {which}{both}: {run['error']}")
    found = dict.fromkeys(("maps", "offset", "logits"), 0.0)
    for asked in ("few", "all"):
        for part in found:
            old, new = before[f"{asked}/{part}"], after[f"{asked}/{part}"]
            if old.shape != new.shape:
                return Deviation(name, error=f"{asked}/{part}: shape {old.shape} before, {new.shape} after")
            if not (np.isfinite(old).all() and np.isfinite(new).all()):
                return Deviation(name, error=f"{asked}/{part}: not all values are finite")
            largest = float(np.abs(before[f"{asked}/{'logits' if part == 'logits' else 'maps'}"]).max())
            if largest == 0.0:
                return Deviation(name, error=f"{asked}/{part}: all maps are zero, which shows nothing")
            found[part] = max(found[part], float(np.abs(old - new).max()) / largest)
    return Deviation(name, maps=found["maps"], offset=found["offset"], logits=found["logits"])


def compare(before: Path, after: Path, *, tolerance: float, float32_tolerance: float) -> int:
    """Print how far two dumps differ; return how many architectures exceed the tolerance, failed or are missing."""
    runs = load(before), load(after)
    missing = sorted(set(runs[0]) ^ set(runs[1]))
    for name in missing:
        echo(f"{name:48} is missing {'after' if name in runs[0] else 'before'}")
    beyond = len(missing)
    both = sorted(set(runs[0]) & set(runs[1]))
    for kind, names, limit in (
        ("float64", [name for name in both if name.endswith(DOUBLE)], tolerance),
        ("float32", [name for name in both if not name.endswith(DOUBLE)], float32_tolerance),
    ):
        found = sorted((compared(name, runs[0][name], runs[1][name]) for name in names), key=lambda each: -each.worst)
        if not found:
            continue
        over = [each for each in found if not each.worst <= limit]
        echo(f"{kind}: {len(found)} architectures, {len(over)} beyond {limit:.0e} or failed. The worst ten:")
        for each in found[: max(10, len(over))]:
            echo(f"  {each}")
        beyond += len(over)
    for name in both:
        reads = [str(run[name].get("few/read", "")) for run in runs]
        if "" not in reads and reads[0] != reads[1]:
            echo(f"note: {name}: {reads[0]} before, {reads[1]} after")
    echo("The same." if not beyond else f"{beyond} differ.")
    return beyond


def main() -> int:
    """Run either command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    dumping = commands.add_parser("dump", help="write maps, offsets and logits to OUT")
    dumping.add_argument("out", type=Path)
    dumping.add_argument("--names", nargs="+", default=["tiny"], help="tiny, swept, or architectures by name")
    dumping.add_argument("--double", action="store_true", help="run whole models in float64")
    dumping.add_argument("--single", action="store_true", help="with --double: float32 as well")
    dumping.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    dumping.add_argument("--resume", action="store_true", help="keep what OUT holds, and add what is missing")
    comparing = commands.add_parser("compare", help="compare two dumps")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--tolerance", type=float, default=1e-6, help="of float64 rows")
    comparing.add_argument("--float32-tolerance", type=float, default=1e-3, help="of float32 rows")
    args = parser.parse_args()
    if args.command == "compare":
        limits = {"tolerance": args.tolerance, "float32_tolerance": args.float32_tolerance}
        return int(compare(args.before, args.after, **limits) > 0)
    names = [each for name in args.names for each in (listed(name) if name in ("tiny", "swept") else [name])]
    wanted = [name for name in names if args.single or not args.double]
    wanted += [name + DOUBLE for name in names if args.double]
    return int(dump(args.out, wanted, args.jobs, resume=args.resume) > 0)


if __name__ == "__main__":
    sys.exit(main())
