"""Figure of a decomposition: the feature maps that add most to a class, the sum of the others, and the offset."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from camhook.decompose.decomposition import Decomposition
from camhook.decompose.tail_inputs import MeanInput
from camhook.drawing.anatomy import Term, channel_anatomy
from camhook.errors import ImageError, UnsupportedModelError
from camhook.results.result import CAMResult

__all__ = ["draw_anatomy"]


def draw_anatomy(result: CAMResult, decomposition: Decomposition, *, channels: int) -> Image.Image:
    """Draw the feature maps that add most to a result's one map, each with its weight, and the sum of the others.

    Raises
    ------
    UnsupportedModelError
        If the head does not pool feature maps by their mean.
    ImageError, CamhookError
        If there is more than one image, or not that many channels.
    """
    if len(result) != 1:
        raise ImageError(f"anatomy draws one image; {len(result)} were given.")
    pooled = decomposition.inputs[0]
    if len(decomposition.inputs) > 1 or not isinstance(pooled, MeanInput):
        raise UnsupportedModelError(
            f"anatomy draws feature maps pooled by their mean; {result.head} reads them otherwise."
        )
    geometry = result.geometries[0]

    def upsample(values: Any) -> Any:
        return geometry.to_photo(torch.as_tensor(values)).float().cpu().numpy()

    weights = decomposition.multipliers(result.target)[0][0, 0].detach()
    contributions = weights[:, None, None] * pooled.positions[0].detach()
    return channel_anatomy(
        result.photo(),
        contributions.cpu().numpy(),
        weights.cpu().numpy(),
        Term(result.label(), None, upsample(result.maps[0, 0]), float(result.scores[0, 0])),
        offset=float(result.offset[0, 0]),
        channels=channels,
        upsample=upsample,
        title=f"{result.label()}: terms of the score of {result.model_name}",
    )
