"""timm's preprocessing dictionary, computed from the sizes that other libraries resize and crop to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from camhook.errors import ImageError

__all__ = ["ADVICE", "Size", "as_pair", "numbers", "timm_config"]

Size = tuple[int, int]

ADVICE = "Pass data_config= as timm's dictionary, or preprocess the photos yourself and pass the (B, C, H, W) tensor."

_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers for them


def timm_config(
    *,
    resize: tuple[int, ...],
    crop: Size | None,
    interpolation: Any,
    mean: Sequence[float],
    std: Sequence[float],
    source: str,
) -> dict[str, Any]:
    """Return the dictionary of a resize followed by a centre crop.

    Parameters
    ----------
    resize
        (shortest edge,) in pixels, or (height, width).
    crop
        (height, width) in pixels; None for no crop.
    interpolation
        timm's name, Pillow's number, or torchvision's enum member.
    mean, std
        By channel, for pixels between 0 and 1.
    source
        Named in error messages.

    Returns
    -------
    dict
        ``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``.

    Raises
    ------
    ImageError
        If no single ``crop_pct`` gives these sizes, or the interpolation is unknown.

    Examples
    --------
    >>> config = timm_config(resize=(256,), crop=(224, 224), interpolation=2, mean=[0.5], std=[0.5], source="mine")
    >>> config["crop_mode"], config["crop_pct"], config["interpolation"]
    ('center', 0.875, 'bilinear')
    """
    if crop is None and len(resize) == 1:
        raise ImageError(f"{source} resizes the shortest edge without a crop, so its input has no one size. {ADVICE}")
    resized = (resize[0], resize[-1])
    crop = crop or resized
    crop_pct = min(c / r for c, r in zip(crop, resized, strict=True))
    for _ in range(4):  # timm divides and rounds down: meet the whole number, whatever the last digit
        if tuple(math.floor(c / crop_pct) for c in crop) == resized:
            break
        crop_pct = math.nextafter(crop_pct, 0)
    else:
        raise ImageError(f"{source} resizes to {resize} and crops to {crop}: no one crop_pct says both. {ADVICE}")
    return {
        "input_size": (3, *crop),
        "interpolation": _interpolation(interpolation, source),
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
        "crop_pct": crop_pct,
        "crop_mode": "squash" if len(resize) == 2 else "center",
    }


def _interpolation(given: Any, source: str) -> str:
    given = getattr(given, "value", given)
    if isinstance(given, int) and 0 <= given < len(_RESAMPLE):
        return _RESAMPLE[given]
    if given not in _RESAMPLE:
        raise ImageError(f"{source}: interpolation {given!r} was found, one of {', '.join(_RESAMPLE)} was expected.")
    return str(given)


def numbers(size: int | Sequence[int]) -> tuple[int, ...]:
    """Return a size as a tuple, of length 1 if it is one number."""
    return (size,) if isinstance(size, int) else tuple(int(edge) for edge in size)


def as_pair(size: Any) -> Size | None:
    """Return (height, width) for one number, which counts for both, or for a sequence of one or two; else None.

    Examples
    --------
    >>> as_pair(224), as_pair([224]), as_pair((32, 48)), as_pair({"shortest_edge": 224})
    ((224, 224), (224, 224), (32, 48), None)
    """
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if isinstance(size, Sequence) and not isinstance(size, str) and len(size) in (1, 2):
        return int(size[0]), int(size[-1])
    return None
