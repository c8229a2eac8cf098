"""Write a comparison: page, rows, numbers, figure."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from camhook.comparison.attributions import METHODS
from camhook.comparison.report import page
from camhook.comparison.table import Comparison
from camhook.errors import OutputError
from camhook.files import SOFTWARE, check_overwrite, save_png, write_bytes
from camhook.metrics import METRICS

__all__ = ["as_csv", "as_dict", "save"]

_HEADER = ["method", "metric", "better", "mean", "low", "high", "n", "seconds_per_image", "peak_bytes", "control"]
_FILES = ("report.html", "table.csv", "comparison.json", "figure.png")


def save(found: Comparison, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[str]:
    """Write a comparison; see `Comparison.save`."""
    target = Path(path)
    if target.suffix.lower() in _WRITERS and not target.is_dir():
        files = [target]
    elif target.suffix and not target.is_dir():
        endings = ", ".join(_WRITERS)
        raise OutputError(f"{target}: a path that ends in {endings}, or a directory was expected. Choose one of those.")
    else:
        files = [target / name for name in _FILES]
    check_overwrite(files, overwrite=overwrite, kind=",".join(_HEADER))
    try:
        files[0].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The directory {files[0].parent} cannot be made: {error}. Choose another path.") from error
    for file in files:
        _WRITERS[file.suffix.lower()](found, file)
    return [str(file) for file in files]


def as_csv(found: Comparison) -> str:
    """Return the rows as CSV, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for row in found.rows():
        better = "higher" if METRICS[row.metric].higher_is_better else "lower"
        numbers = ["" if math.isnan(value) else repr(value) for value in (row.mean, row.low, row.high)]
        cost = [repr(found.seconds[row.method]), "" if found.memory[row.method] is None else found.memory[row.method]]
        writer.writerow([row.method, row.metric, better, *numbers, row.n, *cost, METHODS[row.method].is_control])
    return text.getvalue()


def as_dict(found: Comparison) -> dict[str, Any]:
    """Return all numbers, remarks and settings in plain types."""
    agreement = found.agreement
    return {
        "software": SOFTWARE,
        "versions": dict(found.versions),
        "model": found.model,
        "settings": dict(found.settings),
        "images": [
            {"name": name, "class": label, "confidence": confidence}
            for name, label, confidence in zip(found.images, found.classes, found.confidence, strict=True)
        ],
        "methods": {
            name: {
                "title": METHODS[name].title,
                "definition": METHODS[name].definition,
                "source": METHODS[name].source,
                "control": METHODS[name].is_control,
                "seconds_per_image": found.seconds[name],
                "peak_bytes": found.memory[name],
                "notes": list(found.notes[name]),
                "values": {each: values.tolist() for each, values in found.values[name].items()},
            }
            for name in found.methods
        },
        "failures": dict(found.failures),
        "metrics": {
            name: {
                "definition": METRICS[name].definition,
                "source": METRICS[name].source,
                "higher_is_better": METRICS[name].higher_is_better,
            }
            for name in found.metrics
        },
        "rows": [
            {key: None if value != value else value for key, value in row._asdict().items()} for row in found.rows()
        ],
        "agreement": {
            "methods": list(agreement.methods),
            "spearman": agreement.spearman.tolist(),
            "overlap": agreement.overlap.tolist(),
        },
    }


def _html(found: Comparison, path: Path) -> None:
    write_bytes(path, page(found).encode())


def _csv(found: Comparison, path: Path) -> None:
    write_bytes(path, as_csv(found).encode())


def _json(found: Comparison, path: Path) -> None:
    write_bytes(path, json.dumps(as_dict(found), indent=1, allow_nan=False).encode())


def _png(found: Comparison, path: Path) -> None:
    save_png(found.figure(), path, overwrite=True)


_WRITERS: dict[str, Callable[[Comparison, Path], None]] = {".html": _html, ".csv": _csv, ".json": _json, ".png": _png}
