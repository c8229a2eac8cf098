"""Photos as RGB images: files, Pillow images and arrays decoded, turned upright, checked."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from camhook.errors import ImageError

Source = str | os.PathLike[str] | Image.Image | npt.NDArray[Any]

# What Pillow raises on bad input: as fuzzing shows, not always an OSError.
_BAD = (
    *(OSError, EOFError, MemoryError, SyntaxError, struct.error),
    *(ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),
)
_DAMAGED = "it is damaged, cut short, locked, or of a mode that Pillow cannot turn into RGB"


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
        with image_errors("the PIL image"):
            return _upright_rgb(source, "the PIL image")
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        with image_errors(f"the file {path!r}", path), Image.open(path) as image:
            return _upright_rgb(image, f"the file {path!r}")
    raise ImageError(
        f"found {type(source).__name__}, expected a path, a PIL image or a uint8 array; a preprocessed (B, C, H, W) "
        "tensor is passed on its own, not in a list."
    )


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
    # Older versions of Pillow open 16-bit PNG and PGM files as 32-bit integers.
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
def image_errors(what: str, path: str | None = None, *, advice: str = _DAMAGED) -> Iterator[None]:
    """Turn whatever Pillow or a transform raises in the block into an `ImageError` with advice.

    Pillow's warning of images that are large, but within its limit, is silenced.

    Parameters
    ----------
    what
        The subject of the message.
    path
        The file that is read, if any: a directory, a missing and an empty file have advice of their own.
    advice
        What to do in the other cases.
    """
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
