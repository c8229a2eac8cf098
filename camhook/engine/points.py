"""Feature points: which tensor of the forward pass is read; shapes of tensors without their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from camhook.errors import LayoutError

__all__ = ["FeaturePoint", "Shape", "layer_names", "shapes_of"]


@dataclass(frozen=True)
class FeaturePoint:
    """One tensor of the forward pass: input or output of the n-th call of a module."""

    module: str
    side: Literal["input", "output"] = "output"
    call: int = 0
    overwritten: bool = False
    """A later operation changes the tensor in place, so it has to be copied when it is captured."""

    def __str__(self) -> str:
        name = self.module or "(the model itself)"
        return name if self.side == "output" else f"input of {name}"


@dataclass(frozen=True)
class Shape:
    """Size and dtype of a tensor."""

    size: tuple[int, ...]
    dtype: torch.dtype


def shapes_of(output: Any) -> Any:
    """Return what a module returned, with a `Shape` for each tensor in it."""
    return tree_map(lambda leaf: Shape(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf, output)


def layer_names(model: nn.Module, target_layer: str | nn.Module | Sequence[str | nn.Module] | None) -> list[str]:
    """Return the names of target layers, which may be given as modules.

    Raises
    ------
    LayoutError
        If one is no module of the model, or none is given.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    >>> layer_names(model, model[1]), layer_names(model, ["0", "input of 1"]), layer_names(model, None)
    (['1'], ['0', 'input of 1'], [])
    """
    if target_layer is None:
        return []
    layers = [target_layer] if isinstance(target_layer, str | nn.Module) else target_layer
    if not isinstance(layers, list | tuple | nn.ModuleList) or not layers:
        raise LayoutError(
            f"target_layer={target_layer!r}: the name of a layer, a module of the model, or a list of these was "
            "expected."
        )
    return [_layer_name(model, layer) for layer in layers]


def _layer_name(model: nn.Module, layer: str | nn.Module) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, nn.Module):
        name: str | None = next((name for name, module in modules.items() if module is layer), None)
        if name is None:
            raise LayoutError(
                f"target_layer={type(layer).__name__}(...) is not a module of the wrapped model. Pass one of "
                "model.modules(), or its name."
            )
        return name
    if not isinstance(layer, str) or layer.removeprefix("input of ") not in modules:
        raise LayoutError(
            f"target_layer={layer!r}: the model has no module of that name. "
            "Expected one of the names that model.named_modules() lists."
        )
    return layer
