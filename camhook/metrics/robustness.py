"""Infidelity and maximum sensitivity (Yeh et al. 2019), computed by Captum, one image at a time.

One at a time, so that an image's random perturbations and values do not depend on the other images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max as captum_sensitivity_max
from torch import Tensor

from camhook.errors import CamhookError
from camhook.metrics.arguments import (
    Baseline,
    Classifier,
    Explain,
    Maps,
    Target,
    as_arguments,
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
    model: Classifier,
    *,
    samples: int = 64,
    side: float = 0.25,
    baseline: Baseline = 0.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    r"""Compute infidelity: squared error of the map's sum over a square against the drop of the logit without it.

    .. math:: \mathbb{E}_I [(\beta I^\top M - (f(x) - f(x_I)))^2], \quad \beta = \mathbb{E}[I^\top M \Delta f] /
        \mathbb{E}[(I^\top M)^2]

    where I marks a random square and :math:`x_I` has the baseline there (Yeh et al. 2019, square removal), computed by
    ``captum.metrics.infidelity(normalize=True)``. Lower is better. Since the map is scaled by the best factor
    :math:`\beta`, neither scale nor *sign* counts: a map and its negative score the same, and the empty map scores
    :math:`\mathbb{E}[\Delta f^2]`.

    Parameters
    ----------
    samples : int
        Squares per image.
    side : float
        Side of the square, as a share of the image's shorter side.
    baseline : float or Tensor
        What replaces the square, in the images' units: a number, a colour (C, 1, 1), or images.
    batch_size : int
        Images per forward pass, and in memory.
    seed : int
        Seed of the squares, which are the same for each image.
    maps, images, target, model
        As in `camhook.metrics.deletion`.

    Returns
    -------
    Tensor
        (B,), float64, in squared logits.

    Raises
    ------
    CamhookError
        Shapes, targets or the model's output do not fit together, or an option is out of range.

    Examples
    --------
    >>> images, model = torch.rand(1, 1, 8, 8), lambda x: torch.stack([x.sum((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1)
    >>> infidelity(images[:, 0], images, 0, model).round(decimals=6)  # of a linear model, x * w is the whole difference
    tensor([0.], dtype=torch.float64)
    """
    values, pixels, classes = as_arguments(maps, images, target)
    if samples < 1 or not 0 < side <= 1:
        raise CamhookError(f"Found samples={samples}, side={side}; expected 1 or more squares, a side in (0, 1].")
    ground, pixels_cpu = as_baseline(baseline, pixels).cpu(), pixels.cpu()
    spread = values[:, None].expand(pixels.shape) / pixels.shape[1]
    scores = [
        captum_infidelity(
            _target_logit(model, classes[i], pixels.device),
            _square_removal(ground[i], side, seed),
            pixels_cpu[i : i + 1],
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
    r"""Compute maximum sensitivity: largest relative change of the map under small noise on the image; lower is better.

    .. math:: \max_{\lVert \delta \rVert_\infty \le r} \lVert M(x + \delta) - M(x) \rVert_2 / \lVert M(x) \rVert_2

    over uniform random samples (Yeh et al. 2019), computed by ``captum.metrics.sensitivity_max``. The change of a map
    of zeros is divided by 1.

    Parameters
    ----------
    images : Tensor (B, C, H, W)
        Preprocessed, as the model takes them.
    target : int, or sequence (B,)
        The explained class, which stays the same.
    explain : callable
        ``explain(images, target)``: images (N, C, H, W) and targets (N,) to maps (N, H, W).
    radius : float
        Largest change of a value, in the images' units.
    samples : int
        Random samples per image.
    batch_size : int
        Images explained at a time.
    seed : int
        Seed of the noise, which is the same for each image.

    Returns
    -------
    Tensor
        (B,), float64, 0 or more.

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
            f"Found samples={samples}, radius={radius}; expected 1 or more samples, a radius of 0 or more."
        )
    pixels, classes = as_images(images), as_target(target, len(images))
    scores = [
        captum_sensitivity_max(
            _captum_explanation(explain, wanted),
            image,
            _uniform_noise(radius, seed),
            n_perturb_samples=samples,
            max_examples_per_batch=min(checked_batch_size(batch_size), samples),
        )
        for image, wanted in zip(pixels.split(1), classes, strict=True)
    ]
    return torch.cat(scores)


# Captum reads a perturbation's signature and passes a radius to a second argument, so these take one argument.


def _square_removal(ground: Tensor, side: float, seed: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def remove(images: Tensor) -> tuple[Tensor, Tensor]:
        marked = _squares(len(images), images.shape[2:], side, generator)[:, None]
        return marked.double().expand(images.shape), torch.where(marked, ground, images)

    return remove


def _uniform_noise(radius: float, seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def perturb(images: Tensor) -> Tensor:
        noise = 2 * torch.rand(images.shape, generator=generator, dtype=torch.float64) - 1
        return images + (radius * noise).to(images)

    return perturb


def _target_logit(model: Classifier, target: Tensor, device: torch.device) -> Callable[[Tensor], Tensor]:
    def logit(images: Tensor) -> Tensor:
        return target_logits(model, [(images.to(device), target.expand(len(images)))])

    return logit


def _captum_explanation(explain: Explain, target: Tensor) -> Callable[[Tensor | tuple[Tensor, ...]], tuple[Tensor]]:
    def explanation(images: Tensor | tuple[Tensor, ...]) -> tuple[Tensor]:
        batch = images[0] if isinstance(images, tuple) else images  # Captum passes a tuple at first, and expects one
        with torch.enable_grad():  # Captum calls under no_grad, and many explanations need gradients
            maps = as_maps(explain(batch, target.expand(len(batch)).to(batch.device)))
        if len(maps) != len(batch):
            raise CamhookError(f"explain() gave {len(maps)} maps for {len(batch)} images; expected one per image.")
        return (maps,)

    return explanation


def _squares(count: int, size: tuple[int, int] | torch.Size, side: float, generator: torch.Generator) -> Tensor:
    """Mark one square per image, at a random place inside it: bool (count, H, W)."""
    height, width = size
    length = max(round(side * min(height, width)), 1)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    top, left = (corner * torch.tensor([height - length + 1, width - length + 1])).long().T
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    top, left = top[:, None, None], left[:, None, None]
    marked: Tensor = (y >= top) & (y < top + length) & (x >= left) & (x < left + length)
    return marked
