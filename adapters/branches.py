"""Scores read from several places at once: EfficientViM's stages, CoaT's scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from camhook.adapters.base import Adapter, register
from camhook.adapters.mean import token_layouts

__all__ = ["COAT", "EFFICIENTVIM"]


def _is_from(name: str) -> Any:
    return lambda model: any(kind.__module__ == f"timm.models.{name}" for kind in type(model).__mro__)


def _mixers(model: nn.Module) -> Sequence[str]:
    """Each stage's last mixer pools its input into hidden states that a head of their own reads; the last map too."""
    stages: Any = model.get_submodule("stages")
    mixers = [f"input of stages.{i}.blocks.{len(stage.blocks) - 1}.mixer" for i, stage in enumerate(stages)]
    return [*mixers, f"norm.{len(stages)}"]


def _scales(model: nn.Module) -> Sequence[str]:
    """Class tokens of the earlier stages are dropped; without parallel blocks, only the last stage's are read."""
    parallel = getattr(model, "parallel_blocks", None) is not None
    return ["serial_blocks2", "serial_blocks3", "serial_blocks4", "parallel_blocks"] if parallel else ["serial_blocks4"]


EFFICIENTVIM = register(
    Adapter("efficientvim", layouts=token_layouts, applies=_is_from("efficientvim"), target_layer=_mixers)
)
COAT = register(Adapter("coat", layouts=token_layouts, applies=_is_from("coat"), reads=_scales))
