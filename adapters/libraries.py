"""What a model says of itself, whichever library it comes from: class names and input size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["class_names_of", "image_size_of"]

Size = tuple[int, int]


def class_names_of(given: Any) -> dict[int, str]:
    """Return the class names, by index, that come with torchvision weights or with a transformers model; may be empty.

    Examples
    --------
    >>> class_names_of(nn.Linear(3, 2))
    {}
    """
    if isinstance(meta := getattr(given, "meta", None), Mapping):
        return dict(enumerate(meta.get("categories") or ()))
    names = getattr(getattr(given, "config", None), "id2label", None)
    if not isinstance(names, Mapping):
        return {}
    named = {int(index): str(name) for index, name in names.items()}
    return {} if all(name == f"LABEL_{index}" for index, name in named.items()) else named


def image_size_of(model: nn.Module) -> Size | None:
    """Return the (height, width) that a transformers or torchvision model was configured for, if it says so."""
    config = getattr(model, "config", None)
    for holder in (model, config, getattr(config, "vision_config", None)):
        size = getattr(holder, "image_size", None)
        if isinstance(size, int) and not isinstance(size, bool):
            return size, size
        if isinstance(size, tuple | list) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None
