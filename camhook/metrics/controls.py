"""Control maps that do not depend on the model: uniform noise and a centred Gaussian.

A metric by which a control scores as well as an explanation is no evidence for the explanation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from camhook.errors import CamhookError

__all__ = ["CONTROLS", "gaussian_maps", "random_maps"]


def random_maps(count: int, size: tuple[int, int], *, grid: tuple[int, int] | None = None, seed: int = 0) -> Tensor:
    """Draw maps of uniform noise in [0, 1), independent for each image.

    Parameters
    ----------
    count : int
        Number of maps.
    size : (int, int)
        (height, width) in pixels.
    grid : (int, int), optional
        Draw the noise on this coarser (rows, columns) and upsample it bilinearly: the fair control for coarse maps,
        since removing single pixels disturbs a network more than removing a patch does. Default: independent pixels.
    seed : int
        The first maps do not depend on how many follow.

    Returns
    -------
    Tensor
        (count, H, W), float64.

    Raises
    ------
    CamhookError
        The size or the grid is not positive, or the grid is finer than the size.

    Examples
    --------
    >>> random_maps(2, (3, 4)).shape
    torch.Size([2, 3, 4])
    """
    _check_size(size)
    _check_size(grid or size)
    if grid and (grid[0] > size[0] or grid[1] > size[1]):
        raise CamhookError(f"Found a grid of {grid} for maps of {size}, expected one that is not finer than the map.")
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 1, *(grid or size))
    noise = [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    batch = torch.cat(noise) if noise else torch.empty((0, *shape[1:]), dtype=torch.float64)
    return F.interpolate(batch, size, mode="bilinear", align_corners=False)[:, 0] if grid else batch[:, 0]


def gaussian_maps(count: int, size: tuple[int, int], *, sigma: float = 0.25) -> Tensor:
    r"""Return centred Gaussians, the same for each image: the control for the photographer's centre bias.

    .. math:: \exp(-\tfrac{1}{2} ((y / \sigma H)^2 + (x / \sigma W)^2)), \quad y, x \text{ from the centre}

    Parameters
    ----------
    count, size
        As in `random_maps`.
    sigma : float
        Standard deviation, as a share of each side.

    Returns
    -------
    Tensor
        (count, H, W), float64.

    Raises
    ------
    CamhookError
        The size or sigma is not positive.

    Examples
    --------
    >>> gaussian_maps(1, (1, 3))
    tensor([[[0.4111, 1.0000, 0.4111]]], dtype=torch.float64)
    """
    _check_size(size)
    if sigma <= 0:
        raise CamhookError(f"Found sigma={sigma}, expected a share of the side; pass above 0.")
    height, width = (
        torch.exp(-0.5 * ((torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (sigma * side)) ** 2)
        for side in size
    )
    return (height[:, None] * width).expand(count, *size).clone()


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise CamhookError(f"Found a size of {size}, expected (height, width), both 1 or more.")


CONTROLS: Mapping[str, Callable[[int, tuple[int, int]], Tensor]] = MappingProxyType(
    {"random": random_maps, "gaussian": gaussian_maps}
)
"""Controls by name: functions of (count, size)."""
