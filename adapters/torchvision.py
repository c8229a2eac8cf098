"""torchvision: preprocessing of its weights and transforms, class names, input size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from camhook.adapters.data_config import as_pair, numbers, timm_config
from camhook.errors import ImageError

__all__ = ["class_names", "data_config_of", "input_size"]

_NO_RESIZING = {"ToTensor", "MaybeToTensor", "PILToTensor", "ToImage", "ConvertImageDtype", "ToDtype", "ToPureTensor"}


def input_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the (height, width) in pixels that a vision transformer was built for; None if the model has no such."""
    return as_pair(getattr(model, "image_size", None))


def class_names(weights: Any) -> dict[int, str]:
    """Return the class names by index of a member of a weights enum; empty for anything else."""
    meta = getattr(weights, "meta", None)
    return dict(enumerate(meta.get("categories") or ())) if isinstance(meta, Mapping) else {}


def data_config_of(given: Any) -> dict[str, Any] | None:
    """Return timm's preprocessing dictionary for torchvision's weights or transforms; None for anything else.

    Parameters
    ----------
    given
        A member of a weights enum, the transform that it gives, or a `Compose` of resize, centre crop and normalise.

    Raises
    ------
    ImageError
        If a step of the transform has no equivalent in timm's dictionary.
    """
    if callable(getattr(given, "transforms", None)) and hasattr(given, "meta"):  # a member of a weights enum
        given = given.transforms()
    if hasattr(given, "resize_size") and hasattr(given, "crop_size"):  # the transform that such a member gives
        return timm_config(
            resize=numbers(given.resize_size),
            crop=as_pair(given.crop_size),
            interpolation=given.interpolation,
            mean=given.mean,
            std=given.std,
            source=repr(given),
        )
    steps = getattr(given, "transforms", None)
    return _of_steps(list(steps)) if isinstance(steps, Iterable) else None


def _of_steps(steps: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for step in steps:
        name = type(step).__name__
        if name in _NO_RESIZING:
            continue
        order = [*found, name]
        if order not in (["Resize"], ["Resize", "CenterCrop"], [*found, "Normalize"]) or name in found:
            raise ImageError(
                f"The transform {step} was found, after {list(found) or 'nothing'}; one Resize, one CenterCrop and one "
                "Normalize were expected, in this order. Pass timm's dictionary, or a preprocessed tensor."
            )
        found[name] = step
    if "Resize" not in found or getattr(found["Resize"], "max_size", None) is not None:
        raise ImageError(f"A Resize without max_size was expected in {list(steps)}. Pass timm's dictionary.")
    norm = found.get("Normalize")
    return timm_config(
        resize=numbers(found["Resize"].size),
        crop=as_pair(found["CenterCrop"].size) if "CenterCrop" in found else None,
        interpolation=found["Resize"].interpolation,
        mean=norm.mean if norm else (0.0,) * 3,
        std=norm.std if norm else (1.0,) * 3,
        source=repr(list(steps)),
    )
