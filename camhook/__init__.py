"""Where in the picture did the score come from? Class activation maps for any trained timm classifier.

>>> import timm, camhook
>>> cam = camhook.wrap(timm.create_model("test_resnet"))
>>> print(cam.describe().target_layer)
layer4
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from camhook.adapters import Adapter, Layout, register
from camhook.cam import CAM
from camhook.engine.description import Description
from camhook.errors import (
    CamhookError,
    CompletenessError,
    DependencyError,
    HookError,
    ImageError,
    LayoutError,
    OutputError,
    ProbeMismatchError,
    TargetError,
    UnsupportedModelError,
)
from camhook.results.result import CAMResult
from camhook.wrapping import wrap

if TYPE_CHECKING:
    from camhook.comparison import Comparison, compare

__all__ = [
    "CAM",
    "Adapter",
    "CAMResult",
    "CamhookError",
    "Comparison",
    "CompletenessError",
    "DependencyError",
    "Description",
    "HookError",
    "ImageError",
    "Layout",
    "LayoutError",
    "OutputError",
    "ProbeMismatchError",
    "TargetError",
    "UnsupportedModelError",
    "compare",
    "register",
    "wrap",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the comparison, and Captum with it, when it is first asked for."""
    if name in ("Comparison", "compare"):
        from camhook import comparison

        return getattr(comparison, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
