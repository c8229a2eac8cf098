"""What a model takes and gives: the size and channels of its input, checks of tensors, its logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camhook.adapters.libraries import image_size_of
from camhook.engine.tail import Output
from camhook.engine.tracing import trace
from camhook.errors import ImageError, UnsupportedModelError

__all__ = [
    "Selector",
    "check_tensor",
    "described",
    "in_chans_of",
    "original",
    "resolve_input_size",
    "selector",
    "size_of",
]


def original(model: Any) -> tuple[nn.Module, str]:
    """Return the module that hooks can watch, and what it was found in.

    Raises
    ------
    UnsupportedModelError
        If there is none to be had.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"A torch.nn.Module was expected, {type(model).__name__} was found.")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{type(model).__name__} is scripted or traced: hooks see nothing of what happens inside. Wrap the module "
            "that it was made from."
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return original(model.module)[0], type(model).__name__
    if isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
        return original(compiled)[0], "torch.compile"
    return model, ""


def check_tensor(images: Tensor, in_chans: int, reference: Tensor) -> None:
    """Raise `ImageError` if a tensor is nothing that the model, whose parameters are like `reference`, can take."""
    advice = "Photos (paths, PIL images, uint8 arrays) are preprocessed for you; a tensor is taken as it is."
    if images.ndim != 4 or 0 in images.shape:
        raise ImageError(f"A tensor of shape {tuple(images.shape)} was found, (B, C, H, W) was expected. {advice}")
    if not images.is_floating_point():
        raise ImageError(f"A tensor of {images.dtype} was found, preprocessed floating point was expected. {advice}")
    if images.shape[1] != in_chans:
        raise ImageError(f"A tensor of {images.shape[1]} channels was found, the model reads {in_chans}. {advice}")
    if images.device != reference.device:
        raise ImageError(
            f"The tensor is on {images.device} and the model on {reference.device}. "
            f"Move one: tensor.to({str(reference.device)!r})."
        )
    if images.dtype != reference.dtype and not torch.is_autocast_enabled(images.device.type):
        raise ImageError(
            f"The tensor is {images.dtype} and the model {reference.dtype}. Convert one: tensor.to({reference.dtype})."
        )
    # Elsewhere, looking would make the device wait: there NaN shows in the completeness error, and exact is False.
    if images.device.type == "cpu" and not _is_finite(images):
        raise ImageError("The tensor holds NaN or infinity; finite numbers were expected. Check the preprocessing.")


@dataclass(frozen=True)
class Selector:
    """Picks the logits; by itself, it takes the ``logits`` of an output that has such.

    One score an image, (B,), counts as one class.
    """

    output: Output | str | int | None

    def __call__(self, returned: Any) -> Any:
        """Return the logits among what a model returned.

        Raises
        ------
        UnsupportedModelError
            If there is nothing of the kind.
        """
        try:
            found = self._pick(returned)
        except (LookupError, AttributeError, TypeError) as error:
            raise UnsupportedModelError(
                f"output={self.output!r} is not in what the model returned: {described(returned)}. Pass an index, a "
                "key, an attribute name or a function that picks the logits (B, K)."
            ) from error
        return found[:, None] if isinstance(found, Tensor) and found.ndim == 1 else found

    def _pick(self, returned: Any) -> Any:
        output = self.output
        if callable(output):
            return output(returned)
        if output is None:
            if isinstance(returned, Mapping):
                return returned.get("logits", returned)
            return returned if isinstance(returned, Tensor) else getattr(returned, "logits", returned)
        if isinstance(output, int) or isinstance(returned, Mapping):
            return returned[output]
        return getattr(returned, output)


def selector(output: Output | str | int | None) -> Selector:
    """Return what picks the logits, which may be one already."""
    return output if isinstance(output, Selector) else Selector(output)


def described(returned: Any) -> str:
    """Say in words what a model returned."""
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        items = [f"{key!r}: {described(value)}" for key, value in returned.items()]
    elif isinstance(returned, tuple | list):
        items = [f"{index}: {described(value)}" for index, value in enumerate(returned)]
    else:
        return type(returned).__name__
    return f"{type(returned).__name__} of {', '.join(items)}"


def size_of(tensor: Tensor) -> tuple[int, int]:
    """Return the (height, width) of images (B, C, H, W)."""
    return tensor.shape[-2], tensor.shape[-1]


def in_chans_of(model: nn.Module, input_size: tuple[int, int] | None) -> int:
    """Tell how many channels a model takes: as many as its first convolution, where the model runs on so many.

    timm's config keeps saying 3 for a model made with another number; but a model may rearrange pixels first.
    """
    config = getattr(model, "pretrained_cfg", None)
    said = config["input_size"][0] if isinstance(config, dict) and config.get("input_size") else 3
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), said)
    if first == said or input_size is None:
        return first
    try:
        trace(model, (2, first, *input_size))
    except UnsupportedModelError:
        return said
    return first


def resolve_input_size(
    model: nn.Module,
    given: Mapping[str, Any] | None,
    input_size: tuple[int, int] | None,
    config: Mapping[str, Any] | None,
) -> tuple[int, int] | None:
    """Return what the user says, else what the patch embedding was built for, else what the config says."""
    if input_size is not None:
        height, width = input_size
        return int(height), int(width)
    if given is not None and "input_size" in given:
        return tuple(given["input_size"][-2:])
    for module in model.modules():
        size = getattr(module, "img_size", None)
        if isinstance(size, tuple) and len(size) == 2:
            return size
    return tuple(config["input_size"][-2:]) if config is not None else image_size_of(model)


def _is_finite(images: Tensor) -> bool:
    # NaN and infinity stay in a sum, which is far cheaper to take; that of finite numbers may overflow.
    return bool(images.sum(dtype=torch.float32).isfinite()) or bool(images.isfinite().all())
