"""Layouts that features of a given shape may have, and the general adapter, which tries them on any model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from camhook.adapters import timm, transformers
from camhook.adapters.base import Adapter, Layout, register
from camhook.adapters.data_config import as_pair

__all__ = ["MEAN", "token_layouts"]

_MOST_PREFIX_TOKENS = 16


def token_layouts(model: nn.Module, shape: tuple[int, ...]) -> Iterator[Layout]:
    """Yield the layouts that features of that shape may have, most likely first.

    Parameters
    ----------
    model
        The classifier; what it declares (prefix tokens, patch size, order of axes) comes first.
    shape
        (B, C, h, w), (B, h, w, C) or (B, N, C); of any other there is none.

    Examples
    --------
    >>> [layout.axes for layout in token_layouts(nn.Linear(3, 2), (2, 96, 7, 7))]
    ['NCHW', 'NHWC']
    """
    if len(shape) == 4:
        orders = Layout("NCHW"), Layout("NHWC")
        yield from orders[::-1] if _is_channels_last(model, shape) else orders
    if len(shape) == 3:
        declared = timm.num_prefix_tokens(model)
        patch_size = _patch_size(model)
        most = 2 if patch_size is None else _MOST_PREFIX_TOKENS
        for num_prefix_tokens in range(most + 1) if declared is None else (declared,):
            yield Layout("NLC", num_prefix_tokens, patch_size)


def _is_channels_last(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether a map is NHWC: as the model declares, else by its number of features."""
    declared = timm.is_channels_last(model)
    return shape[1] != getattr(model, "num_features", None) == shape[3] if declared is None else declared


def _patch_size(model: nn.Module) -> tuple[int, int] | None:
    """Return (rows, columns) of a patch in pixels: as declared, else of a non-overlapping first convolution."""
    declared = timm.patch_size(model) or transformers.patch_size(model)
    if declared is not None:
        return declared
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is not None and convolution.kernel_size == convolution.stride:
        return as_pair(convolution.stride)
    return None


MEAN = register(Adapter("mean", layouts=token_layouts, priority=-1))
