"""Arguments of the metrics, checked and converted, and batched evaluation of a classifier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from camhook.errors import CamhookError, ImageError, TargetError
from camhook.metrics.types import Baseline, Boxes, Classifier, Maps, Masks, Target


def as_arguments(maps: Maps, images: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Return maps, images and targets, one of each per image; see `as_maps`, `as_images` and `as_target`."""
    values = as_maps(maps)
    return values, as_images(images, values), as_target(target, len(values))


def as_maps(maps: Maps, *, nan: bool = False) -> Tensor:
    """Return maps (B, H, W) as float64 on the CPU, so that ranks and sums do not depend on the device.

    Raises
    ------
    CamhookError
        They are not (B, H, W) real numbers, hold infinities, or hold NaN although ``nan`` is False.
    """
    values = torch.as_tensor(maps).detach()
    if values.ndim != 3 or not values.numel() or values.is_complex():
        raise CamhookError(
            f"Found maps of shape {tuple(values.shape)} ({values.dtype}), expected real numbers (B, H, W). For one map "
            "pass maps[None]; for one target of a (B, T, H, W) result pass maps[:, 0]."
        )
    values = values.cpu().double()
    if values.isinf().any() or (not nan and values.isnan().any()):
        raise CamhookError(
            "Found maps with infinite values or NaN, expected finite numbers. Where a photo's margins are NaN, measure "
            "the map at the model's input instead (CAMResult.maps upsampled to the input's size)."
        )
    return values


def as_images(images: Tensor | npt.ArrayLike, maps: Tensor | None = None) -> Tensor:
    """Return images (B, C, H, W), checked against their maps (B, H, W) if there are any.

    Raises
    ------
    ImageError
        They are not floats (B, C, H, W), or differ from the maps in number or size.
    """
    pixels = torch.as_tensor(images).detach()
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise ImageError(
            f"Found images of shape {tuple(pixels.shape)} ({pixels.dtype}), expected floats (B, C, H, W) as the model "
            "takes them. Preprocess first; for one image pass images[None]."
        )
    if maps is not None and (len(pixels) != len(maps) or pixels.shape[2:] != maps.shape[1:]):
        raise ImageError(
            f"Found {len(pixels)} images of {tuple(pixels.shape[2:])} for {len(maps)} maps of "
            f"{tuple(maps.shape[1:])}, expected one map per image and the same (height, width). Upsample the maps."
        )
    return pixels


def as_target(target: Target, batch: int) -> Tensor:
    """Return one class index per image, int64 (B,), on the CPU.

    Raises
    ------
    TargetError
        They are not integers, or not one per image.
    """
    classes = torch.as_tensor(target).detach().cpu()
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TargetError(f"Found targets of {classes.dtype}, expected class indices: pass integers.")
    if classes.ndim and classes.shape != (batch,):
        raise TargetError(
            f"Found targets of shape {tuple(classes.shape)} for {batch} image{'s' * (batch != 1)}, expected one class "
            "for all or one per image."
        )
    return classes.long().expand(batch)


def as_baseline(baseline: Baseline, images: Tensor) -> Tensor:
    """Return the baseline as a view of the images' shape.

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
            "a number, a colour (C, 1, 1), or images of the same shape."
        ) from None


def as_boxes(boxes: Boxes, size: tuple[int, int]) -> list[npt.NDArray[np.float64]]:
    """Return each image's boxes, (n, 4) with n of 1 or more, for maps of (height, width) ``size``.

    Raises
    ------
    CamhookError
        An image has no box, or one that is not (left, top, right, bottom) or lies outside the map.
    """
    height, width = size
    found = []
    for i, row in enumerate(boxes):
        rows = np.asarray(row, dtype=np.float64)
        rows = rows[None] if rows.ndim == 1 and rows.size else rows
        if rows.ndim != 2 or rows.shape[1:] != (4,) or not len(rows) or (rows[:, :2] >= rows[:, 2:]).any():
            raise CamhookError(
                f"Found boxes {rows.tolist()} for image {i}, expected at least one (left, top, right, bottom) with "
                "left < right and top < bottom. Leave out images that have none."
            )
        if (rows[:, 2:] <= 0).any() or (rows[:, 0] >= width).any() or (rows[:, 1] >= height).any():
            raise CamhookError(
                f"Found boxes {rows.tolist()} for image {i}, outside its map of {(height, width)} pixels; expected "
                "boxes in the map's own pixels. Scale and shift them as the image was."
            )
        found.append(rows)
    return found


def as_object_masks(masks: Masks, maps: Tensor) -> Tensor:
    """Return object masks as bool (B, H, W) on the CPU, checked against their maps.

    Raises
    ------
    CamhookError
        They differ from the maps in shape, or one is empty.
    """
    found = torch.as_tensor(masks).detach().cpu().bool()
    if found.shape != maps.shape:
        shapes = f"{tuple(found.shape)} for maps of {tuple(maps.shape)}"
        raise CamhookError(f"Found masks of shape {shapes}, expected the same (B, H, W); resize one of them.")
    empty = (~found.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise CamhookError(f"Found an empty mask for image {empty[0]}, expected an object; leave out images without.")
    return found


def opacity(maps: Tensor) -> Tensor:
    r"""Return :math:`\max(M, 0) / \max_p M(p)` in [0, 1], (B, H, W); zeros where a map has no positive value.

    For a map whose minimum is 0, as after ReLU, this is the literature's min-max scaling.
    """
    evidence = maps.clamp(min=0)
    peak = evidence.amax((1, 2), keepdim=True)
    return evidence / torch.where(peak > 0, peak, 1)


def in_batches(images: Tensor, target: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and their targets, ``batch_size`` at a time."""
    size = checked_batch_size(batch_size)
    yield from zip(images.split(size), target.split(size), strict=True)


def in_masked_batches(
    images: Tensor, masks: Tensor, target: Tensor, baseline: Baseline, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``baseline + mask * (images - baseline)`` and the targets, ``batch_size`` at a time."""
    ground = as_baseline(baseline, images)
    parts = (part.split(checked_batch_size(batch_size)) for part in (images, masks, ground, target))
    for pixels, mask, empty, classes in zip(*parts, strict=True):
        yield empty + mask[:, None].to(pixels) * (pixels - empty), classes


def checked_batch_size(batch_size: int) -> int:
    """Return the batch size; raise CamhookError if it is not positive."""
    if batch_size < 1:
        raise CamhookError(f"Found batch_size={batch_size}, expected how many images to score at a time: 1 or more.")
    return batch_size


def target_logits(model: Classifier, batches: Iterable[tuple[Tensor, Tensor]], *, log_softmax: bool = False) -> Tensor:
    """Return the target's logit, or log probability, of each image: (N,), float64 on the CPU.

    Log probabilities, since the probability of a class that was not predicted may underflow.

    Raises
    ------
    CamhookError
        The model is in training mode, or returns no logits (N, K) with K of 2 or more.
    TargetError
        The model has no such class.
    """
    if isinstance(model, nn.Module) and model.training:
        raise CamhookError("Found a model in training mode, expected deterministic logits: call model.eval().")
    found = []
    with torch.no_grad():
        for images, target in batches:
            output = model(images)
            if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images) or output.shape[1] < 2:
                shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise CamhookError(
                    f"The model gave {shape} for {len(images)} images, expected logits (N, K) of two classes or more. "
                    "Pass a function that picks them; a single logit x is the pair [0, x]."
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
