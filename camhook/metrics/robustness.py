"""Infidelity and maximum sensitivity (Yeh et al. 2019), computed by Captum, one image at a time.

One at a time, so that an image's random perturbations and values do not depend on the other images of a batch. Captum
passes a radius to a perturbation's second argument if there is one, so the perturbations take one argument.
"""

from __future__ import annotations

import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max as captum_sensitivity_max
from torch import Tensor

from camhook.errors import CamhookError
from camhook.metrics.arguments import (
    as_arguments,
    as_baseline,
    as_images,
    as_maps,
    as_target,
    checked_batch_size,
    target_logits,
)
from camhook.metrics.types import Baseline, Classifier, Explain, Maps, Target

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
    size = min(checked_batch_size(batch_size), samples)

    def of_image(i: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)

        def logit(batch: Tensor) -> Tensor:
            return target_logits(model, [(batch.to(pixels.device), classes[i].expand(len(batch)))])

        def remove(batch: Tensor) -> tuple[Tensor, Tensor]:
            marked = _squares(len(batch), batch.shape[2:], side, generator)[:, None]
            return marked.double().expand(batch.shape), torch.where(marked, ground[i], batch)

        image, attributions = pixels_cpu[i : i + 1], spread[i : i + 1]
        found: Tensor = captum_infidelity(
            logit, remove, image, attributions, n_perturb_samples=samples, max_examples_per_batch=size, normalize=True
        )
        return found

    return torch.cat([of_image(i) for i in range(len(values))]).clamp(min=0)


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
    size = min(checked_batch_size(batch_size), samples)

    def of_image(image: Tensor, wanted: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)

        def perturb(batch: Tensor) -> Tensor:
            noise = 2 * torch.rand(batch.shape, generator=generator, dtype=torch.float64) - 1
            return batch + (radius * noise).to(batch)

        def maps(given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor]:
            batch = given[0] if isinstance(given, tuple) else given  # Captum passes a tuple at first, and expects one
            with torch.enable_grad():  # Captum calls under no_grad, and many explanations need gradients
                values = as_maps(explain(batch, wanted.expand(len(batch)).to(batch.device)))
            if len(values) != len(batch):
                raise CamhookError(
                    f"explain() gave {len(values)} maps for {len(batch)} images; expected one per image."
                )
            return (values,)

        found: Tensor = captum_sensitivity_max(
            maps, image, perturb, n_perturb_samples=samples, max_examples_per_batch=size
        )
        return found

    return torch.cat([of_image(*each) for each in zip(pixels.split(1), classes, strict=True)])


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
