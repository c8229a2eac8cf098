"""timm's evaluation transform, with the geometry that maps its output back to each photo."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camhook.errors import ImageError
from camhook.images.geometry import Geometry
from camhook.images.photos import Source, image_errors, load_photo

__all__ = ["ImageBatch", "Preprocessing", "TensorPhotos"]


_CONFIG_ADVICE = "pass what timm.data.resolve_model_data_config(model) returns"


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Preprocessed photos, with the originals and the geometry to draw on them."""

    tensor: Tensor  # (B, C, H, W), float32, preprocessed
    photos: list[Image.Image]  # the upright originals, RGB
    names: list[str]  # file stems, or "image0", "image1", ... by position
    geometries: list[Geometry]


class Preprocessing:
    """timm's evaluation transform, which also records which part of each photo the model's input shows.

    Parameters
    ----------
    data_config
        What ``timm.data.resolve_model_data_config(model)`` returns. Interpolation ``"random"``, which timm knows in
        training only, is read as ``"bilinear"``.
    in_chans
        Channels the model reads. With 1, photos become grey and a mean and std of three channels are averaged; with
        other numbers than 1 and 3 no photos can be read, and calling raises `ImageError`.

    Examples
    --------
    >>> config = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}
    >>> batch = Preprocessing(config)([np.zeros((64, 96, 3), dtype=np.uint8)])
    >>> batch.tensor.shape, batch.names, batch.geometries[0].offset
    (torch.Size([1, 3, 32, 32]), ['image0'], (0.0, -8.0))
    """

    def __init__(self, data_config: Mapping[str, Any], in_chans: int = 3) -> None:
        if missing := {"input_size", "mean", "std"} - set(data_config):
            raise ImageError(f"data_config lacks {sorted(missing)}, found {sorted(data_config)}: {_CONFIG_ADVICE}.")
        self.config = {**data_config, "is_training": False}
        self.in_chans = in_chans
        if self.config.get("interpolation") == "random":
            self.config["interpolation"] = "bilinear"
        if in_chans == 1:
            self.config |= {key: (sum(data_config[key]) / len(data_config[key]),) for key in ("mean", "std")}

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the model's input in pixels."""
        height, width = self.config["input_size"][-2:]
        return height, width

    def __call__(self, sources: Sequence[Source]) -> ImageBatch:
        """Read and preprocess photos.

        Parameters
        ----------
        sources
            A path, Pillow image or uint8 array each, as `load_photo` takes them.

        Raises
        ------
        ImageError
            If one cannot be read, or the transform cannot be applied to it.
        """
        if self.in_chans not in (1, 3):
            raise ImageError(f"photos do not have {self.in_chans} channels; pass a preprocessed (B, C, H, W) tensor.")
        if isinstance(sources, (str, os.PathLike, Image.Image, np.ndarray)):
            raise ImageError(f"found one {type(sources).__name__}, expected a list of images: put it in a list.")
        if len(sources) == 0:
            raise ImageError("found an empty list of images; pass at least one.")
        photos = [load_photo(source) for source in sources]
        names = [
            Path(os.fsdecode(source)).stem if isinstance(source, (str, os.PathLike)) else f"image{index}"
            for index, source in enumerate(sources)
        ]
        tensors, geometries = zip(*map(self._transform, photos, names), strict=True)
        return ImageBatch(torch.stack(tensors).float(), photos, names, list(geometries))

    def photos_of(self, tensor: Tensor) -> list[Image.Image]:
        """Return RGB images to draw on for a preprocessed tensor (B, C, H, W).

        With 3 channels or 1 the normalisation is undone and clipped; any other number of channels is averaged and
        scaled from its least to its greatest value, per image.
        """
        pixels = tensor.detach().float().cpu()
        if pixels.shape[1] in (1, 3):
            mean, std = (torch.tensor(self.config[key], device="cpu").view(-1, 1, 1) for key in ("mean", "std"))
            grey = pixels.shape[1] == 1
            pixels = pixels * (std.mean() if grey else std) + (mean.mean() if grey else mean)
        else:
            pixels = pixels.mean(1, keepdim=True)
            low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
            pixels = (pixels - low) / (high - low).clamp(min=torch.finfo(pixels.dtype).tiny)
        pixels = pixels.nan_to_num().clamp(0, 1).mul(255).round().byte().expand(-1, 3, -1, -1)
        return [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in pixels]

    def _transform(self, photo: Image.Image, name: str) -> tuple[Tensor, Geometry]:
        """Apply timm's steps one by one, and derive the geometry from what each does to the picture's size."""
        from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio, TrimBorder
        from timm.data.transforms_factory import create_transform
        from torchvision.transforms import CenterCrop, Normalize, Resize, ToTensor

        with image_errors(f"data_config {self.config}", advice=_CONFIG_ADVICE):
            steps = create_transform(**self.config).transforms
        picture: Any = photo.convert("L") if self.in_chans == 1 else photo
        size, scale, offset = np.array((photo.height, photo.width)), np.ones(2), np.zeros(2)
        known = (Resize, ResizeKeepRatio, CenterCrop, CenterCropOrPad, TrimBorder, ToTensor, Normalize)
        for step in steps:
            if not isinstance(step, known):
                advice = "change data_config, or pass a preprocessed (B, C, H, W) tensor"
                raise ImageError(f"the preprocessing step {step} cannot be traced back to the photo; {advice}.")
        advice = f"it may be too small or narrow for {', '.join(map(str, steps))}"
        with image_errors(f"{name} ({photo.height} x {photo.width})", advice=advice):
            for step in steps:
                before, picture = size, step(picture)
                size = np.array(picture.shape[-2:] if isinstance(picture, Tensor) else picture.size[::-1])
                if 0 in size:  # Pillow would stretch nothing at all into a black picture.
                    raise ValueError("no pixels left")
                if isinstance(step, Resize | ResizeKeepRatio):
                    scale, offset = scale * size / before, offset * size / before
                elif isinstance(step, CenterCrop | CenterCropOrPad):
                    # An odd surplus is halved to the even number; of an odd shortfall the smaller half comes first.
                    offset += np.where(size > before, (size - before) // 2, -np.rint((before - size) / 2))
                elif isinstance(step, TrimBorder):
                    offset -= step.border_size
        (rows, columns), (top, left) = scale.tolist(), offset.tolist()
        return picture, Geometry((photo.height, photo.width), self.input_size, (rows, columns), (top, left))


class TensorPhotos(Sequence[Image.Image]):
    """RGB images of a preprocessed tensor, computed on access."""

    def __init__(self, preprocessing: Preprocessing, tensor: Tensor) -> None:
        self._preprocessing, self._tensor = preprocessing, tensor

    def __len__(self) -> int:
        return len(self._tensor)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return TensorPhotos(self._preprocessing, self._tensor[index])
        return self._preprocessing.photos_of(self._tensor[index][None])[0]
