"""What timm says of its models: configuration, classifier, preprocessing, class names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["has_no_head", "head_names", "is_encoder", "is_from_module", "model_name", "own_config"]


def has_no_head(model: nn.Module) -> bool:
    """Tell whether a timm model was made without a classifier."""
    if getattr(model, "num_classes", None) == 0:
        return True
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if callable(get_classifier) else None
    parts: list[Any] = list(classifier) if isinstance(classifier, tuple | list | nn.ModuleList) else [classifier]
    return bool(parts) and all(isinstance(part, nn.Identity) for part in parts)


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that classify, as a timm model's config gives them."""
    config = getattr(model, "pretrained_cfg", None)
    names = config.get("classifier") if isinstance(config, dict) else None
    return (names,) if isinstance(names, str) else tuple(names or ())


def model_name(model: nn.Module) -> str:
    """Return timm's name of the architecture, or the class name."""
    config = getattr(model, "pretrained_cfg", None)
    architecture = config.get("architecture") if isinstance(config, dict) else None
    return architecture or type(model).__name__


def is_encoder(model: nn.Module) -> bool:
    """Tell whether a timm model has features and nothing that classifies: its forward pass would only say so."""
    return (
        hasattr(model, "forward_features") and not hasattr(model, "get_classifier") and hasattr(model, "feature_info")
    )


def own_config(model: nn.Module) -> dict[str, Any] | None:
    """Return timm's preprocessing for one of its models."""
    if not isinstance(getattr(model, "pretrained_cfg", None), dict):
        return None
    from timm.data import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(model)
    return config


def is_from_module(name: str) -> Callable[[nn.Module], bool]:
    """Return a predicate that holds for models defined in timm's module of that name."""
    return lambda model: any(kind.__module__ == f"timm.models.{name}" for kind in type(model).__mro__)
