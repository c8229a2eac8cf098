"""Adapter for EfficientViM, whose logits are a sum over heads at every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from camhook.adapters.base import Adapter, register
from camhook.adapters.layouts import token_layouts
from camhook.adapters.timm import is_from_module

__all__ = ["EFFICIENTVIM"]


def _mixers(model: nn.Module) -> Sequence[str]:
    """Return the input of each stage's last mixer, which pools it for a head of its own, and the last feature map."""
    stages: Any = model.get_submodule("stages")
    mixers = [f"input of stages.{i}.blocks.{len(stage.blocks) - 1}.mixer" for i, stage in enumerate(stages)]
    return [*mixers, f"norm.{len(stages)}"]


EFFICIENTVIM = register(
    Adapter("efficientvim", layouts=token_layouts, applies=is_from_module("efficientvim"), target_layer=_mixers)
)
