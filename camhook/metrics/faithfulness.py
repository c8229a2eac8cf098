"""Faithfulness of maps: average drop, increase and gain, coherency, complexity, ADCC, and completeness."""

from __future__ import annotations

from typing import Literal

import numpy.typing as npt
import torch
from torch import Tensor

from camhook.errors import CamhookError, ImageError
from camhook.metrics.arguments import (
    as_arguments,
    as_images,
    as_maps,
    as_target,
    in_batches,
    in_masked_batches,
    opacity,
    target_logits,
)
from camhook.metrics.types import Baseline, Classifier, Explain, Maps, Target

__all__ = ["adcc", "average_drop", "average_gain", "coherency", "completeness", "complexity", "increase_in_confidence"]


def average_drop(
    maps: Maps, images: Tensor, target: Target, model: Classifier, *, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    r"""Compute average drop: relative loss of confidence when the image is multiplied by the map; lower is better.

    .. math:: \max(0, Y - O) / Y

    with Y the softmax probability of the target for the image, and O that for the image times the map's positive part,
    scaled to a maximum of 1 (Chattopadhyay et al. 2018, Grad-CAM++, where it is in percent). A map without positive
    values leaves the baseline only.

    Parameters
    ----------
    maps : Tensor or array (B, H, W)
        Signed, at the images' size.
    images : Tensor (B, C, H, W)
        Preprocessed, as the model takes them.
    target : int, or sequence (B,)
        The explained class, which need not be the predicted one.
    model : callable
        Images (N, C, H, W) to logits (N, K), in eval mode.
    baseline : float or Tensor
        What replaces masked pixels, in the images' units: a number, a colour (C, 1, 1), or images.
    batch_size : int
        Images per forward pass.

    Returns
    -------
    Tensor
        (B,), float64, 0 (no drop) to 1.

    Raises
    ------
    CamhookError
        Shapes, targets or the model's output do not fit together.

    Examples
    --------
    >>> images, model = torch.ones(1, 1, 1, 2), lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1)
    >>> average_drop([[[1.0, 0.0]]], images, 0, model)  # sigmoid(2) falls to sigmoid(1)
    tensor([0.1700], dtype=torch.float64)
    """
    before, after = _log_probabilities(maps, images, target, model, baseline, batch_size)
    return torch.expm1((after - before).clamp(max=0)).abs()


def increase_in_confidence(
    maps: Maps, images: Tensor, target: Target, model: Classifier, *, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    """Compute increase in confidence: 1 where O > Y of `average_drop`, else 0; higher is better.

    The mean over images is the rate of increase of Chattopadhyay et al. 2018. Parameters, shape of the result and
    errors as in `average_drop`.

    Examples
    --------
    >>> images, model = torch.tensor([[[[1.0, -1.0]]]]), lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)
    >>> increase_in_confidence([[[1.0, 0.0]]], images, 0, model)
    tensor([1.], dtype=torch.float64)
    """
    before, after = _log_probabilities(maps, images, target, model, baseline, batch_size)
    return (after > before).double()


def average_gain(
    maps: Maps, images: Tensor, target: Target, model: Classifier, *, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    r"""Compute average gain: relative gain of confidence when the image is multiplied by the map; higher is better.

    .. math:: \max(0, O - Y) / (1 - Y)

    with Y and O as in `average_drop` (Zhang et al. 2024, Opti-CAM); 0 where Y is 1. Parameters, shape of the result
    and errors as in `average_drop`.

    Examples
    --------
    >>> images, model = torch.tensor([[[[1.0, -1.0]]]]), lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)
    >>> average_gain([[[1.0, 0.0]]], images, 0, model)  # 0.5 rises to sigmoid(1)
    tensor([0.4621], dtype=torch.float64)
    """
    before, after = _log_probabilities(maps, images, target, model, baseline, batch_size)
    missing = -torch.expm1(before)
    return (after.exp() - before.exp()).clamp(min=0) / torch.where(missing > 0, missing, 1)


def coherency(
    maps: Maps, images: Tensor, target: Target, explain: Explain, *, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    r"""Compute coherency: correlation of a map with the map of the masked image; higher is better.

    .. math:: (1 + r(m(x), m(m(x) \circ x))) / 2

    with r Pearson's correlation over positions and m the map's positive part scaled to a maximum of 1 (Poppi et al.
    2021, ADCC). Where a correlation is undefined, since one of the two is constant, the result is 0.

    Parameters
    ----------
    explain : callable
        The method that computed ``maps``: ``explain(images, target)``, images (N, C, H, W) and targets (N,) to maps
        (N, H, W).
    maps, images, target, baseline, batch_size
        As in `average_drop`.

    Returns
    -------
    Tensor
        (B,), float64, 0 to 1.

    Raises
    ------
    CamhookError
        Shapes do not fit together, or ``explain`` does not return one map per image, at the maps' size.

    Examples
    --------
    >>> coherency([[[3.0, 0.0]]], torch.ones(1, 1, 1, 2), 0, lambda images, target: images[:, 0]).round(decimals=6)
    tensor([1.], dtype=torch.float64)
    """
    values, pixels, classes = as_arguments(maps, images, target)
    masks = opacity(values)
    batches = in_masked_batches(pixels, masks, classes.to(pixels.device), baseline, batch_size)
    again = as_maps(torch.cat([as_maps(explain(*batch)) for batch in batches]))
    if again.shape != values.shape:
        found, wanted = tuple(again.shape), tuple(values.shape)
        raise CamhookError(f"explain() gave maps {found} for images with maps {wanted}; expected the same shape.")
    first, second = masks.flatten(1), opacity(again).flatten(1)
    varies = (first.std(1) > 1e-12) & (second.std(1) > 1e-12)
    correlation = torch.cosine_similarity(
        first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True), eps=0
    )
    return torch.where(varies, (1 + correlation).clamp(0, 2) / 2, 0)


def complexity(maps: Maps) -> Tensor:
    r"""Compute complexity: mean of the map's positive part, scaled to a maximum of 1; lower is better.

    :math:`\lVert m \rVert_1 / (H W)` (Poppi et al. 2021). By itself it prefers the empty map, which scores 0.

    Parameters
    ----------
    maps : Tensor or array (B, H, W)
        Signed.

    Returns
    -------
    Tensor
        (B,), float64, 0 to 1.

    Raises
    ------
    CamhookError
        The maps are not finite real numbers (B, H, W).

    Examples
    --------
    >>> complexity([[[4.0, 2.0, 0.0, -1.0]]])
    tensor([0.3750], dtype=torch.float64)
    """
    return opacity(as_maps(maps)).mean((1, 2))


def adcc(
    maps: Maps,
    images: Tensor,
    target: Target,
    model: Classifier,
    explain: Explain,
    *,
    baseline: Baseline = 0.0,
    batch_size: int = 32,
) -> Tensor:
    r"""Compute ADCC: harmonic mean of 1 - average drop, coherency and 1 - complexity; higher is better.

    .. math:: 3 / (1 / \mathrm{coherency} + 1 / (1 - \mathrm{complexity}) + 1 / (1 - \mathrm{drop}))

    (Poppi et al. 2021). It is 0 as soon as one of the three is, so for the empty map and for a constant one.
    Parameters and errors as in `average_drop` and `coherency`; the result is (B,), float64, 0 to 1.

    Examples
    --------
    >>> images, model = torch.ones(1, 1, 1, 2), lambda x: torch.stack([x[:, 0, 0, 0], 0 * x[:, 0, 0, 0]], 1)
    >>> adcc([[[1.0, 0.0]]], images, 0, model, lambda images, target: images[:, 0])  # 3 / (1 + 2 + 1)
    tensor([0.7500], dtype=torch.float64)
    """
    drop = average_drop(maps, images, target, model, baseline=baseline, batch_size=batch_size)
    alike = coherency(maps, images, target, explain, baseline=baseline, batch_size=batch_size)
    return 3 / (1 / alike + 1 / (1 - complexity(maps)) + 1 / (1 - drop))


def completeness(
    maps: Maps,
    images: Tensor,
    target: Target,
    model: Classifier,
    *,
    offset: float | Tensor | npt.ArrayLike = 0.0,
    total: Literal["mean", "sum"] = "mean",
    batch_size: int = 32,
) -> Tensor:
    r"""Compute the completeness error: :math:`|\sum_p M(p) + o - f|`, in logits; lower is better.

    The axiom Completeness of Sundararajan et al. 2017: a map and its offset o add up to the target's logit f.

    Parameters
    ----------
    maps : Tensor or array (B, h, w)
        At the size they were computed at: upsampling changes their mean.
    offset : float, or array (B,)
        What the method attributes to no position: camhook's ``offset``, or the logit of the baseline.
    total : "mean" or "sum"
        Over positions: ``"mean"`` for camhook's maps, ``"sum"`` for attributions of pixels.
    images, target, model, batch_size
        As in `average_drop`.

    Returns
    -------
    Tensor
        (B,), float64, in logits.

    Raises
    ------
    CamhookError
        Shapes do not fit together, or ``total`` is neither.

    Examples
    --------
    >>> images, model = torch.ones(1, 1, 1, 2), lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)
    >>> completeness([[[1.0, 0.5]]], images, 0, model, total="sum", offset=0.25)
    tensor([0.2500], dtype=torch.float64)
    """
    if total not in ("mean", "sum"):
        raise CamhookError(f"Found total={total!r}, expected 'mean' or 'sum' over positions; pass one of those.")
    values = as_maps(maps)
    pixels, classes = as_images(images), as_target(target, len(values))
    if len(pixels) != len(values):
        raise ImageError(f"Found {len(pixels)} images for {len(values)} maps, expected one map per image.")
    logits = target_logits(model, in_batches(pixels, classes, batch_size))
    offsets = torch.as_tensor(offset).detach().cpu().double()
    if offsets.numel() not in (1, len(values)):
        found = f"{offsets.numel()} offsets for {len(values)} maps"
        raise CamhookError(f"Found {found}, expected one for all or one per image.")
    added = values.mean((1, 2)) if total == "mean" else values.sum((1, 2))
    return (added + offsets.flatten() - logits).abs()


def _log_probabilities(
    maps: Maps, images: Tensor, target: Target, model: Classifier, baseline: Baseline, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return the target's log probability for the images and for the images times the maps, (B,) each."""
    values, pixels, classes = as_arguments(maps, images, target)
    whole = in_batches(pixels, classes, batch_size)
    masked = in_masked_batches(pixels, opacity(values), classes, baseline, batch_size)
    return target_logits(model, whole, log_softmax=True), target_logits(model, masked, log_softmax=True)
