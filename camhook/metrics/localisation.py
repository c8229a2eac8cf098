"""Does a map point at the thing? Against boxes or masks someone drew; values of one map an image: (B,), float64.

NaN, what a crop left out of a photo, counts as no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.drawing.overlay import opencv
from camhook.errors import CamhookError, ImageError
from camhook.metrics.inputs import Maps, as_maps

__all__ = ["box_masks", "checked_boxes", "energy_inside", "grid_pointing_game", "mosaics", "pointing_game"]

Boxes: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[npt.ArrayLike]
"""One box (4,) or several (n, 4) an image: left, top, right, bottom in the map's pixels, right and bottom exclusive."""
Masks: TypeAlias = Tensor | npt.ArrayLike


def pointing_game(
    maps: Maps, boxes: Boxes | None = None, *, masks: Masks | None = None, tolerance: float | None = None
) -> Tensor:
    """1 where the map's maximum lies in the object or within the tolerance of it, else 0; higher is better.

    Zhang et al. 2018 (Excitation Backprop). Of several equal maxima, the share that hits: a constant map
    scores what a blind guess would. Only the order counts, so a map without positive evidence points too.

    Parameters
    ----------
    maps
        (B, H, W).
    boxes
        One or several an image, left, top, right, bottom in the map's pixels, right and bottom exclusive.
    masks
        Instead of boxes: what belongs to the object, boolean (B, H, W).
    tolerance
        Pixels between centres. Default: 15, as in the paper, if no side is below 224, else 0.

    Returns
    -------
    Tensor
        (B,), 0 to 1.

    Raises
    ------
    CamhookError
        Neither or both of boxes and masks were given, they do not fit the maps, or an image has none.

    Examples
    --------
    >>> pointing_game([[[0.0, 3.0, 1.0, 2.0]]], [[2, 0, 4, 1]])
    tensor([0.], dtype=torch.float64)
    >>> pointing_game([[[0.0, 3.0, 1.0, 2.0]]], [[2, 0, 4, 1]], tolerance=1)
    tensor([1.], dtype=torch.float64)
    """
    values = as_maps(maps, nan=True)
    if tolerance is None:
        tolerance = 15 if min(values.shape[1:]) >= 224 else 0
    if tolerance < 0:
        raise CamhookError(f"Found tolerance={tolerance}, expected a distance in pixels; pass 0 or more.")
    cv2, inside = opencv(), _truth(values, boxes, masks)
    away = [
        cv2.distanceTransform((~mask).numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for mask in inside
    ]
    values = values.nan_to_num(nan=-torch.inf)
    best = values == values.amax((1, 2), keepdim=True)
    hits = best & (torch.from_numpy(np.stack(away)) <= tolerance + 1e-4)  # OpenCV's distances are float32
    return hits.sum((1, 2)).double() / best.sum((1, 2))


def energy_inside(maps: Maps, boxes: Boxes | None = None, *, masks: Masks | None = None) -> Tensor:
    r"""Share of the positive evidence inside the object; higher is better.

    .. math:: \sum_{p \in \mathrm{object}} \max(0, M(p)) / \sum_p \max(0, M(p))

    The energy-based pointing game of Wang et al. 2020 (Score-CAM). 0 without positive evidence; a
    map that knows nothing scores the object's share of the area. Parameters and errors as in `pointing_game`.

    Examples
    --------
    >>> energy_inside([[[3.0, 1.0, -5.0]]], [[0, 0, 1, 1]])
    tensor([0.7500], dtype=torch.float64)
    """
    values = as_maps(maps, nan=True)
    return _share(values, _truth(values, boxes, masks))


def grid_pointing_game(maps: Maps, cells: Sequence[int] | Tensor | npt.ArrayLike, *, grid: int = 2) -> Tensor:
    r"""Share of the positive evidence in the right cell of a mosaic; higher is better.

    .. math:: \sum_{p \in \mathrm{cell}} \max(0, M(p)) / \sum_p \max(0, M(p))

    on a grid x grid mosaic of confident images of different classes, for the class of one cell (Rao et al. 2022,
    "Towards better understanding attribution methods", GridPG; Böhle et al. 2021). Chance is 1 / grid**2; 0 without
    positive evidence.

    Parameters
    ----------
    maps
        Of the mosaic, for the class of the cell, (B, H, W).
    cells
        Which one, counted along rows from the upper left, 0 to grid**2 - 1, (B,).
    grid
        Cells a side.

    Returns
    -------
    Tensor
        (B,), 0 to 1.

    Raises
    ------
    CamhookError
        A cell does not exist, not one a map is given, or the map is too small for the grid.

    Examples
    --------
    >>> grid_pointing_game([[[6.0, 0.0], [2.0, -9.0]]], [2])
    tensor([0.2500], dtype=torch.float64)
    """
    values = as_maps(maps, nan=True)
    count, height, width = values.shape
    if grid < 1 or grid > min(height, width):
        raise CamhookError(
            f"Found a grid of {grid} x {grid} cells on maps of {(height, width)}, expected at least a pixel a cell. "
            "Take a smaller grid or larger images."
        )
    wanted = torch.as_tensor(cells).cpu()
    if wanted.shape != (count,) or wanted.is_floating_point() or wanted.min() < 0 or wanted.max() >= grid**2:
        raise CamhookError(
            f"Found cells {wanted.tolist()} for {count} maps, expected one from 0 to {grid**2 - 1} a map, along rows."
        )
    rows, columns = (torch.arange(side) * grid // side for side in (height, width))
    return _share(values, (rows[:, None] * grid + columns) == wanted[:, None, None])


def mosaics(images: Tensor, *, grid: int = 2) -> Tensor:
    """Lay images (n * grid**2, C, H, W) out as n mosaics (n, C, grid * H, grid * W), along rows.

    Raises
    ------
    ImageError
        The images do not fill whole mosaics.

    Examples
    --------
    >>> mosaics(torch.arange(4.0).view(4, 1, 1, 1))
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    if images.ndim != 4 or grid < 1 or not len(images) or len(images) % grid**2:
        found = f"images of shape {tuple(images.shape)}"
        raise ImageError(f"Found {found}, expected (n * {grid**2}, C, H, W) for mosaics of {grid} x {grid}.")
    channels, height, width = images.shape[1:]
    cells = images.view(-1, grid, grid, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(-1, channels, grid * height, grid * width)


def box_masks(boxes: Boxes, size: tuple[int, int]) -> Tensor:
    """Mark the pixels of each image's boxes, bool (B, H, W); edges between pixels are rounded.

    Raises
    ------
    CamhookError
        As in `checked_boxes`.

    Examples
    --------
    >>> box_masks([[1, 0, 3, 1]], (1, 4))
    tensor([[[False,  True,  True, False]]])
    """
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, rows in zip(masks, checked_boxes(boxes, size), strict=True):
        for left, top, right, bottom in np.rint(rows).astype(int).tolist():
            mask[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)] = True
    return masks


def checked_boxes(boxes: Boxes, size: tuple[int, int]) -> list[npt.NDArray[np.float64]]:
    """Return each image's boxes, (n, 4), at least one.

    Raises
    ------
    CamhookError
        Not (n, 4) with left < right and top < bottom, none at all, or one outside the map.
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


def checked_truth_masks(masks: Masks, maps: Tensor) -> Tensor:
    """Return masks as bool (B, H, W), each with something in it.

    Raises
    ------
    CamhookError
        Another shape than the maps', or an empty mask.
    """
    found = torch.as_tensor(masks).detach().cpu().bool()
    if found.shape != maps.shape:
        shapes = f"{tuple(found.shape)} for maps of {tuple(maps.shape)}"
        raise CamhookError(f"Found masks of shape {shapes}, expected the same (B, H, W); resize one of them.")
    empty = (~found.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise CamhookError(f"Found an empty mask for image {empty[0]}, expected an object; leave out images without.")
    return found


def _truth(maps: Tensor, boxes: Boxes | None, masks: Masks | None) -> Tensor:
    if (boxes is None) == (masks is None):
        both = "both boxes and masks" if boxes is not None else "neither boxes nor masks"
        raise CamhookError(f"Found {both}, expected one of them: where the object is in each image.")
    if masks is not None:
        return checked_truth_masks(masks, maps)
    assert boxes is not None
    if len(boxes) != len(maps):
        raise CamhookError(f"Found boxes of {len(boxes)} images for {len(maps)} maps, expected one entry an image.")
    return box_masks(boxes, (maps.shape[1], maps.shape[2]))


def _share(maps: Tensor, inside: Tensor) -> Tensor:
    evidence = maps.nan_to_num(nan=0.0).clamp(min=0)
    total = evidence.sum((1, 2))
    return (evidence * inside).sum((1, 2)) / torch.where(total > 0, total, 1)
