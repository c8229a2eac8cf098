"""Infidelity and sensitivity, Captum's own, one image at a time so that company changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max as captum_sensitivity_max
from torch import Tensor

from camhook.errors import CamhookError
from camhook.metrics.inputs import (
    Baseline,
    Explain,
    Maps,
    Scorer,
    Target,
    as_baseline,
    as_images,
    as_maps,
    as_target,
    checked_batch_size,
    target_logits,
)

__all__ = ["infidelity", "sensitivity_max"]


def infidelity(
    maps: Maps,
    images: Tensor,
    target: Target,
    model: Scorer,
    *,
    samples: int = 64,
    side: float = 0.25,
    baseline: Baseline = 0.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    r"""How badly a map tells what the logit loses with a patch; lower is better, in squared logits.

    .. math:: \mathbb{E}_I [(\beta I^\top M - (f(x) - f(x_I)))^2], \quad \beta = \mathbb{E}[I^\top M \Delta f] /
        \mathbb{E}[(I^\top M)^2]

    where I marks a random square and :math:`x_I` has the baseline there (Yeh et al. 2019, square removal), computed by
    ``captum.metrics.infidelity(normalize=True)``: the best factor :math:`\beta` is granted, so neither scale nor *sign*
    counts, a map and its negative score the same, and the empty map scores :math:`\mathbb{E}[\Delta f^2]`.

    Parameters
    ----------
    samples
        Patches an image.
    side
        Of the square, as a share of the image's shorter side.
    baseline
        What a patch becomes, in the images' own units: 0, or a colour (C, 1, 1), or pictures.
    batch_size
        How many pictures the model sees, and memory holds, at a time.
    seed
        Same seed, same patches; every image gets the same ones.
    maps, images, target, model
        As in `camhook.metrics.deletion`.

    Returns
    -------
    Tensor
        (B,)

    Raises
    ------
    CamhookError
        Shapes, targets or the model's output do not fit together, or an option is out of range.

    Examples
    --------
    >>> images, model = torch.rand(1, 1, 8, 8), lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)
    >>> infidelity(images[:, 0], images, 0, model).round(decimals=6)  # on a linear model, x * w says all
    tensor([0.], dtype=torch.float64)
    """
    values = as_maps(maps)
    pixels, classes = as_images(images, values), as_target(target, len(values))
    if samples < 1 or not 0 < side <= 1:
        raise CamhookError(f"Found samples={samples}, side={side}; expected 1 or more patches, a side in (0, 1].")
    ground, shown = as_baseline(baseline, pixels).cpu(), pixels.cpu()
    spread = values[:, None].expand(pixels.shape) / pixels.shape[1]
    scores = [
        captum_infidelity(
            _scorer(model, classes[i], pixels.device),
            _remover(ground[i], side, seed),
            shown[i : i + 1],
            spread[i : i + 1],
            n_perturb_samples=samples,
            max_examples_per_batch=min(checked_batch_size(batch_size), samples),
            normalize=True,
        )
        for i in range(len(values))
    ]
    return torch.cat(scores).clamp(min=0)


def sensitivity_max(
    images: Tensor,
    target: Target,
    explain: Explain,
    *,
    radius: float = 0.02,
    samples: int = 10,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    r"""How far the map moves, at worst, when the picture hardly does; lower is better.

    .. math:: \max_{\lVert \delta \rVert_\infty \le r} \lVert M(x + \delta) - M(x) \rVert_2 / \lVert M(x) \rVert_2

    over uniform random draws (Yeh et al. 2019), computed by ``captum.metrics.sensitivity_max``. A map of zeros is
    divided by 1.

    Parameters
    ----------
    images
        As the model takes them, (B, C, H, W).
    target
        The explained class: one, or one an image; it stays the same for the disturbed pictures.
    explain
        Images and targets to maps: ``explain(images, target)``.
    radius
        Largest change of a value, in the images' own units.
    samples
        Draws an image.
    batch_size
        How many pictures are explained at a time.
    seed
        Same seed, same noise; every image gets the same.

    Returns
    -------
    Tensor
        (B,), 0 or more.

    Raises
    ------
    CamhookError
        Shapes or targets do not fit together, or an option is out of range.

    Examples
    --------
    >>> sensitivity_max(torch.rand(1, 3, 4, 4), 0, lambda images, target: torch.ones(len(images), 4, 4))
    tensor([0.], dtype=torch.float64)
    """
    if samples < 1 or radius < 0:
        raise CamhookError(
            f"Found samples={samples}, radius={radius}; expected 1 or more draws, a radius of 0 or more."
        )
    pixels, classes = as_images(images), as_target(target, len(images))
    scores = [
        captum_sensitivity_max(
            _explained(explain, wanted),
            image,
            _disturber(radius, seed),
            n_perturb_samples=samples,
            max_examples_per_batch=min(checked_batch_size(batch_size), samples),
        )
        for image, wanted in zip(pixels.split(1), classes, strict=True)
    ]
    return torch.cat(scores)


# Captum reads a perturbation's signature and passes a radius to a second argument, so these take one.


def _remover(ground: Tensor, side: float, seed: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def remove(images: Tensor) -> tuple[Tensor, Tensor]:
        marked = _squares(len(images), images.shape[2:], side, generator)[:, None]
        return marked.double().expand(images.shape), torch.where(marked, ground, images)

    return remove


def _disturber(radius: float, seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def disturb(images: Tensor) -> Tensor:
        noise = 2 * torch.rand(images.shape, generator=generator, dtype=torch.float64) - 1
        return images + (radius * noise).to(images)

    return disturb


def _scorer(model: Scorer, target: Tensor, device: torch.device) -> Callable[[Tensor], Tensor]:
    def score(images: Tensor) -> Tensor:
        return target_logits(model, [(images.to(device), target.expand(len(images)))])

    return score


def _explained(explain: Explain, target: Tensor) -> Callable[[Tensor | tuple[Tensor, ...]], tuple[Tensor]]:
    def explained(images: Tensor | tuple[Tensor, ...]) -> tuple[Tensor]:
        batch = images[0] if isinstance(images, tuple) else images  # Captum passes a tuple first, and wants one back
        with torch.enable_grad():  # Captum calls from no_grad, and many explanations are gradients
            maps = as_maps(explain(batch, target.expand(len(batch)).to(batch.device)))
        if len(maps) != len(batch):
            raise CamhookError(f"explain() gave {len(maps)} maps for {len(batch)} images; expected one an image.")
        return (maps,)

    return explained


def _squares(count: int, size: tuple[int, int] | torch.Size, side: float, generator: torch.Generator) -> Tensor:
    """Mark one square an image, anywhere inside it: bool (count, H, W)."""
    height, width = size
    length = max(round(side * min(height, width)), 1)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    top, left = (corner * torch.tensor([height - length + 1, width - length + 1])).long().T
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    top, left = top[:, None, None], left[:, None, None]
    marked: Tensor = (y >= top) & (y < top + length) & (x >= left) & (x < left + length)
    return marked
