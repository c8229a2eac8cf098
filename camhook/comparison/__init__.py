"""Comparison of attribution methods: camhook's maps and Captum's attributions, measured by the same metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camhook.comparison.comparing import Comparison, compare

__all__ = ["Comparison", "compare"]


def __getattr__(name: str) -> Any:
    """Import Captum when a comparison is first asked for, and not with each module of this package."""
    if name in __all__:
        from camhook.comparison import comparing

        return getattr(comparing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
