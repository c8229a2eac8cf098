"""HTML report of a comparison: one self-contained page with tables, maps and definitions, which opens offline."""

from __future__ import annotations

import base64
import io
import math

import jinja2
from PIL import Image

from camhook.comparison.methods import METHODS
from camhook.comparison.table import ComparisonTable
from camhook.files import HTML_GENERATOR
from camhook.metrics import METRICS

__all__ = ["page"]

_SHOWN = 6  # images


def page(table: ComparisonTable) -> str:
    """Return the report as HTML, without scripts or anything loaded from elsewhere.

    The template is ``templates/report.html``; every text is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("camhook.comparison"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"data_uri": _data_uri, "words": _words}
    environment.tests["nan"] = math.isnan
    return environment.get_template("report.html").render(
        table=table,
        generator=HTML_GENERATOR,
        methods=METHODS,
        metrics=METRICS,
        controls=[name for name in table.methods if METHODS[name].is_control],
        beaten={name: _beaten(table, name) for name in table.methods},
        sizes=_sizes(table),
        shown=min(len(table.images), _SHOWN),
        has_memory=any(memory is not None for memory in table.memory.values()),
    )


def _data_uri(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _beaten(table: ComparisonTable, name: str) -> str:
    """Count the metrics by which a method is better than all controls; empty for a control."""
    judged = [table.beats_controls(name, each) for each in table.metrics]
    known = [each for each in judged if each is not None]
    return "" if METHODS[name].is_control else f"{sum(known)} of {len(known)}"


def _sizes(table: ComparisonTable) -> str:
    """Describe how many values each mean is taken over."""
    counts: dict[int, list[str]] = {}
    for each in table.metrics:
        largest = max((table.row(name, each).n for name in table.methods), default=0)
        counts.setdefault(largest, []).append(_words(each))
    if len(counts) == 1:
        return f"n = {next(iter(counts))} for every mean."
    return "; ".join(f"n = {count}: {', '.join(names)}" for count, names in counts.items()) + "."
