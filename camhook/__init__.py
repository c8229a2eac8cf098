"""Where in the picture did the score come from? Class activation maps for any trained timm classifier.

>>> import timm, camhook
>>> cam = camhook.wrap(timm.create_model("test_resnet"))
>>> print(cam.describe().target_layer)
layer4
"""

from __future__ import annotations

from camhook.adapters import Adapter, Layout, register
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
from camhook.explainer import CAM, Description, wrap
from camhook.results import CAMResult

__all__ = [
    "CAM",
    "Adapter",
    "CAMResult",
    "CamhookError",
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
    "register",
    "wrap",
]
__version__ = "0.1.0"
