"""transformers: configuration of its models, preprocessing of its image processors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from camhook.adapters.data_config import ADVICE, Size, as_pair, numbers, timm_config
from camhook.errors import ImageError

__all__ = ["class_names", "data_config_of", "in_channels", "input_size", "patch_size"]

_BY_SHORTEST_EDGE = {"CLIP", "Bit", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer"}
_UNSUPPORTED = ("do_pad", "do_thumbnail", "do_flip_channel_order", "resize_short")
_SQUASH_FROM = 384  # from this size on, ConvNeXT's processor squashes the picture instead of cropping it
_CANNOT_BE_SAID = f"cannot be said in timm's words. {ADVICE}"


def _from_config(model: nn.Module, name: str) -> Any:
    """Return an entry of the model's configuration, or else of its vision tower's."""
    config = getattr(model, "config", None)
    found = getattr(config, name, None)
    return getattr(getattr(config, "vision_config", None), name, None) if found is None else found


def input_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the (height, width) in pixels that a model was configured for, if its configuration says so."""
    return as_pair(_from_config(model, "image_size"))


def in_channels(model: nn.Module) -> int | None:
    """Return the input channels of the configuration, if it says so."""
    channels = _from_config(model, "num_channels")
    return channels if isinstance(channels, int) else None


def patch_size(model: nn.Module) -> tuple[int, int] | None:
    """Return (rows, columns) of a patch in pixels, if the model's configuration says so."""
    return as_pair(getattr(getattr(model, "config", None), "patch_size", None))


def class_names(model: nn.Module) -> dict[int, str]:
    """Return ``config.id2label``; empty if it only holds transformers' placeholders ``LABEL_0``, ``LABEL_1``, ..."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(labels, Mapping):
        return {}
    names = {int(index): str(name) for index, name in labels.items()}
    return {} if all(name == f"LABEL_{index}" for index, name in names.items()) else names


def data_config_of(given: Any) -> dict[str, Any] | None:
    """Return timm's preprocessing dictionary for an image processor; None for anything else.

    Parameters
    ----------
    given
        An image processor, or its configuration as a dictionary.

    Raises
    ------
    ImageError
        If the processor does something that has no equivalent in timm's dictionary.
    """
    if isinstance(given, Mapping):
        is_timms = "input_size" in given or not {"size", "image_mean"} & set(given)
        return None if is_timms else _of_processor(given)
    if isinstance(config := getattr(given, "data_config", None), Mapping):  # the processor of a wrapped timm model
        return dict(config)
    if callable(to_dict := getattr(given, "to_dict", None)) and hasattr(given, "image_mean"):
        return _of_processor(to_dict())
    return None


def _of_processor(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = kind
    for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        family = family.removesuffix(suffix)
    if "size" not in config:
        raise ImageError(f"No size was found in the image processor's configuration: {dict(config)}.")
    unsupported = {
        key for key in ("do_pad", "do_thumbnail", "do_flip_channel_order", "resize_short") if config.get(key)
    }
    unsupported |= {"do_resize=False"} if not config.get("do_resize", True) else set()
    unsupported |= {f"the order of steps in {kind}"} if family == "Perceiver" else set()
    if unsupported:
        raise ImageError(f"{kind or 'The image processor'}: {', '.join(sorted(unsupported))} {_CANNOT_BE_SAID}")
    resize = _size(config["size"], shortest=family in _BY_SHORTEST_EDGE)
    crop_size = _size(config.get("crop_size") or config["size"], shortest=False)
    crop = as_pair(crop_size) if config.get("do_center_crop") else None
    if len(resize) == 1:
        resize, crop = _resize_and_crop(family, resize[0], crop, config.get("crop_pct"))
    mean, std = _normalisation(config)
    return timm_config(
        resize=resize,
        crop=crop,
        interpolation=config.get("resample", 2),
        mean=mean,
        std=std,
        source=kind or repr(dict(config)),
    )


def _resize_and_crop(
    family: str, edge: int, crop: Size | None, crop_pct: float | None
) -> tuple[tuple[int, ...], Size | None]:
    """Return the sizes to resize and crop to, for the families whose processor reads the shortest edge differently."""
    if family == "Levit":
        return (int(256 / 224 * edge),), crop
    if family.startswith("ConvNext"):
        crop = (edge, edge)
        if edge >= _SQUASH_FROM:
            return crop, crop
        crop_pct = crop_pct or 224 / 256
    return (int(edge / crop_pct) if crop_pct else edge,), crop


def _normalisation(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for pixels between 0 and 1, whatever range the processor rescales them to first."""
    scale = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
    shift = 1.0 if config.get("rescale_offset") else 0.0
    means, stds = _three(config.get("image_mean"), 0.0), _three(config.get("image_std"), 1.0)
    twice = stds if config.get("include_top") else (1.0,) * 3  # EfficientNet's divides a second time
    if not config.get("do_normalize", True):
        means, stds = (0.0,) * 3, (1.0,) * 3
    mean = tuple((m + shift) / scale for m in means)
    return mean, tuple(s * t / scale for s, t in zip(stds, twice, strict=True))


def _three(value: Any, default: float) -> tuple[float, ...]:
    if value is None:
        return (default,) * 3
    return tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),) * 3


def _size(size: Any, *, shortest: bool) -> tuple[int, ...]:
    """Return (edge,) for the shortest edge, or (height, width)."""
    if isinstance(size, int):
        return (size,) if shortest else (size, size)
    if isinstance(size, Sequence):
        return numbers(size)
    entries = {key: value for key, value in dict(size).items() if value}
    if set(entries) == {"shortest_edge"}:
        return (int(entries["shortest_edge"]),)
    if set(entries) == {"height", "width"}:
        return int(entries["height"]), int(entries["width"])
    raise ImageError(f"The size {dict(size)} {_CANNOT_BE_SAID}")
