"""Does the model still see its class in what a map shows? Values of one map an image: (B,), float64."""

from __future__ import annotations

from typing import Literal

import numpy.typing as npt
import torch
from torch import Tensor

from camhook.errors import CamhookError, ImageError
from camhook.metrics.inputs import (
    Baseline,
    Explain,
    Maps,
    Scorer,
    Target,
    as_images,
    as_maps,
    as_masks,
    as_target,
    in_batches,
    in_shown_batches,
    target_logits,
)

__all__ = ["adcc", "average_drop", "average_gain", "coherency", "completeness", "complexity", "increase_in_confidence"]


def average_drop(
    maps: Maps, images: Tensor, target: Target, model: Scorer, *, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    r"""Share of the confidence that is lost when the model sees only what the map shows; lower is better.

    .. math:: \max(0, Y - O) / Y

    with Y the softmax probability of the target on the image and O on the image times the map, the map's positive
    part scaled to a largest value of 1 (Chattopadhyay et al. 2018, Grad-CAM++; there in percent). A map
    without positive evidence shows the baseline alone.

    Parameters
    ----------
    maps
        Signed, (B, H, W), at the images' size.
    images
        As the model takes them, (B, C, H, W).
    target
        The explained class: one, or one an image. Need not be the model's choice.
    model
        Images to logits, in eval mode.
    baseline
        What unshown pixels become, in the images' own units: 0, or a colour (C, 1, 1), or pictures.
    batch_size
        How many images the model sees at a time.

    Returns
    -------
    Tensor
        (B,), 0 (nothing lost) to 1.

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
    before, after = _confidences(maps, images, target, model, baseline, batch_size)
    return torch.expm1((after - before).clamp(max=0)).abs()


def increase_in_confidence(
    maps: Maps, images: Tensor, target: Target, model: Scorer, *, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    """1 where the model is surer of the target on what the map shows than on the image, else 0; higher is better.

    The mean is the rate of Chattopadhyay et al. 2018: O > Y. Parameters and errors as in `average_drop`.

    Examples
    --------
    >>> images, model = torch.tensor([[[[1.0, -1.0]]]]), lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)
    >>> increase_in_confidence([[[1.0, 0.0]]], images, 0, model)
    tensor([1.], dtype=torch.float64)
    """
    before, after = _confidences(maps, images, target, model, baseline, batch_size)
    return (after > before).double()


def average_gain(
    maps: Maps, images: Tensor, target: Target, model: Scorer, *, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    r"""How much of the missing confidence the map's own picture adds; higher is better.

    .. math:: \max(0, O - Y) / (1 - Y)

    with Y and O as in `average_drop`, whose counterpart it is (Zhang et al. 2024, Opti-CAM). 0 where
    nothing was missing. Parameters and errors as in `average_drop`.

    Examples
    --------
    >>> images, model = torch.tensor([[[[1.0, -1.0]]]]), lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)
    >>> average_gain([[[1.0, 0.0]]], images, 0, model)  # 0.5 rises to sigmoid(1)
    tensor([0.4621], dtype=torch.float64)
    """
    before, after = _confidences(maps, images, target, model, baseline, batch_size)
    missing = -torch.expm1(before)
    return (after.exp() - before.exp()).clamp(min=0) / torch.where(missing > 0, missing, 1)


def coherency(
    maps: Maps, images: Tensor, target: Target, explain: Explain, *, baseline: Baseline = 0.0, batch_size: int = 32
) -> Tensor:
    r"""How like a map is to the map of what it shows; higher is better.

    .. math:: (1 + r(m(x), m(m(x) \circ x))) / 2

    with r Pearson's correlation over positions and m the map's positive part scaled to 1 (Poppi et al. 2021,
    ADCC). An undefined correlation, of a constant map or one that shows nothing, counts 0.

    Parameters
    ----------
    explain
        Images and targets to maps: ``explain(images, target)``, the method that made ``maps``.
    maps, images, target, baseline, batch_size
        As in `average_drop`.

    Returns
    -------
    Tensor
        (B,), 0 to 1.

    Raises
    ------
    CamhookError
        Shapes do not fit together, or ``explain`` returns other than one map an image, at its size.

    Examples
    --------
    >>> coherency([[[3.0, 0.0]]], torch.ones(1, 1, 1, 2), 0, lambda images, target: images[:, 0]).round(decimals=6)
    tensor([1.], dtype=torch.float64)
    """
    values = as_maps(maps)
    pixels, masks, classes = as_images(images, values), as_masks(values), as_target(target, len(values))
    batches = in_shown_batches(pixels, masks, classes.to(pixels.device), baseline, batch_size)
    again = as_maps(torch.cat([as_maps(explain(*batch)) for batch in batches]))
    if again.shape != values.shape:
        found, wanted = tuple(again.shape), tuple(values.shape)
        raise CamhookError(f"explain() gave maps {found} for images with maps {wanted}; expected the same shape.")
    first, second = (m.flatten(1) - m.mean((1, 2))[:, None] for m in (masks, as_masks(again)))
    norm = first.norm(dim=1) * second.norm(dim=1)
    varies = (masks.flatten(1).std(1) > 1e-12) & (as_masks(again).flatten(1).std(1) > 1e-12)
    return torch.where(varies, (1 + (first * second).sum(1) / norm).clamp(0, 2) / 2, 0)


def complexity(maps: Maps) -> Tensor:
    r"""How much a map shows: :math:`\lVert m \rVert_1 / (H W)`; lower is better (Poppi et al. 2021).

    m is the map's positive part scaled to 1. Alone it says little: the empty map scores 0, best of all.

    Returns
    -------
    Tensor
        (B,), 0 to 1.

    Examples
    --------
    >>> complexity([[[4.0, 2.0, 0.0, -1.0]]])
    tensor([0.3750], dtype=torch.float64)
    """
    return as_masks(as_maps(maps)).mean((1, 2))


def adcc(
    maps: Maps,
    images: Tensor,
    target: Target,
    model: Scorer,
    explain: Explain,
    *,
    baseline: Baseline = 0.0,
    batch_size: int = 32,
) -> Tensor:
    r"""Average Drop, Coherency and Complexity in one; higher is better.

    .. math:: 3 / (1 / \mathrm{coherency} + 1 / (1 - \mathrm{complexity}) + 1 / (1 - \mathrm{drop}))

    The harmonic mean (Poppi et al. 2021): 0 as soon as one of the three fails, so for the empty map and for
    the one that shows all. Parameters and errors as in `average_drop` and `coherency`.

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
    model: Scorer,
    *,
    offset: float | Tensor | npt.ArrayLike = 0.0,
    total: Literal["mean", "sum"] = "mean",
    batch_size: int = 32,
) -> Tensor:
    r"""How far a map, added up, misses the logit it explains: :math:`|\sum_p M(p) + o - f|`; lower is better.

    Parameters
    ----------
    maps
        (B, h, w), at the size they were computed at: upsampling changes their mean.
    offset
        What the method gives to no position: camhook's ``offset``, or the logit of Captum's baseline (Sundararajan et
        al. 2017, axiom Completeness). One for all, or one an image.
    total
        ``"mean"`` over positions for camhook's maps, ``"sum"`` for attributions of single pixels.
    images, target, model, batch_size
        As in `average_drop`.

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
        raise ImageError(f"Found {len(pixels)} images for {len(values)} maps, expected one map an image.")
    score = target_logits(model, in_batches(pixels, classes, batch_size))
    rest = torch.as_tensor(offset).detach().cpu().double()
    if rest.numel() not in (1, len(values)):
        found = f"{rest.numel()} offsets for {len(values)} maps"
        raise CamhookError(f"Found {found}, expected one for all or one an image.")
    added = values.mean((1, 2)) if total == "mean" else values.sum((1, 2))
    return (added + rest.flatten() - score).abs()


def _confidences(
    maps: Maps, images: Tensor, target: Target, model: Scorer, baseline: Baseline, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return the target's log probability on the images and on what the maps show of them, (B,) each."""
    values = as_maps(maps)
    pixels, classes = as_images(images, values), as_target(target, len(values))
    whole = in_batches(pixels, classes, batch_size)
    shown = in_shown_batches(pixels, as_masks(values), classes, baseline, batch_size)
    return target_logits(model, whole, log_softmax=True), target_logits(model, shown, log_softmax=True)
