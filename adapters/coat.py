"""Adapter for CoaT, whose class tokens attend to patches at several scales."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from camhook.adapters.base import Adapter, register
from camhook.adapters.layouts import token_layouts
from camhook.adapters.timm import is_from_module

__all__ = ["COAT"]


def _scales(model: nn.Module) -> Sequence[str]:
    """Return the stages whose class tokens reach the logits: the last one, or with parallel blocks the last three."""
    parallel = getattr(model, "parallel_blocks", None) is not None
    return ["serial_blocks2", "serial_blocks3", "serial_blocks4", "parallel_blocks"] if parallel else ["serial_blocks4"]


COAT = register(Adapter("coat", layouts=token_layouts, applies=is_from_module("coat"), reads=_scales))
