"""camhook's maps beside Captum's attributions, measured, in tables, pictures and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camhook.comparison.comparing import compare
    from camhook.comparison.table import Comparison

__all__ = ["Comparison", "compare"]


def __getattr__(name: str) -> Any:
    """Import Captum when a comparison is first asked for, and not with each of this package's files."""
    if name == "compare":
        from camhook.comparison.comparing import compare

        return compare
    if name == "Comparison":
        from camhook.comparison.table import Comparison

        return Comparison
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
