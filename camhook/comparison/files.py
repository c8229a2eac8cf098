"""Files of a comparison: HTML report, CSV of the rows, JSON of all numbers, PNG figure."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from camhook.comparison.methods import METHODS
from camhook.comparison.report import page
from camhook.comparison.table import ComparisonTable
from camhook.errors import OutputError
from camhook.files import SOFTWARE, check_overwrite, save_png, write_bytes
from camhook.metrics import METRICS

__all__ = ["as_csv", "as_dict", "save"]

_HEADER = ["method", "metric", "better", "mean", "low", "high", "n", "seconds_per_image", "peak_bytes", "control"]
_FILES = ("report.html", "table.csv", "comparison.json", "figure.png")


def save(table: ComparisonTable, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[str]:
    """Write a comparison to files; see `camhook.Comparison.save`."""
    target = Path(path)
    if target.suffix.lower() in _WRITERS and not target.is_dir():
        files = [target]
    elif target.suffix and not target.is_dir():
        endings = ", ".join(_WRITERS)
        raise OutputError(f"Found the path {target}, expected one that ends in {endings}, or a directory.")
    else:
        files = [target / name for name in _FILES]
    check_overwrite(files, overwrite=overwrite, kind=",".join(_HEADER))
    try:
        files[0].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The directory {files[0].parent} cannot be made: {error}. Choose another path.") from error
    for file in files:
        _WRITERS[file.suffix.lower()](table, file)
    return [str(file) for file in files]


def as_csv(table: ComparisonTable) -> str:
    """Return the rows as CSV with a header; what is undefined or was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for row in table.rows():
        better = "higher" if METRICS[row.metric].higher_is_better else "lower"
        numbers = ["" if math.isnan(value) else repr(value) for value in (row.mean, row.low, row.high)]
        cost = [repr(table.seconds[row.method]), table.memory[row.method]]  # csv writes None as an empty cell
        writer.writerow([row.method, row.metric, better, *numbers, row.n, *cost, METHODS[row.method].is_control])
    return text.getvalue()


def as_dict(table: ComparisonTable) -> dict[str, Any]:
    """Return all numbers, notes and settings as types of JSON."""
    agreement = table.agreement
    return {
        "software": SOFTWARE,
        "versions": dict(table.versions),
        "model": table.model,
        "settings": dict(table.settings),
        "images": [
            {"name": name, "class": label, "confidence": confidence}
            for name, label, confidence in zip(table.images, table.classes, table.confidence, strict=True)
        ],
        "methods": {
            name: {
                **{key: getattr(METHODS[name], key) for key in ("title", "definition", "source")},
                "control": METHODS[name].is_control,
                "seconds_per_image": table.seconds[name],
                "peak_bytes": table.memory[name],
                "notes": list(table.notes[name]),
                "values": {each: values.tolist() for each, values in table.values[name].items()},
            }
            for name in table.methods
        },
        "failures": dict(table.failures),
        "metrics": {
            name: {key: getattr(METRICS[name], key) for key in ("definition", "source", "higher_is_better")}
            for name in table.metrics
        },
        "rows": [
            {key: None if value != value else value for key, value in row._asdict().items()} for row in table.rows()
        ],
        "agreement": {
            "methods": list(agreement.methods),
            "spearman": agreement.spearman.tolist(),
            "overlap": agreement.overlap.tolist(),
        },
    }


_WRITERS: dict[str, Callable[[ComparisonTable, Path], None]] = {
    ".html": lambda table, path: write_bytes(path, page(table).encode()),
    ".csv": lambda table, path: write_bytes(path, as_csv(table).encode()),
    ".json": lambda table, path: write_bytes(path, json.dumps(as_dict(table), indent=1, allow_nan=False).encode()),
    ".png": lambda table, path: save_png(table.figure(), path, overwrite=True),
}
