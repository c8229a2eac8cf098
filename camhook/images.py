"""Photos to the model's input, by timm's own transform; and maps over that input back to the photo's pixels."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from camhook.errors import ImageError

Source = str | os.PathLike[str] | Image.Image | npt.NDArray[Any]

# What Pillow raises on bad input: fuzzing shows that it is by no means always an OSError.
_BROKEN = (OSError, EOFError, MemoryError, SyntaxError, struct.error)
_BAD = (*_BROKEN, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)
_DAMAGED = "it is damaged, cut short, locked, or of a mode that Pillow cannot turn into RGB"
_CONFIG_ADVICE = "pass what timm.data.resolve_model_data_config(model) returns"


@dataclass(frozen=True)
class Geometry:
    """Where the model's input lies in the original photo.

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
        """Geometry of a picture of this (height, width) that is the model's input as it stands."""
        return cls(photo_size=size, input_size=size, scale=(1.0, 1.0), offset=(0.0, 0.0))

    def resized(self, size: tuple[int, int]) -> Geometry:
        """Geometry of the same photo drawn at another (height, width)."""
        rows, columns = (old * s / new for old, s, new in zip(self.photo_size, self.scale, size, strict=True))
        return replace(self, photo_size=size, scale=(rows, columns))

    def to_photo(self, maps: Tensor) -> Tensor:
        """Draw maps (..., h, w) over the model's input at the photo's own pixels: (..., H, W), float32 (or float64).

        Bilinear between the centres of the map's cells; from the outermost centres to the border of the model's input
        the edge cells' values are held. NaN at photo pixels whose centre lies outside the model's input.
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


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Photos made ready for a model, with what it takes to draw on the originals."""

    tensor: Tensor  # (B, C, H, W), float32, preprocessed
    photos: list[Image.Image]  # the upright originals, RGB
    names: list[str]  # file stems, or "image0", "image1", ... by position
    geometries: list[Geometry]


def load_photo(source: Source) -> Image.Image:
    """Read a photo as RGB, upright: its EXIF orientation applied, its transparency composited on white.

    ``source`` is a path, a Pillow image (left as it is) or a uint8 array (H, W, 3), (H, W, 4) with alpha, (H, W) or
    (H, W, 1). An animated file gives its first frame; 16-bit grey is scaled to 8 bits.

    Raises
    ------
    ImageError
        If it cannot be found or decoded, is empty or too large to be safe, or holds numbers whose range is not known.

    Examples
    --------
    >>> load_photo(np.zeros((2, 3), dtype=np.uint8)).size  # Pillow's sizes are (width, height)
    (3, 2)
    """
    if isinstance(source, np.ndarray):
        return _upright_rgb(_from_array(source), "the array")
    if isinstance(source, Image.Image):
        with _guarded("the PIL image"):
            return _upright_rgb(source, "the PIL image")
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        with _guarded(f"the file {path!r}", path), Image.open(path) as image:
            return _upright_rgb(image, f"the file {path!r}")
    raise ImageError(
        f"found {type(source).__name__}, expected a path, a PIL image or a uint8 array; a preprocessed (B, C, H, W) "
        "tensor is passed on its own, not in a list."
    )


class Preprocessing:
    """timm's own evaluation transform, which also remembers where in each photo the model looked.

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
        """Read photos, as `load_photo` does, and make them ready; an `ImageError` says why that cannot be done."""
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
        tensors, geometries = zip(*map(self._follow, photos, names), strict=True)
        return ImageBatch(torch.stack(tensors).float(), photos, names, list(geometries))

    def photos_of(self, tensor: Tensor) -> list[Image.Image]:
        """Pictures (RGB, one per image) to draw on for a tensor (B, C, H, W) that came preprocessed.

        With 3 channels or 1 the normalisation is undone and clipped; any other number of channels is averaged and
        stretched from its least to its greatest value, image by image.
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

    def _follow(self, photo: Image.Image, name: str) -> tuple[Tensor, Geometry]:
        """Apply timm's steps one by one, watching what each does to the picture's size."""
        from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio, TrimBorder
        from timm.data.transforms_factory import create_transform
        from torchvision.transforms import CenterCrop, Normalize, Resize, ToTensor

        with _guarded(f"data_config {self.config}", advice=_CONFIG_ADVICE):
            steps = create_transform(**self.config).transforms
        picture: Any = photo.convert("L") if self.in_chans == 1 else photo
        size, scale, offset = np.array((photo.height, photo.width)), np.ones(2), np.zeros(2)
        known = (Resize, ResizeKeepRatio, CenterCrop, CenterCropOrPad, TrimBorder, ToTensor, Normalize)
        for step in steps:
            if not isinstance(step, known):
                advice = "change data_config, or pass a preprocessed (B, C, H, W) tensor"
                raise ImageError(f"the preprocessing step {step} cannot be traced back to the photo; {advice}.")
            with _guarded(
                f"{name} ({photo.height} x {photo.width})", advice=f"it may be too small or narrow for {step}"
            ):
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


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype == np.uint8 and array.ndim in (2, 3) and channels in (1, 3, 4) and array.size > 0:
        return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
    if array.dtype != np.uint8:
        advice = "scale it to 0..255 and use .astype(numpy.uint8); preprocessed numbers go in as a (B, C, H, W) tensor"
    else:
        advice = "put channels last (array.transpose(1, 2, 0)), and the images of a batch in a list"
    expected = "uint8 of shape (H, W, 3), (H, W, 4), (H, W) or (H, W, 1), not empty"
    raise ImageError(f"found an array of {array.dtype} and shape {array.shape}, expected {expected}: {advice}.")


def _upright_rgb(image: Image.Image, what: str) -> Image.Image:
    image.load()
    # Older Pillows open 16-bit PNG and PGM files as 32-bit integers.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if 0 in image.size or (image.mode in ("I", "F") and not deep):
        found = f"{what} has mode {image.mode!r} and {image.height} x {image.width} pixels; expected at least 1 x 1 and"
        raise ImageError(f"{found} numbers whose range is known, not I or F: scale them to a uint8 array of 0..255.")
    try:
        upright = ImageOps.exif_transpose(image)
    except _BAD:  # The pixels are decoded by now: what cannot be read is the EXIF block, and viewers ignore it then.
        upright = image.copy()
    if deep:
        values = np.asarray(upright).astype(np.uint32)
        grey = ((values + 128) // 257).astype(np.uint8)
        grey[values == upright.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if upright.has_transparency_data:
        paper = Image.new("RGBA", upright.size, "white")
        paper.alpha_composite(upright.convert("RGBA"))
        upright = paper
    return upright.convert("RGB")


@contextmanager
def _guarded(what: str, path: str | None = None, *, advice: str = _DAMAGED) -> Iterator[None]:
    """Say what is wrong where Pillow raises, and let pass in silence what is large but within its limit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except (*_BAD, Image.DecompressionBombError) as error:
        if isinstance(error, Image.DecompressionBombError):
            advice = "it is too large to be safe; shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        elif path is not None and os.path.isdir(path):
            advice = "it is a directory; pass the files in it"
        elif path is not None and not os.path.exists(path):
            advice = f"there is no such file, seen from {os.getcwd()}; check the path"
        elif path is not None and os.path.getsize(path) == 0:
            advice = "it has 0 bytes; get it again"
        elif isinstance(error, UnidentifiedImageError):
            advice = "it is not an image in a format that Pillow knows; convert it to PNG or JPEG"
        raise ImageError(f"{what} cannot be used: {advice}. ({type(error).__name__}: {error})") from error


class TensorPhotos(Sequence[Image.Image]):
    """Pictures of a preprocessed tensor, made when they are first drawn on."""

    def __init__(self, preprocessing: Preprocessing, tensor: Tensor) -> None:
        self._preprocessing, self._tensor = preprocessing, tensor

    def __len__(self) -> int:
        return len(self._tensor)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return TensorPhotos(self._preprocessing, self._tensor[index])
        return self._preprocessing.photos_of(self._tensor[index][None])[0]
