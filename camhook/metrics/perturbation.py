"""Take pixels away, or put them back, in the order a map gives: deletion and insertion."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from camhook.drawing.overlay import opencv
from camhook.errors import CamhookError
from camhook.metrics.inputs import (
    Baseline,
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

__all__ = ["blurred", "deletion", "insertion", "perturbation_curve", "ranks"]


def deletion(
    maps: Maps,
    images: Tensor,
    target: Target,
    model: Scorer,
    *,
    steps: int = 224,
    baseline: Baseline = 0.0,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    r"""Area under the target's probability while pixels go, the map's strongest first; lower is better.

    .. math:: \frac{1}{S} \sum_{s=1}^{S} \frac{P_{s-1} + P_s}{2}

    with :math:`P_s` the softmax probability of the target once the first :math:`s / S` of the pixels are at the
    baseline (Petsiuk et al. 2018, RISE, and the authors' code: zeros in the model's input, 224 steps of
    224 pixels on 224x224). Signed values count: what speaks against the class goes last. Ties go in a random order.

    Parameters
    ----------
    maps
        (B, H, W), at the images' size.
    images
        As the model takes them, (B, C, H, W).
    target
        The explained class: one, or one an image. Need not be the model's choice.
    model
        Images to logits, in eval mode.
    steps
        How many, of equal size (to a pixel); the model sees steps + 1 pictures an image.
    baseline
        What deleted pixels become, in the images' own units: 0, or a colour (C, 1, 1), or pictures.
    batch_size
        How many pictures the model sees, and memory holds, at a time.
    seed
        Of the order among ties, one for all images.

    Returns
    -------
    Tensor
        (B,), 0 to 1.

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
    model: Scorer,
    *,
    steps: int = 224,
    baseline: Baseline | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Area under the target's probability while pixels return to a blurred image; higher is better.

    As `deletion`, from the baseline to the image, the map's strongest pixels first (Petsiuk et al. 2018). The baseline
    is the image under `blurred` unless another is given.

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
    model: Scorer,
    *,
    steps: int = 224,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Return the target's probability at each step on the way from start to end, (B, steps + 1).

    What `deletion` (from the image) and `insertion` (to the image) integrate. Options and errors as in `deletion`.

    Examples
    --------
    >>> images, model = torch.ones(1, 1, 1, 2), lambda x: 99 * torch.stack([x[:, 0, 0, 0] - 0.5, 0 * x[:, 0, 0, 0]], 1)
    >>> perturbation_curve([[[2.0, 1.0]]], images, 0.0, 0, model).round()
    tensor([[1., 0., 0.]], dtype=torch.float64)
    """
    values = as_maps(maps)
    before, classes = as_images(start, values), as_target(target, len(values))
    after, size = as_baseline(end, before), values[0].numel()
    if steps < 1:
        raise CamhookError(f"Found steps={steps}, expected how often to look; pass 1 or more.")
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
    """Blur images (B, C, H, W) with a Gaussian, their edges mirrored; by default as Petsiuk et al. 2018 for insertion.

    The authors' kernel is a little flatter (what 11 pixels cut off is folded back in) and their edges run out to 0.

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
    """Return each pixel's place, (B, H, W), when the strongest comes first and ties come in a random order.

    A constant map is so as good as a random one, whatever stands in the picture's corner.

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
