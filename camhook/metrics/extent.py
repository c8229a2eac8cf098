"""Does a map cover the thing? Over the data set's own best threshold (Choe et al. 2020) or over all of them.

Choe et al. 2020, "Evaluating weakly supervised object localization methods right": maps are scaled to [0, 1] each by
its own minimum and maximum; what a constant map shows is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.drawing.overlay import opencv
from camhook.errors import CamhookError
from camhook.metrics.inputs import Maps, as_maps
from camhook.metrics.localisation import Boxes, Masks, checked_boxes, checked_truth_masks

__all__ = ["max_box_acc", "max_box_acc_v2", "pixel_average_precision", "pxap"]


def max_box_acc(maps: Maps, boxes: Boxes, *, iou: float = 0.5) -> Tensor:
    r"""1 where the box around the map's largest component meets a true box, at the best threshold; higher is better.

    .. math:: \max_\tau \tfrac{1}{B} \sum_i 1[\mathrm{IoU}(\mathrm{box}(s_i > \tau), B_i) \ge \delta]

    The mean of what is returned is MaxBoxAcc (Choe et al. 2020). The threshold is chosen once, for all
    maps given, out of the 255 levels of 8 bits that the authors' code tells apart; of equally good ones, the lowest.
    Boxes exclude their right and bottom edge, where the authors' IoU counts one pixel more.

    Parameters
    ----------
    maps
        (B, H, W): all of the data set that shares a threshold.
    boxes
        As in `camhook.metrics.pointing_game`; of several in an image, the best met counts.
    iou
        What counts as met.

    Returns
    -------
    Tensor
        (B,), 0 or 1.

    Raises
    ------
    CamhookError
        Boxes do not fit the maps, or an image has none.

    Examples
    --------
    >>> max_box_acc([[[0.0, 7.0, 8.0, 1.0]]], [[1, 0, 3, 1]])
    tensor([1.], dtype=torch.float64)
    """
    return _best(_overlaps(maps, boxes, largest=True), iou)


def max_box_acc_v2(maps: Maps, boxes: Boxes, *, ious: Sequence[float] = (0.3, 0.5, 0.7)) -> Tensor:
    """Mean over IoU 30, 50 and 70% of `max_box_acc`, with the boxes of all components; higher is better.

    Each IoU has its own best threshold; of all the boxes, the best counts. The mean is MaxBoxAccV2 (Choe et al. 2020,
    journal version). Parameters and errors as in `max_box_acc`.

    Examples
    --------
    >>> max_box_acc_v2([[[9.0, 9.0, 9.0, 0.0, 8.0]]], [[4, 0, 5, 1]])
    tensor([1.], dtype=torch.float64)
    """
    if not len(ious):
        raise CamhookError("Found no IoU in ious, expected at least one, such as (0.3, 0.5, 0.7).")
    overlaps = _overlaps(maps, boxes, largest=False)
    return torch.stack([_best(overlaps, iou) for iou in ious]).mean(0)


def pixel_average_precision(maps: Maps, masks: Masks, *, ignore: Masks | None = None) -> Tensor:
    r"""Area under the precision-recall curve over each map's pixels, (B,); higher is better.

    .. math:: \sum_l (R_l - R_{l-1}) P_l

    over the distinct values l from above, precision and recall of the pixels at or over l. A constant map scores the
    object's share of the area. Parameters and errors as in `pxap`, which pools all pixels.

    Examples
    --------
    >>> pixel_average_precision([[[3.0, 2.0, 1.0]]], [[[True, False, True]]])  # 1/2 * 1 + 1/2 * 2/3
    tensor([0.8333], dtype=torch.float64)
    """
    values, truth, counted = _pixels(maps, masks, ignore)
    return torch.stack([_average_precision(v[c], t[c]) for v, t, c in zip(values, truth, counted, strict=True)])


def pxap(maps: Maps, masks: Masks, *, ignore: Masks | None = None) -> Tensor:
    """PxAP: average precision over the pixels of all maps together, a scalar; higher is better.

    Choe et al. 2020, over every distinct value instead of their 1,000 bins. One threshold for all images:
    not the mean of `pixel_average_precision`.

    Parameters
    ----------
    maps
        (B, H, W); each is scaled to [0, 1] first.
    masks
        What belongs to the object, bool (B, H, W).
    ignore
        Pixels that count neither way, bool (B, H, W).

    Returns
    -------
    Tensor
        (), 0 to 1.

    Raises
    ------
    CamhookError
        Shapes differ, or an image has no object, or no pixel of it counts.

    Examples
    --------
    >>> pxap([[[3.0, 2.0, 1.0]]], [[[True, False, True]]])
    tensor(0.8333, dtype=torch.float64)
    """
    values, truth, counted = _pixels(maps, masks, ignore)
    return _average_precision(values[counted], truth[counted])


def _scaled(maps: Maps) -> Tensor:
    values = as_maps(maps, nan=True)
    low = values.nan_to_num(nan=torch.inf).amin((1, 2), keepdim=True)
    height = values.nan_to_num(nan=-torch.inf).amax((1, 2), keepdim=True) - low
    return ((values - low) / torch.where(height > 0, height, 1)).nan_to_num(nan=0.0)


def _overlaps(maps: Maps, boxes: Boxes, *, largest: bool) -> Tensor:
    """Return the best IoU of any estimated with any true box, for each image and threshold: (B, 255)."""
    cv2 = opencv()
    levels = (_scaled(maps) * 255).to(torch.uint8).numpy()
    if len(boxes) != len(levels):
        raise CamhookError(f"Found boxes of {len(boxes)} images for {len(levels)} maps, expected one entry an image.")
    found = torch.zeros(len(levels), 255, dtype=torch.float64)
    for i, true in enumerate(checked_boxes(boxes, levels.shape[1:])):
        for threshold in np.unique(levels[i]):  # between two of a map's own levels nothing changes
            above = (levels[i] > threshold).astype(np.uint8)
            stats = cv2.connectedComponentsWithStats(above, connectivity=8)[2][1:]
            if not len(stats):
                continue
            kept = stats[[stats[:, cv2.CC_STAT_AREA].argmax()]] if largest else stats
            corners = np.concatenate([kept[:, :2], kept[:, :2] + kept[:, 2:4]], axis=1)
            found[i, int(threshold) :] = float(_iou(corners, true).max())
        found[i, int(levels[i].max()) :] = 0
    return found


def _best(overlaps: Tensor, iou: float) -> Tensor:
    met = overlaps >= iou
    return met[:, met.sum(0).argmax()].double()


def _iou(boxes: npt.NDArray[np.integer], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of each box with each other one, (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = (high - low).clip(min=0).prod(axis=2)
    area, other_area = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    union: npt.NDArray[np.float64] = common / (area[:, None] + other_area[None] - common)
    return union


def _pixels(maps: Maps, masks: Masks, ignore: Masks | None) -> tuple[Tensor, Tensor, Tensor]:
    values = _scaled(maps)
    truth = checked_truth_masks(masks, values)
    counted = torch.ones_like(truth) if ignore is None else ~torch.as_tensor(ignore).detach().cpu().bool()
    if counted.shape != truth.shape or not (truth & counted).flatten(1).any(1).all():
        found = f"shape {tuple(counted.shape)} for maps of {tuple(truth.shape)}"
        raise CamhookError(f"Found pixels to ignore of {found}, or all of an object; expected to leave some of each.")
    return values, truth, counted


def _average_precision(values: Tensor, truth: Tensor) -> Tensor:
    order = values.argsort(descending=True)
    ranked, hits = values[order], truth[order].cumsum(0).double()
    last = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)]).nonzero().flatten()  # of its value
    hits = hits[last]
    return (torch.diff(hits, prepend=torch.zeros(1, dtype=torch.float64)) / hits[-1] * hits / (last + 1)).sum()
