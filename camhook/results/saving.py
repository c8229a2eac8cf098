"""Files of explained images: pictures (PNG), raw maps (NPZ), and a manifest (JSON) that is written last."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from camhook.errors import ImageError, OutputError
from camhook.files import SOFTWARE, check_overwrite, save_png, write_bytes
from camhook.results.summary import MapSummary

__all__ = ["Draw", "ImageFiles", "check_name", "save", "save_one"]

Draw = Callable[[], Image.Image]
"""Draws a picture when it is written, so that no more than one is in memory."""


@dataclass(frozen=True)
class ImageFiles:
    """What is written into a directory for one image: overlays, ``name.npz`` and the manifest ``name.json``.

    Attributes
    ----------
    name : str
        The image's, without folders.
    classes : sequence of MapSummary
        A map each.
    overlays : sequence of Draw
        One per class, or none.
    arrays : mapping of str to array
        The raw maps, and what belongs to them.
    about : mapping
        What the manifest says of image and model, in types that JSON has.
    """

    name: str
    classes: Sequence[MapSummary]
    overlays: Sequence[Draw]
    arrays: Mapping[str, npt.NDArray[Any]]
    about: Mapping[str, Any]

    def paths(self, directory: Path) -> list[Path]:
        """Return where the files go: the overlays, the raw maps, the manifest."""
        overlays = [
            f"{self.name}.{each.index}-{re.sub(r'[^a-z0-9]+', '-', each.name.lower()).strip('-')}.png"
            for each in self.classes[: len(self.overlays)]
        ]
        return [directory / name for name in (*overlays, f"{self.name}.npz", f"{self.name}.json")]


def save(
    images: Iterable[ImageFiles], pictures: Sequence[Draw], path: str | os.PathLike[str], *, overwrite: bool = False
) -> list[str]:
    """Write one picture per image where the path ends in .png, else the files of each image into a directory.

    Several pictures are numbered: ``name_0.png``, ``name_1.png``. Returns and raises as `CAMResult.save`.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        several = len(pictures) > 1
        files = [path.with_stem(f"{path.stem}_{i}") if several else path for i in range(len(pictures))]
        check_overwrite(files, overwrite=overwrite)
        for draw, file in zip(pictures, files, strict=True):
            save_png(draw(), file, overwrite=overwrite)
        return [str(file) for file in files]
    if path.suffix and not path.is_dir():
        raise OutputError(f"{path}: a path that ends in .png or a directory was expected, found {path.suffix!r}.")
    images = list(images)
    files = [file for image in images for file in image.paths(path)]
    if len(set(files)) < sum(len(set(image.paths(path))) for image in images):
        clash = min(file for file in files if sum(file in image.paths(path) for image in images) > 1)
        raise OutputError(f"Two images would be written to {clash}. Give them different file names.")
    check_overwrite(files, overwrite=overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The directory {path} cannot be made: {error}. Choose another path.") from error
    for image in images:
        _write(image, path, {})
    return [str(file) for file in files]


def check_name(name: str) -> None:
    """Raise `ImageError` if an image's name cannot be part of a file's name."""
    if name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
        raise ImageError(f"The name {name!r} cannot be part of a file's name. Give one without folders.")


def save_one(
    image: ImageFiles, directory: Path, *, facts: Mapping[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Write the files of one image into an existing directory.

    An earlier manifest is removed before another file is written, so that none ever describes files of another run.

    Parameters
    ----------
    image
        What to write.
    directory
        Where to.
    facts
        Further entries of the manifest, such as the settings of a run.
    overwrite
        Replace files that camhook did not write.

    Raises
    ------
    OutputError
        If a file is there that camhook did not write, or one cannot be written.
    """
    files = image.paths(directory)
    check_overwrite(files, overwrite=overwrite)
    try:
        files[-1].unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{files[-1]} cannot be replaced: {error}. Choose another directory.") from error
    _write(image, directory, facts or {})


def _write(image: ImageFiles, directory: Path, facts: Mapping[str, Any]) -> None:
    *overlays, raw, manifest = image.paths(directory)
    for file, draw in zip(overlays, image.overlays, strict=True):
        save_png(draw(), file, overwrite=True)
    arrays: Mapping[str, Any] = {**image.arrays, "software": np.array(SOFTWARE)}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    write_bytes(raw, packed.getvalue())
    content = {
        "software": SOFTWARE,
        "versions": {name: version(name) for name in ("camhook", "torch", "timm", "numpy")},
        "image": image.name,
        **image.about,
        "unit": "logits",
        "classes": [asdict(each) for each in image.classes],
        "files": [file.name for file in (*overlays, raw)],
        **facts,
    }
    write_bytes(manifest, json.dumps(content, indent=2).encode())
