"""Global average pooling over positions, in whatever layout: CNNs, ConvNeXt, Swin, mixers, ViT with average pooling."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from camhook.adapters.base import Adapter, Layout, register

__all__ = ["MEAN"]


def _layouts(model: nn.Module, shape: tuple[int, ...]) -> Iterator[Layout]:
    if len(shape) == 4:
        yield Layout("NCHW")
        yield Layout("NHWC")
    if len(shape) == 3:
        declared = getattr(model, "num_prefix_tokens", None)
        patch_size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
        patch_size = patch_size if isinstance(patch_size, tuple) and len(patch_size) == 2 else None
        for num_prefix_tokens in (0, 1, 2) if declared is None else (declared,):
            yield Layout("NLC", num_prefix_tokens, patch_size)


MEAN = register(Adapter("mean", pooling="mean", layouts=_layouts))
