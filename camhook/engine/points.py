"""Feature points: which tensor of the forward pass is read; shapes of tensors without their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = ["FeaturePoint", "Shape", "shapes_of"]


@dataclass(frozen=True)
class FeaturePoint:
    """The tensor that a map is read from: what goes into, or comes out of, one call of one module."""

    module: str
    side: Literal["input", "output"] = "output"
    call: int = 0
    overwritten: bool = False
    """A later step changes the tensor in place, so it has to be copied when it is captured."""

    def __str__(self) -> str:
        name = self.module or "(the model itself)"
        return name if self.side == "output" else f"input of {name}"


@dataclass(frozen=True)
class Shape:
    """What is known of a tensor without its values."""

    size: tuple[int, ...]
    dtype: torch.dtype


def shapes_of(output: Any) -> Any:
    """Return what a module gave, with a `Shape` for each tensor in it."""
    return tree_map(lambda leaf: Shape(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf, output)
