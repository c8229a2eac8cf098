"""timm: configuration, input size, class names, classifier and naming conventions of its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from camhook.adapters.data_config import as_pair

__all__ = [
    "architecture",
    "class_names",
    "data_config",
    "forward",
    "has_forward_head",
    "has_no_head",
    "head_modules",
    "imagenet_index",
    "in_channels",
    "input_size",
    "is_channels_last",
    "is_encoder",
    "is_from_module",
    "num_prefix_tokens",
    "patch_size",
]


def _pretrained_cfg(model: nn.Module) -> Mapping[str, Any]:
    config = getattr(model, "pretrained_cfg", None)
    return config if isinstance(config, dict) else {}


def architecture(model: nn.Module) -> str | None:
    """Return timm's name of the architecture; None for another library's model."""
    name = _pretrained_cfg(model).get("architecture")
    return str(name) if name else None


def data_config(model: nn.Module) -> dict[str, Any] | None:
    """Return ``timm.data.resolve_model_data_config(model)``; None for another library's model."""
    if not isinstance(getattr(model, "pretrained_cfg", None), dict):
        return None
    from timm.data import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(model)
    return config


def input_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the (height, width) in pixels that the patch embedding was built for, else that of the configuration."""
    for module in model.modules():
        size = getattr(module, "img_size", None)
        if isinstance(size, tuple) and len(size) == 2:
            return size
    config = data_config(model)
    return None if config is None else tuple(config["input_size"][-2:])


def in_channels(model: nn.Module) -> int | None:
    """Return the input channels of the configuration, which still says 3 for a model made with ``in_chans=1``."""
    size = _pretrained_cfg(model).get("input_size")
    return size[0] if size else None


def num_prefix_tokens(model: nn.Module) -> int | None:
    """Return how many tokens come before the patches (class, distillation, register tokens), if the model says so."""
    return getattr(model, "num_prefix_tokens", None)


def is_channels_last(model: nn.Module) -> bool | None:
    """Return whether features are NHWC, if the model says so (``output_fmt``)."""
    declared = getattr(model, "output_fmt", None)
    return None if declared is None else bool(getattr(declared, "value", declared) == "NHWC")


def patch_size(model: nn.Module) -> tuple[int, int] | None:
    """Return (rows, columns) of a patch in pixels, if the patch embedding or the model says so."""
    holders = (getattr(model, "patch_embed", None), model)
    sizes = (as_pair(getattr(holder, "patch_size", None)) for holder in holders)
    return next((size for size in sizes if size is not None), None)


def class_names(model: nn.Module) -> dict[int, str]:
    """Return class names by index: the configuration's, or ImageNet's where the number of classes identifies a subset.

    Empty if the classifier was replaced by one with another number of classes than the weights came with.
    """
    config = _pretrained_cfg(model)
    num_classes = getattr(model, "num_classes", None)
    if names := config.get("label_names"):
        descriptions = config.get("label_descriptions") or {}
        return {index: str(descriptions.get(name, name)) for index, name in enumerate(names)}
    if not config or config.get("num_classes") != num_classes:
        return {}
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return {}
    info = ImageNetInfo(subset)
    return {index: info.index_to_description(index) for index in range(info.num_classes())}


def imagenet_index(wordnet_ids: Sequence[str]) -> list[int | None]:
    """Return the ImageNet-1k class index of each WordNet id; None for what is no id of these 1000 classes.

    Examples
    --------
    >>> imagenet_index(["n01440764", "tench"])
    [0, None]
    """
    from timm.data import ImageNetInfo

    indices = {name: index for index, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return [indices.get(name) for name in wordnet_ids]


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the classifier modules that the configuration lists; empty for another library's model."""
    names = _pretrained_cfg(model).get("classifier")
    return (names,) if isinstance(names, str) else tuple(names or ())


def has_no_head(model: nn.Module) -> bool:
    """Return whether a model was made without a classifier: ``num_classes=0``, or ``get_classifier`` gives Identity."""
    if getattr(model, "num_classes", None) == 0:
        return True
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if callable(get_classifier) else None
    parts: list[Any] = list(classifier) if isinstance(classifier, tuple | list | nn.ModuleList) else [classifier]
    return bool(parts) and all(isinstance(part, nn.Identity) for part in parts)


def is_encoder(model: nn.Module) -> bool:
    """Return whether a timm model has features and no classifier at all, so that its ``forward`` raises."""
    return (
        hasattr(model, "forward_features") and not hasattr(model, "get_classifier") and hasattr(model, "feature_info")
    )


def has_forward_head(model: nn.Module) -> bool:
    """Return whether ``forward(x)`` is split into ``forward_head(forward_features(x))``, timm's convention."""
    return all(callable(getattr(model, name, None)) for name in ("forward_features", "forward_head"))


def forward(model: Any, images: Tensor) -> Any:
    """Run a model; of an encoder without a classifier, only ``forward_features``."""
    return model.forward_features(images) if is_encoder(model) else model(images)


def is_from_module(name: str) -> Callable[[nn.Module], bool]:
    """Return a predicate that holds for models whose class is defined in ``timm.models.<name>``."""
    return lambda model: any(kind.__module__ == f"timm.models.{name}" for kind in type(model).__mro__)
