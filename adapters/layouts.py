"""Global average pooling over positions, in whatever layout: CNNs, ConvNeXt, Swin, mixers, ViT with average pooling."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from camhook.adapters.base import Adapter, Layout, register

__all__ = ["MEAN", "token_layouts"]

_MOST_PREFIX_TOKENS = 16


def token_layouts(model: nn.Module, shape: tuple[int, ...]) -> Iterator[Layout]:
    """Yield the layouts that features of that shape may have, most likely first."""
    if len(shape) == 4:
        orders = Layout("NCHW"), Layout("NHWC")
        yield from orders[::-1] if _is_channels_last(model, shape) else orders
    if len(shape) == 3:
        declared = getattr(model, "num_prefix_tokens", None)
        patch_size = _patch_size(model)
        most = 2 if patch_size is None else _MOST_PREFIX_TOKENS
        for num_prefix_tokens in range(most + 1) if declared is None else (declared,):
            yield Layout("NLC", num_prefix_tokens, patch_size)


def _is_channels_last(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Read the order of axes off the model: what it says of it, or the number of features that it says it has."""
    declared = getattr(model, "output_fmt", None)
    if declared is not None:
        return bool(getattr(declared, "value", declared) == "NHWC")
    return shape[1] != getattr(model, "num_features", None) == shape[3]


def _patch_size(model: nn.Module) -> tuple[int, int] | None:
    """Read the patch size off the model: what it says of it, or a first convolution that cuts the image up."""
    holders = (getattr(model, "patch_embed", None), model, getattr(model, "config", None))
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    sizes = [getattr(holder, "patch_size", None) for holder in holders]
    if convolution is not None and convolution.kernel_size == convolution.stride:
        sizes.append(convolution.stride)
    for size in sizes:
        if isinstance(size, int):
            return size, size
        if isinstance(size, tuple) and len(size) == 2:
            return size
    return None


MEAN = register(Adapter("mean", layouts=token_layouts))
