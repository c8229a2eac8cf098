"""camhook's maps beside Captum's attributions, measured, in tables, pictures and a page."""

from camhook.comparison.comparing import compare
from camhook.comparison.table import Comparison

__all__ = ["Comparison", "compare"]
