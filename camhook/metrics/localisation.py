"""Localisation against boxes or masks: pointing game, energy-based and grid pointing game.

NaN in a map (a photo's margins that the model's crop left out) counts as no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.drawing.overlay import opencv
from camhook.errors import CamhookError, ImageError
from camhook.metrics.arguments import as_boxes, as_maps, as_object_masks
from camhook.metrics.types import Boxes, Maps, Masks

__all__ = ["box_masks", "energy_inside", "grid_pointing_game", "mosaics", "pointing_game"]


def pointing_game(
    maps: Maps, boxes: Boxes | None = None, *, masks: Masks | None = None, tolerance: float | None = None
) -> Tensor:
    """Compute the pointing game: 1 where the map's maximum is within the tolerance of the object; higher is better.

    Zhang et al. 2018 (Excitation Backprop). Of several equal maxima, the share that hits: a constant map scores what
    chance does. Only the order of values counts, so a map without positive values points as well.

    Parameters
    ----------
    maps : Tensor or array (B, H, W)
    boxes : sequence of B arrays (4,) or (n, 4)
        Per image one or several: left, top, right, bottom in the map's pixels, right and bottom exclusive.
    masks : bool Tensor or array (B, H, W)
        Instead of boxes: the object's pixels.
    tolerance : float, optional
        Distance in pixels between centres. Default: 15, as in the paper, if both sides are 224 or more, else 0.

    Returns
    -------
    Tensor
        (B,), float64, 0 to 1.

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
    cv2, inside = opencv(), _object_masks(values, boxes, masks)
    distances = [
        cv2.distanceTransform((~mask).numpy().astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for mask in inside
    ]
    values = values.nan_to_num(nan=-torch.inf)
    best = values == values.amax((1, 2), keepdim=True)
    hits = best & (torch.from_numpy(np.stack(distances)) <= tolerance + 1e-4)  # OpenCV's distances are float32
    return hits.sum((1, 2)).double() / best.sum((1, 2))


def energy_inside(maps: Maps, boxes: Boxes | None = None, *, masks: Masks | None = None) -> Tensor:
    r"""Compute the energy-based pointing game: share of the map's positive part inside the object; higher is better.

    .. math:: \sum_{p \in \mathrm{object}} \max(0, M(p)) / \sum_p \max(0, M(p))

    Wang et al. 2020 (Score-CAM). 0 for a map without positive values; a random map scores the object's share of the
    area. Parameters, shape of the result and errors as in `pointing_game`.

    Examples
    --------
    >>> energy_inside([[[3.0, 1.0, -5.0]]], [[0, 0, 1, 1]])
    tensor([0.7500], dtype=torch.float64)
    """
    values = as_maps(maps, nan=True)
    return _share_inside(values, _object_masks(values, boxes, masks))


def grid_pointing_game(maps: Maps, cells: Sequence[int] | Tensor | npt.ArrayLike, *, grid: int = 2) -> Tensor:
    r"""Compute the grid pointing game: share of the map's positive part in the class's cell; higher is better.

    .. math:: \sum_{p \in \mathrm{cell}} \max(0, M(p)) / \sum_p \max(0, M(p))

    for a grid x grid mosaic of confidently classified images of different classes, and the class of one cell (Böhle et
    al. 2021; Rao et al. 2022, GridPG). Chance is 1 / grid**2; 0 for a map without positive values.

    Parameters
    ----------
    maps : Tensor or array (B, H, W)
        Of mosaics, as `mosaics` makes them, for the class of the cell.
    cells : sequence of B int
        Which cell, in row-major order, 0 to grid**2 - 1.
    grid : int
        Cells per side.

    Returns
    -------
    Tensor
        (B,), float64, 0 to 1.

    Raises
    ------
    CamhookError
        A cell does not exist, there is not one per map, or the map is too small for the grid.

    Examples
    --------
    >>> grid_pointing_game([[[6.0, 0.0], [2.0, -9.0]]], [2])
    tensor([0.2500], dtype=torch.float64)
    """
    values = as_maps(maps, nan=True)
    count, height, width = values.shape
    if grid < 1 or grid > min(height, width):
        raise CamhookError(
            f"Found a grid of {grid} x {grid} cells on maps of {(height, width)}, expected at least a pixel per cell. "
            "Take a smaller grid or larger images."
        )
    wanted = torch.as_tensor(cells).cpu()
    if wanted.shape != (count,) or wanted.is_floating_point() or wanted.min() < 0 or wanted.max() >= grid**2:
        raise CamhookError(
            f"Found cells {wanted.tolist()} for {count} maps, expected one from 0 to {grid**2 - 1} per map, row by row."
        )
    rows, columns = (torch.arange(side) * grid // side for side in (height, width))
    return _share_inside(values, (rows[:, None] * grid + columns) == wanted[:, None, None])


def mosaics(images: Tensor, *, grid: int = 2) -> Tensor:
    """Join images into mosaics (n, C, grid * H, grid * W), row by row, out of (n * grid**2, C, H, W).

    Raises
    ------
    ImageError
        The number of images is no multiple of grid**2.

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
    """Return masks of each image's boxes, bool (B, H, W); edges are rounded to pixels.

    Raises
    ------
    CamhookError
        An image has no box, or one that is not (left, top, right, bottom) or lies outside the image.

    Examples
    --------
    >>> box_masks([[1, 0, 3, 1]], (1, 4))
    tensor([[[False,  True,  True, False]]])
    """
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, rows in zip(masks, as_boxes(boxes, size), strict=True):
        for left, top, right, bottom in np.rint(rows).astype(int).tolist():
            mask[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)] = True
    return masks


def _object_masks(maps: Tensor, boxes: Boxes | None, masks: Masks | None) -> Tensor:
    if (boxes is None) == (masks is None):
        both = "both boxes and masks" if boxes is not None else "neither boxes nor masks"
        raise CamhookError(f"Found {both}, expected one of them: where the object is in each image.")
    if masks is not None:
        return as_object_masks(masks, maps)
    assert boxes is not None
    if len(boxes) != len(maps):
        raise CamhookError(f"Found boxes of {len(boxes)} images for {len(maps)} maps, expected one entry per image.")
    return box_masks(boxes, (maps.shape[1], maps.shape[2]))


def _share_inside(maps: Tensor, inside: Tensor) -> Tensor:
    evidence = maps.nan_to_num(nan=0.0).clamp(min=0)
    total = evidence.sum((1, 2))
    return (evidence * inside).sum((1, 2)) / torch.where(total > 0, total, 1)
