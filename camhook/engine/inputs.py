"""Inputs of a model: the module that hooks can see, number of channels, checks of preprocessed tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from camhook.adapters import libraries
from camhook.engine.tracing import trace
from camhook.errors import ImageError, UnsupportedModelError

__all__ = ["check_tensor", "in_chans_of", "size_of", "unwrapped"]


def unwrapped(model: Any) -> tuple[nn.Module, str]:
    """Return the module inside a compiled or parallel model, and the name of what it was found in ("" if nothing).

    Raises
    ------
    UnsupportedModelError
        If there is no such module.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"A torch.nn.Module was expected, {type(model).__name__} was found.")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{type(model).__name__} is scripted or traced: hooks see nothing of what happens inside. Wrap the module "
            "that it was made from."
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)[0], type(model).__name__
    if isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
        return unwrapped(compiled)[0], "torch.compile"
    return model, ""


def in_chans_of(model: nn.Module, input_size: tuple[int, int] | None) -> int:
    """Return the number of input channels: that of the first convolution, where the model runs on as many.

    timm's config keeps saying 3 for a model made with another number; but a model may rearrange pixels first.
    """
    declared = libraries.declared_channels(model)
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), declared)
    if first == declared or input_size is None:
        return first
    try:
        trace(model, (2, first, *input_size))
    except UnsupportedModelError:
        return declared
    return first


def size_of(images: Tensor) -> tuple[int, int]:
    """Return the (height, width) of images (B, C, H, W)."""
    return images.shape[-2], images.shape[-1]


def check_tensor(images: Tensor, in_chans: int, reference: Tensor) -> None:
    """Raise `ImageError` if a tensor cannot be the input of a model whose parameters are like `reference`."""
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
    # Elsewhere a look would synchronise the device: there NaN shows in the completeness error, and exact is False.
    if images.device.type == "cpu" and not _is_finite(images):
        raise ImageError("The tensor holds NaN or infinity; finite numbers were expected. Check the preprocessing.")


def _is_finite(images: Tensor) -> bool:
    # NaN and infinity stay in a sum, which is far cheaper to take; that of finite numbers may overflow.
    return bool(images.sum(dtype=torch.float32).isfinite()) or bool(images.isfinite().all())
