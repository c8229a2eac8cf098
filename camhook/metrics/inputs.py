"""What every metric takes: maps, images, targets and a scoring callable, checked once and in one form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy.typing as npt
import torch
from torch import Tensor, nn

from camhook.errors import CamhookError, ImageError, TargetError

Maps = Tensor | npt.ArrayLike
Target = int | Sequence[int] | Tensor | npt.ArrayLike
Scorer = Callable[[Tensor], Tensor]
"""Images (N, C, H, W), as the model takes them, to logits (N, K)."""
Explain = Callable[[Tensor, Tensor], Maps]
"""Images (N, C, H, W) and one target an image (N,) to maps (N, H, W)."""
Baseline = float | Tensor


def as_maps(maps: Maps, *, nan: bool = False) -> Tensor:
    """Return maps (B, H, W) as float64 on the CPU, where ranking and sums are exact enough and the same everywhere.

    Raises
    ------
    CamhookError
        They are not (B, H, W) real numbers, hold infinities, or hold NaN where ``nan`` does not allow it.
    """
    values = torch.as_tensor(maps).detach()
    if values.ndim != 3 or not values.numel() or values.is_complex():
        raise CamhookError(
            f"Found maps of shape {tuple(values.shape)} ({values.dtype}), expected real numbers (B, H, W). One map is "
            "maps[None]; a (B, T, H, W) result is measured one target at a time: maps[:, 0]."
        )
    values = values.cpu().double()
    if values.isinf().any() or (not nan and values.isnan().any()):
        raise CamhookError(
            "Found maps with infinite values or NaN, expected finite numbers. Where a photo's margins are NaN, measure "
            "the map at the model's input instead (CAMResult.maps upsampled to the input's size)."
        )
    return values


def as_images(images: Tensor | npt.ArrayLike, maps: Tensor | None = None) -> Tensor:
    """Return images (B, C, H, W) as they are, checked against their maps where there are any.

    Raises
    ------
    ImageError
        Another number of images than of maps, another size, or not (B, C, H, W).
    """
    pixels = torch.as_tensor(images).detach()
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise ImageError(
            f"Found images of shape {tuple(pixels.shape)} ({pixels.dtype}), expected floats (B, C, H, W) as the model "
            "takes them. Preprocess first; one image is images[None]."
        )
    if maps is not None and (len(pixels) != len(maps) or pixels.shape[2:] != maps.shape[1:]):
        raise ImageError(
            f"Found {len(pixels)} images of {tuple(pixels.shape[2:])} for {len(maps)} maps of "
            f"{tuple(maps.shape[1:])}, expected one map an image and the same (height, width). Upsample the maps."
        )
    return pixels


def as_target(target: Target, batch: int) -> Tensor:
    """Return one class an image, (B,), from one for all or a list.

    Raises
    ------
    TargetError
        They are not integers, or not one an image.
    """
    classes = torch.as_tensor(target).detach().cpu()
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TargetError(f"Found targets of {classes.dtype}, expected class indices: pass integers.")
    if classes.ndim and classes.shape != (batch,):
        raise TargetError(
            f"Found targets of shape {tuple(classes.shape)} for {batch} image{'s' * (batch != 1)}, expected one class "
            "for all or one an image."
        )
    return classes.long().expand(batch)


def as_baseline(baseline: Baseline, images: Tensor) -> Tensor:
    """Return what stands for a removed pixel, as a view of the images' shape.

    Raises
    ------
    ImageError
        It does not broadcast to the images.
    """
    value = torch.as_tensor(baseline, dtype=images.dtype, device=images.device)
    try:
        return value.expand(images.shape)
    except RuntimeError:
        raise ImageError(
            f"Found a baseline of shape {tuple(value.shape)}, expected one that broadcasts to {tuple(images.shape)}: "
            "a number, a colour (C, 1, 1), or pictures like the images."
        ) from None


def as_masks(maps: Tensor) -> Tensor:
    r"""Return :math:`\max(M, 0) / \max_p M(p)` in [0, 1]: what a map shows. Without positive evidence, nothing.

    On a map whose smallest value is 0, as after ReLU, this is the min-max scaling of the literature.
    """
    evidence = maps.clamp(min=0)
    peak = evidence.amax((1, 2), keepdim=True)
    return evidence / torch.where(peak > 0, peak, 1)


def in_shown_batches(
    images: Tensor, masks: Tensor, target: Tensor, baseline: Baseline, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images where the masks are 1, the baseline where they are 0, mixed in between; and their targets."""
    ground = as_baseline(baseline, images)
    parts = (part.split(checked_batch_size(batch_size)) for part in (images, masks, ground, target))
    for pixels, mask, empty, classes in zip(*parts, strict=True):
        yield empty + mask[:, None].to(pixels) * (pixels - empty), classes


def in_batches(images: Tensor, target: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and their targets, ``batch_size`` at a time."""
    size = checked_batch_size(batch_size)
    yield from zip(images.split(size), target.split(size), strict=True)


def checked_batch_size(batch_size: int) -> int:
    """Return it. CamhookError where it is no positive number."""
    if batch_size < 1:
        raise CamhookError(f"Found batch_size={batch_size}, expected how many images to score at a time: 1 or more.")
    return batch_size


def target_logits(model: Scorer, batches: Iterable[tuple[Tensor, Tensor]], *, log_softmax: bool = False) -> Tensor:
    """Return the target's logit, or log probability, of every image: (N,) float64 on the CPU.

    Probabilities stay logarithms as long as they can: a target that is not the model's choice may be at 1e-50.

    Raises
    ------
    CamhookError
        The model is in training mode (it would change while it is measured), or returns no logits (N, K), K > 1.
    TargetError
        The model has no such class.
    """
    if isinstance(model, nn.Module) and model.training:
        raise CamhookError("Found a model in training mode, expected one that gives the same twice: call model.eval().")
    found = []
    with torch.no_grad():
        for images, target in batches:
            output = model(images)
            if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images) or output.shape[1] < 2:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise CamhookError(
                    f"The model gave {shape} for {len(images)} images, expected logits (N, K) of two classes or more. "
                    "Pass a function that picks them; one logit x is the pair [0, x]."
                )
            logits = output.cpu().double()
            if target.min() < 0 or target.max() >= logits.shape[1]:
                raise TargetError(
                    f"Found target {target.tolist()}, expected classes 0 to {logits.shape[1] - 1}: the model has "
                    f"{logits.shape[1]}."
                )
            logits = logits.log_softmax(1) if log_softmax else logits
            found.append(logits.gather(1, target[:, None])[:, 0])
    return torch.cat(found)
