"""Insertion and deletion curves (Petsiuk et al. 2018, RISE)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from camhook.drawing.overlay import opencv
from camhook.errors import CamhookError
from camhook.metrics.arguments import as_arguments, as_baseline, as_images, as_maps, checked_batch_size, target_logits
from camhook.metrics.types import Baseline, Classifier, Maps, Target

__all__ = ["blurred", "deletion", "insertion", "perturbation_curve", "ranks"]


def deletion(
    maps: Maps,
    images: Tensor,
    target: Target,
    model: Classifier,
    *,
    steps: int = 224,
    baseline: Baseline = 0.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    r"""Compute deletion: area under the target's probability while pixels are removed, highest first; lower is better.

    .. math:: \frac{1}{S} \sum_{s=1}^{S} \frac{P_{s-1} + P_s}{2}

    with :math:`P_s` the softmax probability of the target with the first :math:`s / S` of the pixels at the baseline
    (Petsiuk et al. 2018; the authors' code replaces by zeros in the model's input, in 224 steps of 224 pixels for
    224 x 224). Pixels are ranked by signed value, so evidence against the class is removed last; ties in random order.

    Parameters
    ----------
    maps : Tensor or array (B, H, W)
        At the images' size.
    images : Tensor (B, C, H, W)
        Preprocessed, as the model takes them.
    target : int, or sequence (B,)
        The explained class, which need not be the predicted one.
    model : callable
        Images (N, C, H, W) to logits (N, K), in eval mode.
    steps : int
        Number of steps of equal size (to a pixel); at most one per pixel. The model is run steps + 1 times per image.
    baseline : float or Tensor
        What replaces removed pixels, in the images' units: a number, a colour (C, 1, 1), or images.
    batch_size : int
        Images per forward pass, and in memory.
    seed : int
        Seed of the order among ties, which is the same for all images.

    Returns
    -------
    Tensor
        (B,), float64, 0 to 1.

    Raises
    ------
    CamhookError
        Shapes, targets or the model's output do not fit together, or an option is out of range.

    Examples
    --------
    >>> images, model = torch.ones(1, 1, 1, 2), lambda x: 99 * torch.stack([x[:, 0, 0, 0] - 0.5, 0 * x[:, 0, 0, 0]], 1)
    >>> deletion([[[2.0, 1.0]]], images, 0, model)  # P is 1, then 0, then 0
    tensor([0.2500], dtype=torch.float64)
    """
    curve = perturbation_curve(maps, images, baseline, target, model, steps=steps, batch_size=batch_size, seed=seed)
    return _area(curve)


def insertion(
    maps: Maps,
    images: Tensor,
    target: Target,
    model: Classifier,
    *,
    steps: int = 224,
    baseline: Baseline | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Compute insertion: area under the target's probability while pixels return, highest first; higher is better.

    As `deletion`, but from the baseline to the image (Petsiuk et al. 2018). The default baseline is the image blurred
    by `blurred`. Other parameters, shape of the result and errors as in `deletion`.

    Examples
    --------
    >>> images, model = torch.ones(1, 1, 1, 2), lambda x: 99 * torch.stack([x[:, 0, 0, 0] - 0.5, 0 * x[:, 0, 0, 0]], 1)
    >>> insertion([[[2.0, 1.0]]], images, 0, model, baseline=0.0)  # P is 0, then 1, then 1
    tensor([0.7500], dtype=torch.float64)
    """
    pixels = as_images(images, as_maps(maps))
    start = blurred(pixels) if baseline is None else as_baseline(baseline, pixels)
    return _area(perturbation_curve(maps, start, pixels, target, model, steps=steps, batch_size=batch_size, seed=seed))


def perturbation_curve(
    maps: Maps,
    start: Tensor,
    end: Baseline,
    target: Target,
    model: Classifier,
    *,
    steps: int = 224,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Compute the perturbation curve: the target's probability on the way from ``start`` to ``end``.

    `deletion` starts and `insertion` ends at the image. Options and errors as in `deletion`.

    Parameters
    ----------
    start : Tensor (B, C, H, W)
    end : float or Tensor
        Broadcasts to ``start``.

    Returns
    -------
    Tensor
        (B, steps + 1), float64.

    Examples
    --------
    >>> images, model = torch.ones(1, 1, 1, 2), lambda x: 99 * torch.stack([x[:, 0, 0, 0] - 0.5, 0 * x[:, 0, 0, 0]], 1)
    >>> perturbation_curve([[[2.0, 1.0]]], images, 0.0, 0, model).round()
    tensor([[1., 0., 0.]], dtype=torch.float64)
    """
    values, before, classes = as_arguments(maps, start, target)
    after, size = as_baseline(end, before), values[0].numel()
    if steps < 1:
        raise CamhookError(f"Found steps={steps}, expected the number of steps: 1 or more.")
    steps = min(steps, size)
    counts = torch.tensor([round(step * size / steps) for step in range(steps + 1)])
    places = ranks(values, seed=seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in torch.arange(len(values) * (steps + 1)).split(checked_batch_size(batch_size)):
            image, step = chunk // (steps + 1), chunk % (steps + 1)
            changed = (places[image] < counts[step][:, None, None])[:, None].to(before.device)
            where = image.to(before.device)
            yield torch.where(changed, after[where], before[where]), classes[image]

    return target_logits(model, batches(), log_softmax=True).exp().view(len(values), steps + 1)


def blurred(images: Tensor, *, kernel_size: int = 11, sigma: float = 5.0) -> Tensor:
    """Blur images (B, C, H, W) with a Gaussian, edges reflected; the defaults are those of Petsiuk et al. 2018.

    The authors' kernel is slightly flatter (they fold in what 11 pixels cut off), and they pad with zeros.

    Examples
    --------
    >>> blurred(torch.tensor([[[[0.0, 0.0, 9.0, 0.0, 0.0]]]]), kernel_size=3, sigma=99).round()
    tensor([[[[0., 3., 3., 3., 0.]]]])
    """
    cv2 = opencv()
    planes = images.detach().cpu().double().flatten(0, 1).numpy()
    soft = [cv2.GaussianBlur(plane, (kernel_size, kernel_size), sigma) for plane in planes]
    return torch.from_numpy(np.stack(soft)).view(images.shape).to(images)


def ranks(maps: Tensor, *, seed: int = 0) -> Tensor:
    """Rank the pixels of each map in descending order, ties in random order: int64 (B, H, W).

    So a constant map orders pixels at random, and not by rows.

    Examples
    --------
    >>> ranks(torch.tensor([[[5.0, -1.0, 7.0]]]))
    tensor([[[1, 2, 0]]])
    """
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    order = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(dim=1).view(maps.shape)


def _area(curve: Tensor) -> Tensor:
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)
