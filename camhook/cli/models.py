"""Commands ``describe`` and ``models``: how one model, or any of timm's architectures, is read."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import torch

from camhook.cli.loading import create, load_model, unknown_architecture
from camhook.cli.options import model_options
from camhook.errors import CamhookError, OutputError
from camhook.text_tables import text_table
from camhook.wrapping import wrap

__all__ = ["GIVEN_CLASSES", "Row", "describe", "in_parallel", "models", "read", "rendered", "summary", "survey"]

Format = Literal["table", "json", "csv"]
Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[Iterator[Any], int], Iterable[Any]]

GIVEN_CLASSES = 10
"""The ``num_classes`` of the second row of an architecture that comes without a classifier."""


@click.command()
@click.argument("model")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def describe(model: str, checkpoint: str | None, num_classes: int | None, as_json: bool) -> None:
    """Say where and how MODEL's map is read: layer, layout, grid, pooling, tail. Its weights are not needed."""
    has_weights = checkpoint is not None or model == "demo"
    made = load_model(model, checkpoint, num_classes) if has_weights else create(model, num_classes=num_classes)
    found = wrap(made).describe()
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))


@click.command()
@click.argument("pattern", default="*")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option("--jobs", type=click.IntRange(1), help="How many processes; default one for each core.")
def models(pattern: str, form: Format, output: Path | None, overwrite: bool, jobs: int | None) -> None:
    """List how camhook reads timm's architectures: all, or those whose name matches PATTERN.

    PATTERN may hold wildcards (*, ?); without any, it is a name or part of one. No weights are needed. An architecture
    that comes without a classifier has pooling "none", and a second row, made with ten classes, where it takes any.
    """
    import timm
    from tqdm import tqdm

    if output is not None and output.exists() and not overwrite:
        raise OutputError(f"{output} is there already. Pass --overwrite, or another --output.")
    names = timm.list_models(pattern) or timm.list_models(f"*{pattern}*")
    if not names:
        raise unknown_architecture(pattern)

    def progress(rows: Iterator[Any], total: int) -> Iterable[Any]:
        shown: Iterable[Any] = tqdm(rows, total=total, unit="model", file=sys.stderr)
        return shown

    rows = survey(names, min(jobs or os.cpu_count() or 1, len(names)), progress=progress)
    text = rendered(rows, form)
    if output is None:
        click.echo(text)
    else:
        try:
            output.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{output} cannot be written: {error}. Pass another --output.") from error
    click.echo(("\n" if output is None else "") + summary(rows), err=output is None and form != "table")


@dataclass(frozen=True)
class Row:
    """How camhook reads one architecture.

    Attributes
    ----------
    name, family
        The architecture, and the timm module that defines it.
    given_classes
        The ``num_classes`` that it was made with; None for timm's default.
    reason
        Why there is no map, else empty. Other fields are then None.
    seconds
        Time that `wrap` took.
    others
        See `Description`.
    """

    name: str
    family: str = ""
    given_classes: int | None = None
    num_classes: int | None = None
    input_size: tuple[int, int] | None = None
    layout: str | None = None
    feature_shape: tuple[int, ...] | None = None
    grid_size: tuple[int, int] | None = None
    num_prefix_tokens: int | None = None
    pooling: str | None = None
    tail: str | None = None
    forward_passes: int | None = None
    target_layer: str | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """The name, and what the model was made with besides."""
        return self.name if self.given_classes is None else f"{self.name} (num_classes={self.given_classes})"


def survey(names: Sequence[str] | None = None, jobs: int = 1, *, progress: Progress | None = None) -> list[Row]:
    """Wrap architectures of timm on the meta device, in parallel.

    One that comes without a classifier has a row with pooling ``"none"``, since its maps need a probe, and a second
    row, made with `GIVEN_CLASSES` classes, where it takes any.

    Parameters
    ----------
    names
        Architectures; default all.
    jobs
        Number of processes; 1 uses the current one.
    progress
        Wraps the iterator of results, given their number; such as tqdm.

    Returns
    -------
    list of Row
        Sorted by name.
    """
    import timm

    wanted = list(names) if names is not None else timm.list_models()
    results: Iterator[list[Row]] = (
        rows or [Row(name, reason="The process that looked at it died, most likely for want of memory.")]
        for name, rows in in_parallel(read, wanted, jobs)
    )
    found = [row for rows in (progress(results, len(wanted)) if progress else results) for row in rows]
    return sorted(found, key=lambda row: (row.name, row.given_classes or 0))


def read(name: str) -> list[Row]:
    """Return the row of one architecture, or two for one without a classifier."""
    row = _row(name, None)
    if row.pooling not in (None, "none"):
        return [row]
    given = _row(name, GIVEN_CLASSES)
    return [row, given] if given.pooling not in (None, "none") else [row]


def _row(name: str, given_classes: int | None) -> Row:
    import timm

    options = {} if given_classes is None else {"num_classes": given_classes}
    started = time.perf_counter()
    try:
        with torch.device("meta"):
            model = timm.create_model(name, **options)
    except Exception as error:  # whatever an architecture's code may raise is the reason why it cannot be had
        reason = f"timm could not make it: {type(error).__name__}: {error}"
        return Row(name, given_classes=given_classes, reason=reason)
    family = timm.models.model_entrypoint(name).__module__.removeprefix("timm.models.")
    started = time.perf_counter()
    try:
        found = wrap(model).describe().as_dict()
    except CamhookError as error:
        return Row(name, family, given_classes, reason=str(error), seconds=time.perf_counter() - started)
    except Exception as error:  # one architecture must not end the survey of all
        reason = f"{type(error).__name__} (a fault of camhook's): {error}"
        return Row(name, family, given_classes, reason=reason, seconds=time.perf_counter() - started)
    kept = {field.name: found[field.name] for field in fields(Row) if field.name in found}
    return Row(name, family, given_classes, seconds=time.perf_counter() - started, **kept)


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[Item, Result | None]]:
    """Yield each item with the function's result, as they complete in ``jobs`` processes; None if its process died."""
    if jobs == 1:
        yield from ((item, function(item)) for item in items)
        return
    left = list(items)
    while left:
        done: list[Item] = []
        with _pool(jobs) as pool:
            futures = {pool.submit(function, item): item for item in left}
            try:
                for future in as_completed(futures):
                    result = future.result()
                    done.append(futures[future])
                    yield futures[future], result
            except BrokenProcessPool:
                pool.shutdown(wait=True, cancel_futures=True)
        left = [item for item in left if item not in done]
        # Work is taken in order, so what took the pool down is among the first that are left: one pool for each.
        suspects, left = left[: 2 * jobs], left[2 * jobs :]
        yield from ((item, _alone(function, item)) for item in suspects)


def _alone(function: Callable[[Item], Result], item: Item) -> Result | None:
    with _pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return None


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_prepare)


def _prepare() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


_COLUMNS = {
    "architecture": "title",
    "input": "input_size",
    "features": "feature_shape",
    "layout": "layout",
    "grid": "grid_size",
    "prefix": "num_prefix_tokens",
    "pooling": "pooling",
    "tail": "tail",
    "passes": "forward_passes",
    "feature point": "target_layer",
}


def rendered(rows: Sequence[Row], form: Format) -> str:
    """Format rows as a table (of those that have a map), JSON or CSV."""
    if form == "json":
        return json.dumps([asdict(row) for row in rows], indent=1)
    if form == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        writer.writerows([_cell(value) for value in asdict(row).values()] for row in rows)
        return buffer.getvalue().rstrip("\n")
    mapped = [row for row in rows if not row.reason]
    return text_table([list(_COLUMNS), *([_cell(getattr(row, name)) for name in _COLUMNS.values()] for row in mapped)])


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def summary(rows: Sequence[Row]) -> str:
    """Count rows by layout, pooling, tail and passes, and list the architectures that cannot be had."""
    failed = [row for row in rows if row.reason]
    had = [row for row in rows if not row.reason]
    names, lost = {row.name for row in rows}, {row.name for row in failed}
    own = sum(row.pooling != "none" for row in had if row.given_classes is None)
    given = sum(row.given_classes is not None for row in had)
    lines = [
        f"{len(names)} architectures: {own} with a classifier of their own; {len(names) - own - len(lost)} without, "
        f"{given} of which take one (num_classes={GIVEN_CLASSES}); {len(lost)} cannot be had."
    ]
    for title, kind in (
        ("layout", lambda row: row.layout),
        ("pooling/tail", lambda row: f"{row.pooling}/{row.tail}"),
        ("passes", lambda row: str(row.forward_passes)),
    ):
        counts = Counter(map(kind, had)).most_common()
        lines.append(f"{title}: " + ", ".join(f"{name} {count}" for name, count in counts))
    lines += [f"cannot be had: {row.title}: {row.reason}" for row in failed]
    return "\n".join(lines)
