"""Models that a command line names, with their pretrained weights or those of a file."""

from __future__ import annotations

from typing import Any

from torch import nn

from camhook.errors import UnsupportedModelError
from camhook.suggestions import hint

__all__ = ["create", "load_model", "unknown_architecture"]


def load_model(name: str, checkpoint: str | None, num_classes: int | None) -> nn.Module:
    """Make a timm model with its pretrained weights, or with those of a file; ``"demo"`` is the demo model.

    Raises
    ------
    UnsupportedModelError
        If there is no such model, or no such weights for it.
    """
    if name == "demo":
        if checkpoint or num_classes:
            raise UnsupportedModelError(
                "The demo model has its own weights: --checkpoint and --num-classes do not go with it."
            )
        from camhook.demo import demo_model

        return demo_model()
    if checkpoint is None:
        return create(name, pretrained=True, num_classes=num_classes)
    model = create(name, num_classes=num_classes)
    from timm.models import load_checkpoint

    try:
        load_checkpoint(model, checkpoint, weights_only=True)
    except (RuntimeError, KeyError, OSError, ValueError) as error:
        raise UnsupportedModelError(f"The weights in {checkpoint} do not fit {name}: {error}") from error
    return model


def create(name: str, *, pretrained: bool = False, num_classes: int | None = None) -> nn.Module:
    """Make a timm model.

    Raises
    ------
    UnsupportedModelError
        If timm has none of that name, or cannot make it.
    """
    import timm

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if ":" not in name and not timm.is_model(name):
        raise unknown_architecture(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        weights = " with pretrained weights" if pretrained else ""
        advice = "\nPass --checkpoint FILE if you have them." if pretrained else ""
        raise UnsupportedModelError(f"{name} could not be made{weights}: {error}{advice}") from error
    return model


def unknown_architecture(name: str) -> UnsupportedModelError:
    """Return the error for a name that timm does not have, with those that are close."""
    import timm

    advice = hint(name, timm.list_models(), count=5, otherwise='`timm.list_models("*part*")` finds names.')
    return UnsupportedModelError(f"timm has no architecture named {name!r}. {advice}")
