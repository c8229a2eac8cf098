"""Suggestions for a misspelt name: "Did you mean ...?"."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["hint"]


def hint(name: str, known: Collection[str], *, count: int = 3, otherwise: str | None = None) -> str:
    """Return a sentence with the known names that are close to a name, or that contain it.

    Parameters
    ----------
    name
        What was asked for. Case, hyphens and underscores do not count.
    known
        The names that exist.
    count
        How many to suggest at most.
    otherwise
        The sentence where none is close; default a list of all known names.

    Examples
    --------
    >>> hint("Grad-CAM", ["layer_grad_cam", "saliency"]), hint("x", ["a", "b"])
    ('Did you mean layer_grad_cam?', 'There are a, b.')
    """
    wanted, names = _normalised(name), {_normalised(each): each for each in known}
    near = difflib.get_close_matches(wanted, names, n=count)
    near = near or [each for each in names if wanted and wanted in each][:count]
    if near:
        return f"Did you mean {', '.join(names[each] for each in near)}?"
    return f"There are {', '.join(known)}." if otherwise is None else otherwise


def _normalised(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")
