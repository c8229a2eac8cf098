"""Types of the metrics' arguments: maps, targets, classifiers, explanations, baselines, boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt
from torch import Tensor, nn

__all__ = ["Baseline", "Boxes", "Classifier", "Explain", "Explainer", "Maps", "Masks", "Target"]

Maps: TypeAlias = Tensor | npt.ArrayLike
"""(B, H, W), signed."""
Target: TypeAlias = int | Sequence[int] | Tensor | npt.ArrayLike
"""One class index for all images, or one per image, (B,)."""
Classifier: TypeAlias = Callable[[Tensor], Tensor]
"""Images (N, C, H, W), as the model takes them, to logits (N, K)."""
Explain: TypeAlias = Callable[[Tensor, Tensor], Maps]
"""Images (N, C, H, W) and one target per image (N,) to maps (N, H, W)."""
Explainer: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Maps]
"""A model, images (N, C, H, W) and targets (N,) to maps (N, H, W)."""
Baseline: TypeAlias = float | Tensor
"""Replaces removed pixels, in the images' units: a number, a colour (C, 1, 1) or images."""
Boxes: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[npt.ArrayLike]
"""Per image one (4,) or several (n, 4): left, top, right, bottom in the map's pixels, right and bottom exclusive."""
Masks: TypeAlias = Tensor | npt.ArrayLike
"""Object masks, boolean (B, H, W)."""
