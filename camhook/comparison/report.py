"""A comparison as one page that needs nothing else: pictures, tables, and how each number is defined."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image
from torch import Tensor

from camhook.comparison.attributions import METHODS
from camhook.comparison.table import Comparison
from camhook.files import HTML_GENERATOR
from camhook.metrics import METRICS

__all__ = ["page"]

_SHOWN = 6  # images

_STYLE = """
:root { --ink: #1b1f24; --muted: #667078; --line: #d9dee3; --good: #dff3e4; --weak: #a3abb2; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1500px; padding: 24px 32px 64px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 8px; } h3 small, .muted { color: var(--muted); font-weight: normal; }
p { max-width: 80ch; margin: 6px 0; } .scroll { overflow-x: auto; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 12px; }
figure { margin: 0; } figure img { width: 100%; display: block; border-radius: 3px; }
.strip img { image-rendering: auto; } .control img { outline: 2px dashed var(--weak); outline-offset: -2px; }
figcaption { font-size: 12.5px; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere; }
figcaption span { display: block; color: var(--muted); }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--ink); }
.numbers td { text-align: right; white-space: nowrap; } .numbers thead th + th { text-align: right; }
.numbers tbody th { position: sticky; left: 0; background: var(--paper); font-weight: normal; white-space: nowrap; }
.numbers small { display: block; color: var(--muted); font-size: 11px; }
tr.first-control th, tr.first-control td { border-top: 2px solid var(--ink); } tr.is-control { color: var(--muted); }
td.best { background: var(--good); font-weight: 600; } td.weak { color: var(--weak); } td.weak small { color: inherit; }
.heat td { text-align: center; padding: 4px 6px; min-width: 42px; border: 1px solid var(--paper); }
.heat thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; font-weight: normal; border: 0;
  padding: 6px 4px; } .heat tbody th { font-weight: normal; white-space: nowrap; border: 0; padding: 2px 8px 2px 0; }
pre { background: #f5f7f8; padding: 12px; overflow-x: auto; font-size: 12.5px; border-radius: 3px; }
ul { padding-left: 20px; margin: 6px 0; } li { max-width: 100ch; margin: 2px 0; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def page(found: Comparison) -> str:
    """Return the page as HTML: no script, nothing that is loaded from elsewhere."""
    title = f"{found.model}: explanations side by side"
    count, methods = len(found.images), [name for name in found.methods if not METHODS[name].is_control]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="muted">{count} image{"s" * (count != 1)}, {len(methods)} methods and '
        f"{len(found.methods) - len(methods)} controls, {len(found.metrics)} metrics. Made by camhook "
        f"{escape(found.versions['camhook'])}.</p>",
        _measured(found),
        _remarks(found),
        _pictures(found),
        _agreement(found),
        _definitions(found),
        _circumstances(found),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{HTML_GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _pictures(found: Comparison) -> str:
    parts = [
        "<h2>Pictures</h2>",
        "<p>Red speaks for the class, blue against it; saliency and SmoothGrad have no sign. Every picture has a scale "
        "of its own, since methods have different units: full colour is the 99th percentile of the map's absolute "
        "values, written below it. Dashed: controls, which know nothing of the model.</p>",
    ]
    for index in range(min(len(found.images), _SHOWN)):
        label, confidence = found.classes[index], found.confidence[index]
        parts.append(f"<h3>{escape(found.images[index])} <small>{escape(label)}, P {confidence:.3f}</small></h3>")
        figures = [_figure(found.pictures[index], "what the model saw", label)]
        for name in found.methods:
            scale = f"full colour {found.scale(name, index):.2g}"
            figures.append(
                _figure(found.overlay(name, index), METHODS[name].title, scale, control=METHODS[name].is_control)
            )
        parts.append(f'<div class="strip">{"".join(figures)}</div>')
    if len(found.images) > _SHOWN:
        parts.append(f"<p>{len(found.images) - _SHOWN} more images are in the numbers only.</p>")
    return "\n".join(parts)


def _figure(picture: Image.Image, title: str, line: str, *, control: bool = False) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    data = base64.b64encode(stream.getvalue()).decode()
    kind = ' class="control"' if control else ""
    return (
        f'<figure{kind}><img src="data:image/jpeg;base64,{data}" alt="{escape(title)}">'
        f"<figcaption>{escape(title)}<span>{escape(line)}</span></figcaption></figure>"
    )


def _measured(found: Comparison) -> str:
    """Return the table of methods and metrics."""
    heads = [f"<th>{_words(each)} {'↑' if METRICS[each].higher_is_better else '↓'}</th>" for each in found.metrics]
    head = "<tr><th>method</th><th>beats all controls</th>" + "".join(heads) + "<th>s / image</th><th>peak MB</th></tr>"
    rows, controls = [], 0
    for name in found.methods:
        is_control = METHODS[name].is_control
        kind = "is-control first-control" if is_control and not controls else "is-control" if is_control else ""
        controls += is_control
        judged = [found.beats_controls(name, each) for each in found.metrics]
        known = [each for each in judged if each is not None]
        cells = [f"<td>{'' if is_control else f'{sum(known)} of {len(known)}'}</td>"]
        for each, beats in zip(found.metrics, judged, strict=True):
            style = "best" if name in found.best(each) else "weak" if beats is False else ""
            cells.append(f'<td class="{style}">{_cell(found, name, each)}</td>')
        memory = found.memory[name]
        cells += [
            f"<td>{found.seconds[name]:.2f}</td>",
            f"<td>{'&ndash;' if memory is None else f'{memory / 1e6:.0f}'}</td>",
        ]
        rows.append(f'<tr class="{kind}"><th>{escape(METHODS[name].title)}</th>{"".join(cells)}</tr>')
    return (
        "<h2>Measured</h2><p>Mean over images, below it the 95% bootstrap interval of the mean. ↑ higher is better, ↓ "
        "lower is better. Green: the best of the methods. Grey: no better than the best control, so that this number "
        "says nothing for the method. &ndash;: the method makes no such claim.</p>"
        f'<div class="scroll"><table class="numbers"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"<p class='muted'>{_sizes(found)}</p>"
    )


def _cell(found: Comparison, name: str, metric: str) -> str:
    row = found.row(name, metric)
    if math.isnan(row.mean):
        return "&ndash;"
    interval = "" if math.isnan(row.low) else f"<small>{row.low:.2g} to {row.high:.2g}</small>"
    return f"{row.mean:.3g}{interval}"


def _sizes(found: Comparison) -> str:
    """Say how many values are behind the means."""
    counts: dict[int, list[str]] = {}
    for each in found.metrics:
        largest = max((found.row(name, each).n for name in found.methods), default=0)
        counts.setdefault(largest, []).append(_words(each))
    if len(counts) == 1:
        return f"n = {next(iter(counts))} for every mean."
    return "; ".join(f"n = {count}: {', '.join(names)}" for count, names in counts.items()) + "."


def _remarks(found: Comparison) -> str:
    failed = [f"<li><b>{escape(METHODS[n].title)}</b>: {escape(reason)}</li>" for n, reason in found.failures.items()]
    noted = [
        f"<li><b>{escape(METHODS[name].title)}</b>: {escape(' '.join(notes))}</li>"
        for name, notes in found.notes.items() if notes
    ]  # fmt: skip
    parts = ["<h2>Remarks</h2>"]
    parts += (
        ["<p>Not possible on this model, with the reason given:</p>", f"<ul>{''.join(failed)}</ul>"] if failed else []
    )
    parts += [f"<ul>{''.join(noted)}</ul>"] if noted else []
    return "\n".join(parts) if len(parts) > 1 else ""


def _agreement(found: Comparison) -> str:
    names, spearman, overlap = found.agreement
    titles = [METHODS[name].title for name in names]
    return (
        "<h2>How alike the maps are</h2><p>Mean over images, on maps averaged down to 56 x 56 positions. "
        "Agreement is no proof: methods may share a mistake.</p>"
        "<h3>Spearman's rank correlation</h3>" + _heat(titles, spearman)
        + "<h3>Intersection over union of the strongest 20%</h3>" + _heat(titles, overlap)
        + "<p class='muted'>Two random maps: 0 and 0.11.</p>"
    )  # fmt: skip


def _heat(titles: Sequence[str], values: Tensor) -> str:
    """Return a matrix as a table: blue from 0 to 1, red below 0."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = []
    for title, line in zip(titles, values.tolist(), strict=True):
        cells = []
        for value in line:
            hue = "35, 90, 200" if value >= 0 else "200, 50, 40"
            cells.append(f'<td style="background: rgba({hue}, {0.75 * min(abs(value), 1):.2f})">{value:.2f}</td>')
        rows.append(f"<tr><th>{escape(title)}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="heat"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _definitions(found: Comparison) -> str:
    metrics = [
        (_words(name), "higher" if each.higher_is_better else "lower", each.definition, each.source)
        for name, each in ((name, METRICS[name]) for name in found.metrics)
    ]  # fmt: skip
    methods = [(METHODS[n].title, METHODS[n].definition, METHODS[n].source) for n in (*found.methods, *found.failures)]
    return (
        "<h2>What the numbers mean</h2>" + _table(("metric", "better", "definition", "source"), metrics)
        + "<h2>What the methods do</h2>" + _table(("method", "definition", "source"), methods)
    )  # fmt: skip


def _circumstances(found: Comparison) -> str:
    settings = [(name, value) for name, value in found.settings.items() if value]
    versions = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    return (
        "<h2>Settings</h2>" + _table(("", ""), settings)
        + "<h2>The model's map</h2>" + f"<pre>{escape(found.explained)}</pre>"
        + f"<h2>Versions</h2><p>{escape(versions)}</p>"
    )  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _words(name: str) -> str:
    return name.replace("_", " ")
