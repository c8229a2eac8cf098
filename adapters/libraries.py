"""Questions that any model is asked, put to timm, torchvision and transformers in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from camhook.adapters import timm, torchvision, transformers
from camhook.errors import ImageError

__all__ = [
    "class_names",
    "data_config",
    "data_config_of",
    "declared_channels",
    "has_no_head",
    "head_modules",
    "input_size",
    "model_name",
]


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
        If it is none of these, or does something that has no equivalent in timm's dictionary.

    Examples
    --------
    >>> config = {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    >>> data_config_of(config)["crop_mode"], data_config_of(config)["input_size"]
    ('squash', (3, 224, 224))
    """
    found = torchvision.data_config_of(given) or transformers.data_config_of(given)
    if found is not None:
        return found
    if isinstance(given, Mapping):
        return dict(given)
    raise ImageError(
        f"data_config={given!r}: timm's dictionary, torchvision's weights or their transforms, or an image processor "
        "of transformers was expected."
    )


def data_config(model: nn.Module, given: Any = None) -> dict[str, Any] | None:
    """Return timm's preprocessing dictionary: what was given, in any library's words, else the model's own.

    Parameters
    ----------
    model
        The classifier.
    given
        What `data_config_of` takes, or None.

    Raises
    ------
    ImageError
        As `data_config_of` does.
    """
    return timm.data_config(model) if given is None else data_config_of(given)


def input_size(model: nn.Module, data_config: Any = None) -> tuple[int, int] | None:
    """Return the (height, width) in pixels of a model's input, None if nothing says so.

    Parameters
    ----------
    model
        The classifier.
    data_config
        What `data_config_of` takes, or None. Its size comes before the one that the model was built for.

    Examples
    --------
    >>> input_size(nn.Linear(3, 2)), input_size(nn.Linear(3, 2), {"input_size": (3, 32, 48)})
    (None, (32, 48))
    """
    if data_config is not None and (size := data_config_of(data_config).get("input_size")):
        return size[-2], size[-1]
    return timm.input_size(model) or torchvision.input_size(model) or transformers.input_size(model)


def declared_channels(model: nn.Module) -> int:
    """Return how many input channels the model's configuration declares; 3 if it has none."""
    return timm.in_channels(model) or transformers.in_channels(model) or 3


def class_names(model: nn.Module, data_config: Any = None, *, num_classes: int | None = None) -> dict[int, str]:
    """Return class names by index; empty if none are known.

    Parameters
    ----------
    model
        The classifier.
    data_config
        What preprocessing was given; a member of a torchvision weights enum names the classes too, and comes first.
    num_classes
        Skip names of another number of classes: a fine-tuned model keeps its weights' preprocessing, not their names.

    Examples
    --------
    >>> class_names(nn.Linear(3, 2))
    {}
    """
    answers = (torchvision.class_names(data_config), transformers.class_names(model), timm.class_names(model))
    return next((names for names in answers if names and num_classes in (None, len(names))), {})


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the classifier's modules, where the model's configuration lists them (timm's does)."""
    return timm.head_modules(model)


def has_no_head(model: nn.Module) -> bool:
    """Return whether the model was made without a classifier."""
    return timm.has_no_head(model)


def model_name(model: nn.Module) -> str:
    """Return timm's name of the architecture, else the name of the model's class.

    Examples
    --------
    >>> model_name(nn.Linear(3, 2))
    'Linear'
    """
    return timm.architecture(model) or type(model).__name__
