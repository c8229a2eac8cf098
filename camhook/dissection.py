"""CAM's own equation, drawn for one image: feature maps times weights, and the rest, make the score."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from camhook.decompose.decomposition import Decomposition
from camhook.decompose.tail_inputs import MeanInput
from camhook.drawing.anatomy import Term, anatomy
from camhook.errors import CamhookError, ImageError, UnsupportedModelError
from camhook.results.result import CAMResult

__all__ = ["dissected"]


def dissected(result: CAMResult, decomposition: Decomposition, *, channels: int) -> Image.Image:
    """Draw the feature maps that add most to a result's one map, each with its weight, and the rest.

    Raises
    ------
    UnsupportedModelError
        If the head does not pool feature maps by their mean.
    ImageError, CamhookError
        If there is more than one image, or not that many channels.
    """
    if len(result) != 1:
        raise ImageError(f"anatomy draws one image; {len(result)} were given.")
    source = decomposition.inputs[0]
    if len(decomposition.inputs) > 1 or not isinstance(source, MeanInput):
        raise UnsupportedModelError(
            f"anatomy draws feature maps pooled by their mean; {result.head} reads them otherwise."
        )
    with torch.no_grad():
        weights = decomposition.multipliers(result.target)[0][0, 0]
        parts = weights[:, None, None] * source.positions[0]
    count = parts.shape[0]
    if not 1 <= channels <= count:
        raise CamhookError(f"channels={channels}: from 1 to {count}, the number of feature maps, was expected.")
    adds = parts.mean((1, 2))
    best = adds.topk(channels).indices
    rest = parts.sum(0) - parts[best].sum(0)
    shown: list[tuple[str, float | None, Tensor]]
    shown = [(f"channel {c}", float(weights[c]), parts[c]) for c in best.tolist()]
    shown += [(f"the other {count - channels} channels", None, rest)] if count > channels else []
    geometry = result.geometries[0]

    def term(label: str, weight: float | None, values: Tensor, score: float) -> Term:
        return Term(label, weight, geometry.to_photo(values).float().cpu().numpy(), score)

    return anatomy(
        result.photo(),
        [term(label, weight, values, float(values.mean())) for label, weight, values in shown],
        term(result.label(), None, result.maps[0, 0], float(result.scores[0, 0])),
        offset=float(result.offset[0, 0]),
        title=f"{result.label()}: {result.model_name}'s score, taken apart",
    )
