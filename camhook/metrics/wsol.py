"""Weakly supervised object localisation (WSOL): MaxBoxAcc, MaxBoxAccV2 and PxAP (Choe et al. 2020).

"Evaluating weakly supervised object localization methods right": each map is scaled to [0, 1] by its own minimum and
maximum; a constant map becomes 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from camhook.drawing.overlay import opencv
from camhook.errors import CamhookError, DependencyError
from camhook.metrics.arguments import as_boxes, as_maps, as_object_masks
from camhook.metrics.types import Boxes, Maps, Masks

__all__ = ["max_box_acc", "max_box_acc_v2", "pixel_average_precision", "pxap"]


def max_box_acc(maps: Maps, boxes: Boxes, *, iou: float = 0.5) -> Tensor:
    r"""Compute MaxBoxAcc: 1 where the box of the map's largest component meets a true box, else 0; higher is better.

    .. math:: \max_\tau \tfrac{1}{B} \sum_i 1[\mathrm{IoU}(\mathrm{box}(s_i > \tau), B_i) \ge \delta]

    is the mean of the result (Choe et al. 2020). The threshold is the best for all maps together, out of the 255 levels
    of 8 bits that the authors' code distinguishes; of equally good ones, the lowest. Boxes exclude their right and
    bottom edge, where the authors' IoU counts one pixel more.

    Parameters
    ----------
    maps : Tensor or array (B, H, W)
        Of the whole data set, since they share a threshold.
    boxes : sequence of B arrays (4,) or (n, 4)
        As in `camhook.metrics.pointing_game`; of several per image, the one with the largest IoU counts.
    iou : float
        Least intersection over union.

    Returns
    -------
    Tensor
        (B,), float64, 0 or 1.

    Raises
    ------
    CamhookError
        Boxes do not fit the maps, or an image has none.

    Examples
    --------
    >>> max_box_acc([[[0.0, 7.0, 8.0, 1.0]]], [[1, 0, 3, 1]])
    tensor([1.], dtype=torch.float64)
    """
    return _hits(_best_ious(maps, boxes, largest=True), iou)


def max_box_acc_v2(maps: Maps, boxes: Boxes, *, ious: Sequence[float] = (0.3, 0.5, 0.7)) -> Tensor:
    """Compute MaxBoxAccV2: mean over IoUs of `max_box_acc`, with the boxes of all components; higher is better.

    Choe et al. 2020, journal version. Each IoU has its own best threshold, and of all boxes the best counts.
    Parameters and errors as in `max_box_acc`; the result is (B,), float64, 0 to 1.

    Examples
    --------
    >>> max_box_acc_v2([[[9.0, 9.0, 9.0, 0.0, 8.0]]], [[4, 0, 5, 1]])
    tensor([1.], dtype=torch.float64)
    """
    if not len(ious):
        raise CamhookError("Found no IoU in ious, expected at least one, such as (0.3, 0.5, 0.7).")
    best = _best_ious(maps, boxes, largest=False)
    return torch.stack([_hits(best, iou) for iou in ious]).mean(0)


def pixel_average_precision(maps: Maps, masks: Masks, *, ignore: Masks | None = None) -> Tensor:
    r"""Compute average precision of each map's pixels against its mask, (B,), float64, 0 to 1; higher is better.

    .. math:: \sum_l (R_l - R_{l-1}) P_l

    with precision and recall of the pixels at or above each distinct value l, in descending order
    (``sklearn.metrics.average_precision_score``). A constant map scores the object's share of the area. Parameters and
    errors as in `pxap`, which pools the pixels of all maps.

    Examples
    --------
    >>> pixel_average_precision([[[3.0, 2.0, 1.0]]], [[[True, False, True]]])  # 1/2 * 1 + 1/2 * 2/3
    tensor([0.8333], dtype=torch.float64)
    """
    values, truth, counted = _pixels(maps, masks, ignore)
    return torch.stack([_average_precision(v[c], t[c]) for v, t, c in zip(values, truth, counted, strict=True)])


def pxap(maps: Maps, masks: Masks, *, ignore: Masks | None = None) -> Tensor:
    """Compute PxAP: average precision of the pixels of all maps together; higher is better.

    Choe et al. 2020, with a threshold at each distinct value instead of 1,000 bins. The maps share the thresholds, so
    it is not the mean of `pixel_average_precision`.

    Parameters
    ----------
    maps : Tensor or array (B, H, W)
        Each is scaled to [0, 1].
    masks : bool Tensor or array (B, H, W)
        The object's pixels.
    ignore : bool Tensor or array (B, H, W), optional
        Pixels that are left out.

    Returns
    -------
    Tensor
        (), float64, 0 to 1.

    Raises
    ------
    CamhookError
        Shapes differ, an image has no object, or all of it is ignored.
    DependencyError
        scikit-learn is not installed.

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


def _best_ious(maps: Maps, boxes: Boxes, *, largest: bool) -> Tensor:
    """Return the largest IoU of a component's box and a true box, for each image and threshold: (B, 255)."""
    cv2 = opencv()
    levels = (_scaled(maps) * 255).to(torch.uint8).numpy()
    if len(boxes) != len(levels):
        raise CamhookError(f"Found boxes of {len(boxes)} images for {len(levels)} maps, expected one entry per image.")
    best = torch.zeros(len(levels), 255, dtype=torch.float64)
    for i, true in enumerate(as_boxes(boxes, levels.shape[1:])):
        for threshold in np.unique(levels[i]):  # between two adjacent levels of a map nothing changes
            above = (levels[i] > threshold).astype(np.uint8)
            stats = cv2.connectedComponentsWithStats(above, connectivity=8)[2][1:]
            if not len(stats):
                continue
            kept = stats[[stats[:, cv2.CC_STAT_AREA].argmax()]] if largest else stats
            corners = np.concatenate([kept[:, :2], kept[:, :2] + kept[:, 2:4]], axis=1)
            ious = box_iou(torch.from_numpy(corners).double(), torch.from_numpy(true))
            best[i, int(threshold) :] = ious.max()
        best[i, int(levels[i].max()) :] = 0
    return best


def _hits(best_ious: Tensor, iou: float) -> Tensor:
    hits = best_ious >= iou
    return hits[:, hits.sum(0).argmax()].double()


def _pixels(maps: Maps, masks: Masks, ignore: Masks | None) -> tuple[Tensor, Tensor, Tensor]:
    values = _scaled(maps)
    truth = as_object_masks(masks, values)
    counted = torch.ones_like(truth) if ignore is None else ~torch.as_tensor(ignore).detach().cpu().bool()
    if counted.shape != truth.shape or not (truth & counted).flatten(1).any(1).all():
        found = f"shape {tuple(counted.shape)} for maps of {tuple(truth.shape)}"
        raise CamhookError(f"Found pixels to ignore of {found}, or all of an object; expected to leave some of each.")
    return values, truth, counted


def _average_precision(values: Tensor, truth: Tensor) -> Tensor:
    try:
        from sklearn.metrics import average_precision_score
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Average precision needs scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    found = average_precision_score(truth.flatten().numpy(), values.flatten().numpy())
    return torch.tensor(float(found), dtype=torch.float64)
