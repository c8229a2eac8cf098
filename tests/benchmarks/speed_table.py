"""From samples to summaries and Markdown tables."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["MARKERS", "compact", "footer", "into_readme", "quartiles", "summarised", "table"]

MARKERS = ("<!-- speed -->", "<!-- /speed -->")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third, by linear interpolation."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def summarised(samples: dict[str, Any]) -> dict[str, Any]:
    """Return a row's samples (``seconds``, ``plain``, in pairs) with what they come to."""
    if samples["cannot"] or not samples["seconds"]:
        return {**samples, "pairs": 0}
    ratios = [a / b for a, b in zip(samples["seconds"], samples["plain"], strict=True)]
    low, middle, high = quartiles(ratios)
    return {
        **samples,
        "pairs": len(ratios),
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "median_seconds": statistics.median(samples["seconds"]),
        "median_plain_seconds": statistics.median(samples["plain"]),
    }


def table(report: dict[str, Any]) -> str:
    """Return every row of a report: the ratio to a plain forward pass, its quartiles, seconds, pairs."""
    lines = [
        "| model | batch | tool | classes | ratio to plain | quartiles | seconds | plain | pairs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        head = f"| {row['model']} | {row['batch_size']} | {row['tool']} | {row['classes']} |"
        if not row["pairs"]:
            lines.append(f"{head} cannot: {row['cannot'] or 'not run'} | | | | |")
            continue
        low, high = row["ratio_quartiles"]
        scaled = " (scaled)" if row["scaled"] else ""
        lines.append(
            f"{head} {_number(row['ratio'])}{scaled} | {_number(low)} to {_number(high)} | "
            f"{row['median_seconds']:.3g} | {row['median_plain_seconds']:.3g} | {row['pairs']} |"
        )
    if report.get("memory"):
        lines += ["", *_memory(report["memory"])]
    return "\n".join(lines)


def compact(report: dict[str, Any], batch_size: int = 8) -> str:
    """Return a table of tools by models for one batch size; a cell holds the ratios for one, ten and all classes."""
    rows = [row for row in report["results"] if row["batch_size"] == batch_size]
    models, tools = ([*dict.fromkeys(row[key] for row in rows)] for key in ("model", "tool"))
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        text = "-" if not row["pairs"] else ("~" if row["scaled"] else "") + _number(row["ratio"])
        cells.setdefault((row["tool"], row["model"]), []).append(text)
    plain = {row["model"]: row["median_plain_seconds"] for row in rows if row["pairs"]}

    def cell(tool: str, model: str) -> str:
        texts = cells.get((tool, model), ["-"])
        return "-" if set(texts) == {"-"} else " / ".join(texts)

    lines = [
        f"| time / plain forward, for 1 / 10 / all classes | {' | '.join(models)} |",
        "|---|" + "---|" * len(models),
        *(f"| {tool} | {' | '.join(cell(tool, model) for model in models)} |" for tool in tools if "plain" not in tool),
        f"| plain forward, ms | {' | '.join(f'{plain[m] * 1e3:.0f}' if m in plain else '-' for m in models)} |",
    ]
    return "\n".join(lines) + "\n\n" + footer(report, batch_size)


def footer(report: dict[str, Any], batch_size: int) -> str:
    """Return one line: how it was measured, on what, with which versions."""
    machine, versions = report["machine"], report["versions"]
    pairs = [row["pairs"] for row in report["results"] if row["pairs"] and row["batch_size"] == batch_size]
    span = f"{min(pairs)} to {max(pairs)}" if pairs and min(pairs) < max(pairs) else f"{max(pairs, default=0)}"
    return (
        f"Medians of {span} interleaved pairs, batch {batch_size}; \\~: ten classes measured, scaled linearly to all; "
        f"-: the tool cannot. {machine['device_name']}, {machine['threads']} of {machine['cores']} cores, "
        f"{machine['ram_gib']:.0f} GiB; {', '.join(f'{name} {version}' for name, version in versions.items())}; "
        f"{report['date'][:10]}. `python tests/benchmarks/speed.py`"
    )


def into_readme(text: str, replacement: str) -> str:
    """Return the text with what stands between the markers replaced.

    Raises
    ------
    ValueError
        If the markers are not there once each, in order.
    """
    start, end = map(re.escape, MARKERS)
    found = re.findall(f"{start}.*?{end}", text, flags=re.DOTALL)
    if len(found) != 1 or any(text.count(marker) != 1 for marker in MARKERS):
        raise ValueError(f"{MARKERS[0]} and, after it, {MARKERS[1]} are expected once each; put them where it belongs.")
    return text.replace(found[0], f"{MARKERS[0]}\n{replacement}\n{MARKERS[1]}")


def _number(value: float) -> str:
    """Three digits that say something: 0.998, 1.02, 13.4, 1340."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _memory(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| model | batch | tool | classes | peak MiB | of these maps | ratio to plain, without the maps |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['model']} | {row['batch_size']} | {row['tool']} | {row['classes']} |"
        if row["cannot"]:
            lines.append(f"{head} cannot: {row['cannot']} | | |")
        else:
            ratio = _number(row["ratio"]) if row.get("ratio") else ""
            lines.append(f"{head} {row['peak_mib']:.1f} | {row['maps_mib']:.1f} | {ratio} |")
    return lines
