"""Preprocessing as others write it down, in timm's words: torchvision's weights and transforms, image processors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from camhook.errors import ImageError

__all__ = ["data_config_of"]

Size = tuple[int, int]

_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers for them
_INERT = {"ToTensor", "MaybeToTensor", "PILToTensor", "ToImage", "ConvertImageDtype", "ToDtype", "ToPureTensor"}
_BY_SHORTEST_EDGE = {"CLIP", "Bit", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer"}
_SQUASH_FROM = 384  # from this size on, ConvNeXT's processor squashes the picture instead of cropping it


def data_config_of(given: Any) -> dict[str, Any]:
    """Return timm's preprocessing dictionary for what another library, or timm, describes in its own way.

    Resizing is done by Pillow. That is what torchvision does with a photo, so its tensors come out the same. Image
    processors of transformers agree where they use Pillow too; those that resize tensors round differently, by a few
    grey levels at most. Where a crop leaves an odd surplus, torchvision may put it one pixel from where they do.

    Parameters
    ----------
    given
        A member of a torchvision weights enum, the transform it gives or a `Compose` of its steps (resize, centre crop,
        normalise); an image processor of transformers or its configuration as a dictionary; timm's dictionary.

    Returns
    -------
    dict
        ``input_size`` (C, H, W), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``.

    Raises
    ------
    ImageError
        If it is none of these, or does something that timm's words have none for.

    Examples
    --------
    >>> config = {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    >>> data_config_of(config)["crop_mode"], data_config_of(config)["input_size"]
    ('squash', (3, 224, 224))
    """
    if isinstance(given, Mapping):
        is_timms = "input_size" in given or not {"size", "image_mean"} & set(given)
        return dict(given) if is_timms else _of_processor(given)
    if callable(getattr(given, "transforms", None)) and hasattr(given, "meta"):  # a member of a weights enum
        return data_config_of(given.transforms())
    if hasattr(given, "resize_size") and hasattr(given, "crop_size"):  # the transform that such a member gives
        resized, crop = _numbers(given.resize_size), _pair(given.crop_size)
        return _config(resized, crop, given.interpolation, given.mean, given.std, repr(given))
    if isinstance(steps := getattr(given, "transforms", None), Iterable):
        return _of_steps(list(steps))
    if isinstance(config := getattr(given, "data_config", None), Mapping):  # what wraps a timm model in transformers
        return dict(config)
    if callable(to_dict := getattr(given, "to_dict", None)) and hasattr(given, "image_mean"):
        return _of_processor(to_dict())
    raise ImageError(
        f"data_config={given!r}: timm's dictionary, torchvision's weights or their transforms, or an image processor "
        "of transformers was expected."
    )


def _of_steps(steps: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for step in steps:
        name = type(step).__name__
        if name in _INERT:
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
    resized = _numbers(found["Resize"].size)
    crop = _pair(found["CenterCrop"].size) if "CenterCrop" in found else None
    norm = found.get("Normalize")
    mean, std = (norm.mean, norm.std) if norm else ((0.0,) * 3, (1.0,) * 3)
    return _config(resized, crop, found["Resize"].interpolation, mean, std, repr(list(steps)))


def _of_processor(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = (
        kind.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    )
    if "size" not in config:
        raise ImageError(f"No size was found in the image processor's configuration: {dict(config)}.")
    does = {key for key in ("do_pad", "do_thumbnail", "do_flip_channel_order", "resize_short") if config.get(key)}
    does |= {"do_resize=False"} if not config.get("do_resize", True) else set()
    does |= {f"the order of steps in {kind}"} if family == "Perceiver" else set()
    if does:
        raise ImageError(f"{kind or 'The image processor'}: {', '.join(sorted(does))} {_NOT_SAID}")
    resized = _processor_size(config["size"], shortest=family in _BY_SHORTEST_EDGE)
    crop_size = _processor_size(config.get("crop_size") or config["size"], shortest=False)
    crop = _pair(crop_size) if config.get("do_center_crop") else None
    if len(resized) == 1:
        resized, crop = _by_family(family, resized[0], crop, config.get("crop_pct"))
    mean, std = _normalisation(config)
    return _config(resized, crop, config.get("resample", 2), mean, std, kind or repr(dict(config)))


def _by_family(
    family: str, edge: int, crop: Size | None, crop_pct: float | None
) -> tuple[tuple[int, ...], Size | None]:
    """Return what a processor resizes and crops to that reads the shortest edge in a way of its own."""
    if family == "Levit":
        return (int(256 / 224 * edge),), crop
    if family.startswith("ConvNext"):
        crop = (edge, edge)
        if edge >= _SQUASH_FROM:
            return crop, crop
        crop_pct = crop_pct or 224 / 256
    return (int(edge / crop_pct) if crop_pct else edge,), crop


_NOT_SAID = (
    "cannot be said in timm's words. Pass data_config= as timm's dictionary, or preprocess the photos with it and pass "
    "the (B, C, H, W) tensor."
)


def _normalisation(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for pixels between 0 and 1, whatever the processor scales them to first."""
    scale = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
    shift = 1.0 if config.get("rescale_offset") else 0.0
    means, stds = (_three(config.get(key), key) for key in ("image_mean", "image_std"))
    twice = stds if config.get("include_top") else (1.0,) * 3  # EfficientNet's divides a second time
    if not config.get("do_normalize", True):
        means, stds = (0.0,) * 3, (1.0,) * 3
    mean = tuple((m + shift) / scale for m in means)
    return mean, tuple(s * t / scale for s, t in zip(stds, twice, strict=True))


def _three(value: Any, key: str) -> tuple[float, ...]:
    if value is None:
        return (0.0,) * 3 if key == "image_mean" else (1.0,) * 3
    return tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),) * 3


def _processor_size(size: Any, *, shortest: bool) -> tuple[int, ...]:
    """Return (edge,) for the shortest edge, or (height, width)."""
    if isinstance(size, int):
        return (size,) if shortest else (size, size)
    if isinstance(size, Sequence):
        return _numbers(size)
    said = {key: value for key, value in dict(size).items() if value}
    if set(said) == {"shortest_edge"}:
        return (int(said["shortest_edge"]),)
    if set(said) == {"height", "width"}:
        return int(said["height"]), int(said["width"])
    raise ImageError(f"The size {dict(size)} {_NOT_SAID}")


def _config(
    resized: tuple[int, ...], crop: Size | None, interpolation: Any, mean: Any, std: Any, source: str
) -> dict[str, Any]:
    """Put into timm's words: resize to (shortest edge,) or to (height, width), then crop in the middle."""
    if crop is None and len(resized) == 1:
        raise ImageError(f"{source} resizes the shortest edge without a crop, so its input has no one size. {_FIXED}")
    crop = crop or _pair(resized)
    squashes = len(resized) == 2
    crop_pct = min(c / r for c, r in zip(crop, _pair(resized), strict=True))
    for _ in range(4):  # timm divides and rounds down: meet the whole number, whatever the last digit
        if tuple(math.floor(c / crop_pct) for c in crop) == _pair(resized):
            break
        crop_pct = math.nextafter(crop_pct, 0)
    else:
        raise ImageError(f"{source} resizes to {resized} and crops to {crop}: no one crop_pct says both. {_FIXED}")
    return {
        "input_size": (3, *crop),
        "interpolation": _interpolation(interpolation, source),
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
        "crop_pct": crop_pct,
        "crop_mode": "squash" if squashes else "center",
    }


_FIXED = "Pass data_config= as timm's dictionary, or a preprocessed (B, C, H, W) tensor."


def _interpolation(given: Any, source: str) -> str:
    given = getattr(given, "value", given)
    if isinstance(given, int) and 0 <= given < len(_RESAMPLE):
        return _RESAMPLE[given]
    if given not in _RESAMPLE:
        raise ImageError(f"{source}: interpolation {given!r} was found, one of {', '.join(_RESAMPLE)} was expected.")
    return str(given)


def _numbers(size: Any) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else tuple(int(edge) for edge in size)


def _pair(size: Any) -> Size:
    numbers = _numbers(size)
    return numbers[0], numbers[-1]
