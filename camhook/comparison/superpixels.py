"""Parts of a picture that are removed as one: the cells of a grid, or superpixels."""

from __future__ import annotations

import torch
from torch import Tensor

from camhook.errors import CamhookError, DependencyError

__all__ = ["grid_cells", "segment_areas", "superpixels"]


def grid_cells(size: tuple[int, int], *, cells: int = 7) -> Tensor:
    """Return numbers of the cells of a grid, along rows: int64 (1, H, W).

    Parameters
    ----------
    size
        (height, width) in pixels.
    cells
        How many along each side.

    Raises
    ------
    CamhookError
        The picture is too small for so many cells.

    Examples
    --------
    >>> grid_cells((2, 4), cells=2)
    tensor([[[0, 0, 1, 1],
             [2, 2, 3, 3]]])
    """
    if not 1 <= cells <= min(size):
        raise CamhookError(
            f"Found a grid of {cells} x {cells} cells for images of {size[0]} x {size[1]} pixels, expected at least a "
            f"pixel a cell. Take cells={max(min(size) // 2, 1)} or fewer, or larger images."
        )
    rows, columns = (torch.arange(side) * cells // side for side in size)
    return (rows[:, None] * cells + columns)[None]


def superpixels(images: Tensor, *, count: int = 49) -> Tensor:
    """Return numbers of about ``count`` superpixels of each image (SLIC, Achanta et al. 2012): int64 (B, H, W), from 0.

    Raises
    ------
    CamhookError
        The images have fewer pixels than that.
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
        raise CamhookError(f"Found count={count} for images of {size}, expected 1 to {images[0, 0].numel()} parts.")
    found = []
    for image in images.detach().double().cpu():
        low, high = image.amin(), image.amax()
        pixels = ((image - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).numpy()
        colour = pixels.shape[2] == 3
        labels = slic(
            pixels if colour else pixels.mean(2),
            n_segments=count,
            compactness=10 if colour else 0.1,
            channel_axis=2 if colour else None,
            start_label=0,
        )
        found.append(torch.as_tensor(labels).unique(return_inverse=True)[1])  # numbered without gaps
    return torch.stack(found)


def segment_areas(segments: Tensor) -> Tensor:
    """Return for each pixel (B, H, W) how many pixels its part has.

    Examples
    --------
    >>> segment_areas(torch.tensor([[[0, 0, 1]]]))
    tensor([[[2, 2, 1]]])
    """
    return torch.stack([each.unique(return_inverse=True, return_counts=True)[2][each] for each in _compact(segments)])


def _compact(segments: Tensor) -> Tensor:
    return torch.stack([each.unique(return_inverse=True)[1] for each in segments])
