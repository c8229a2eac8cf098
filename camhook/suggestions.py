"""Names that a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["hint"]


def hint(name: str, known: Collection[str]) -> str:
    """Say which of the known names are near one that is not among them, or else all.

    Examples
    --------
    >>> hint("Grad-CAM", ["layer_grad_cam", "saliency"]), hint("x", ["a", "b"])
    ('Did you mean layer_grad_cam?', 'There are a, b.')
    """
    wanted = name.strip().lower().replace("-", "_").replace(" ", "_")
    near = difflib.get_close_matches(wanted, known) or [each for each in known if wanted and wanted in each]
    return f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(known)}."
