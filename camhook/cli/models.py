"""What camhook makes of timm's architectures: every one is built without values, read, and told in a row."""

from __future__ import annotations

import csv
import io
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from typing import Any, Literal, TypeVar

import torch

from camhook.errors import CamhookError

__all__ = ["GIVEN_CLASSES", "Format", "Row", "in_parallel", "read", "rendered", "summary", "survey"]

Format = Literal["table", "json", "csv"]
Asked = TypeVar("Asked")
Told = TypeVar("Told")
Progress = Callable[[Iterator[Any], int], Iterable[Any]]

GIVEN_CLASSES = 10
"""How many classes an architecture is given that has none by itself, for a second row."""


@dataclass(frozen=True)
class Row:
    """What camhook found out about an architecture.

    Attributes
    ----------
    name, family
        The architecture, and the timm module that defines it.
    given_classes
        The ``num_classes`` that it was made with, or None: as it comes.
    reason
        Why no map can be had; empty if one can. Other fields are then None.
    seconds
        What wrapping it took.
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

    One that comes without a classifier has a row with pooling ``"none"``, since only a probe can tell its maps, and a
    second one, made with `GIVEN_CLASSES` classes, where it takes any.

    Parameters
    ----------
    names
        Architectures; default all.
    jobs
        How many processes to use; 1 stays in this one.
    progress
        Is given the results as they come, and how many to expect, and hands them on; such as tqdm.

    Returns
    -------
    list of Row
        Sorted by name.
    """
    import timm

    wanted = list(names) if names is not None else timm.list_models()
    told: Iterator[list[Row]] = (
        rows or [Row(name, reason="The process that looked at it died, most likely for want of memory.")]
        for name, rows in in_parallel(read, wanted, jobs)
    )
    found = [row for rows in (progress(told, len(wanted)) if progress else told) for row in rows]
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

    import camhook

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
        found = camhook.wrap(model).describe().as_dict()
    except CamhookError as error:
        return Row(name, family, given_classes, reason=str(error), seconds=time.perf_counter() - started)
    except Exception as error:  # one architecture must not end the survey of all
        reason = f"{type(error).__name__} (a fault of camhook's): {error}"
        return Row(name, family, given_classes, reason=reason, seconds=time.perf_counter() - started)
    kept = {field.name: found[field.name] for field in fields(Row) if field.name in found}
    return Row(name, family, given_classes, seconds=time.perf_counter() - started, **kept)


def in_parallel(
    function: Callable[[Asked], Told], asked: Sequence[Asked], jobs: int
) -> Iterator[tuple[Asked, Told | None]]:
    """Yield what a function tells of each, as it comes, out of so many processes; None if it took its process down."""
    if jobs == 1:
        yield from ((each, function(each)) for each in asked)
        return
    left = list(asked)
    while left:
        told: list[Asked] = []
        with _pool(jobs) as pool:
            futures = {pool.submit(function, each): each for each in left}
            try:
                for future in as_completed(futures):
                    result = future.result()
                    told.append(futures[future])
                    yield futures[future], result
            except BrokenProcessPool:
                pool.shutdown(wait=True, cancel_futures=True)
        left = [each for each in left if each not in told]
        # Work is taken in order, so what took the pool down is among the first that are left: one pool for each.
        suspects, left = left[: 2 * jobs], left[2 * jobs :]
        yield from ((each, _alone(function, each)) for each in suspects)


def _alone(function: Callable[[Asked], Told], asked: Asked) -> Told | None:
    with _pool(1) as pool:
        try:
            return pool.submit(function, asked).result()
        except BrokenProcessPool:
            return None


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_prepare)


def _prepare() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def rendered(rows: Sequence[Row], form: Format) -> str:
    """Write rows out as a table, JSON or CSV."""
    if form == "json":
        return json.dumps([asdict(row) for row in rows], indent=1)
    if form == "csv":
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(field.name for field in fields(Row))
        writer.writerows([_cell(value) for value in asdict(row).values()] for row in rows)
        return buffer.getvalue().rstrip("\n")
    head = (
        "architecture",
        "input",
        "features",
        "layout",
        "grid",
        "prefix",
        "pooling",
        "tail",
        "passes",
        "feature point",
    )
    lines = [head] + [
        (
            row.title,
            *map(_cell, (row.input_size, row.feature_shape, row.layout, row.grid_size, row.num_prefix_tokens)),
            *map(_cell, (row.pooling, row.tail, row.forward_passes, row.target_layer)),
        )
        for row in rows
        if not row.reason
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def summary(rows: Sequence[Row]) -> str:
    """Count rows by what was found, and list by name what cannot be had."""
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
