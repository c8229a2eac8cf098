"""Text tables: rows of cells as lines of aligned columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["text_table"]


def text_table(rows: Iterable[Sequence[object]], *, align: str = "l", indent: str = "") -> str:
    """Format rows as lines of aligned columns, two spaces apart, without trailing blanks.

    Parameters
    ----------
    rows
        Equally long rows of cells, a header first if there is one; cells are passed through `str`.
    align
        ``"l"`` (left) or ``"r"`` (right) for each column; the last letter holds for all columns that follow.
    indent
        Written in front of each line.

    Raises
    ------
    ValueError
        The rows differ in length.

    Examples
    --------
    >>> print(text_table([("method", "mean"), ("cam", 0.25), ("saliency", 11)], align="lr"))
    method    mean
    cam       0.25
    saliency    11
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = align.ljust(len(widths), align[-1])[: len(widths)]
    lines = (
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        )
        for row in cells
    )
    return "\n".join((indent + line).rstrip() for line in lines)
