"""Image segments that are removed as a whole: the cells of a grid, or SLIC superpixels (Achanta et al. 2012)."""

from __future__ import annotations

import torch
from torch import Tensor

from camhook.errors import CamhookError, DependencyError

__all__ = ["grid_cells", "segment_areas", "superpixels"]


def grid_cells(size: tuple[int, int], *, cells: int = 7) -> Tensor:
    """Label the pixels by cells of a grid, numbered row by row: int64 (1, H, W).

    Parameters
    ----------
    size : (int, int)
        (height, width) in pixels.
    cells : int
        Cells per side.

    Raises
    ------
    CamhookError
        The image has fewer pixels per side than cells.

    Examples
    --------
    >>> grid_cells((2, 4), cells=2)
    tensor([[[0, 0, 1, 1],
             [2, 2, 3, 3]]])
    """
    if not 1 <= cells <= min(size):
        raise CamhookError(
            f"Found a grid of {cells} x {cells} cells for images of {size[0]} x {size[1]} pixels, expected at least a "
            f"pixel per cell. Take cells={max(min(size) // 2, 1)} or fewer, or larger images."
        )
    rows, columns = (torch.arange(side) * cells // side for side in size)
    return (rows[:, None] * cells + columns)[None]


def superpixels(images: Tensor, *, count: int = 49) -> Tensor:
    """Label the pixels of images (B, C, H, W) by about ``count`` SLIC superpixels, from 0: int64 (B, H, W).

    Raises
    ------
    CamhookError
        The images have fewer than ``count`` pixels.
    DependencyError
        scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Superpixels need scikit-image, which is not installed: pip install scikit-image. Or pass segments='grid'."
        ) from error
    size = tuple(images.shape[2:])
    if not 1 <= count <= images[0, 0].numel():
        raise CamhookError(f"Found count={count} for images of {size}, expected 1 to {images[0, 0].numel()} segments.")
    found = []
    for image in images.detach().double().cpu():
        low, high = image.amin(), image.amax()
        pixels = ((image - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).numpy()
        in_colour = pixels.shape[2] == 3
        labels = slic(
            pixels if in_colour else pixels.mean(2),
            n_segments=count,
            compactness=10 if in_colour else 0.1,
            channel_axis=2 if in_colour else None,
            start_label=0,
        )
        found.append(torch.as_tensor(labels).unique(return_inverse=True)[1])
    return torch.stack(found)


def segment_areas(segments: Tensor) -> Tensor:
    """Return for each pixel the number of pixels in its segment, (B, H, W).

    Examples
    --------
    >>> segment_areas(torch.tensor([[[0, 0, 1]]]))
    tensor([[[2, 2, 1]]])
    """
    counted = (each.unique(return_inverse=True, return_counts=True)[1:] for each in segments)
    return torch.stack([counts[index] for index, counts in counted])
