"""Geometry of resizing and cropping: position of the model's input in the photo, and maps upsampled to the photo."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Geometry"]


@dataclass(frozen=True)
class Geometry:
    """Position and scale of the model's input in the original photo.

    ``input = photo * scale + offset`` along each axis, in coordinates where pixel ``i`` covers ``[i, i + 1)``.

    Examples
    --------
    >>> middle = Geometry(photo_size=(2, 4), input_size=(2, 2), scale=(1.0, 1.0), offset=(0.0, -1.0))
    >>> middle.to_photo(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[nan, 1., 2., nan],
            [nan, 3., 4., nan]])
    """

    photo_size: tuple[int, int]  # (height, width) of the upright photo, pixels
    input_size: tuple[int, int]  # (height, width) of the model's input, pixels
    scale: tuple[float, float]  # input pixels per photo pixel, (rows, columns); rounding makes the two differ a little
    offset: tuple[float, float]  # photo's top left corner in input pixels: negative if cropped, positive if padded

    @classmethod
    def identity(cls, size: tuple[int, int]) -> Geometry:
        """Return the geometry of a picture of this (height, width) that is the model's input itself."""
        return cls(photo_size=size, input_size=size, scale=(1.0, 1.0), offset=(0.0, 0.0))

    def resized(self, size: tuple[int, int]) -> Geometry:
        """Return the geometry of the same photo at another (height, width)."""
        rows, columns = (old * s / new for old, s, new in zip(self.photo_size, self.scale, size, strict=True))
        return replace(self, photo_size=size, scale=(rows, columns))

    def to_photo(self, maps: Tensor) -> Tensor:
        """Upsample maps (..., h, w) over the model's input to the photo's pixels, (..., H, W), float32 or float64.

        Bilinear interpolation between the centres of the map's cells; between the outermost centres and the border of
        the model's input the value of the edge cell (``align_corners=False`` of `torch.nn.functional.interpolate`).
        NaN at photo pixels whose centre lies outside the model's input.
        """
        maps = maps if maps.dtype == torch.float64 else maps.float()
        for axis, dim in enumerate((-2, -1)):
            cells, extent = maps.shape[dim], self.input_size[axis]
            # Positions are found on the CPU: they are few and need float64, which some accelerators do not have.
            centres = torch.arange(self.photo_size[axis], dtype=torch.float64, device="cpu") + 0.5
            # Rounded, since a centre that lies on the border itself must not fall out by an error in the last digit.
            position = (centres * self.scale[axis] + self.offset[axis]).round(decimals=9)
            cell = (position * (cells / extent) - 0.5).clamp(0, cells - 1)
            low = cell.long()
            # A weight of NaN makes its whole row or column NaN.
            weight = (cell - low).masked_fill((position < 0) | (position >= extent), torch.nan)
            weight = weight.to(maps.dtype).to(maps.device).view((-1, 1) if axis == 0 else (-1,))
            low, high = low.to(maps.device), (low + 1).clamp(max=cells - 1).to(maps.device)
            maps = torch.lerp(maps.index_select(dim, low), maps.index_select(dim, high), weight)
        return maps
