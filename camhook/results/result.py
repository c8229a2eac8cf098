"""Result of a call: maps in logits, completeness errors, and methods that draw and save them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from camhook.drawing import overlay as drawing
from camhook.drawing.montage import Panel, data_uri, montage
from camhook.errors import CamhookError, ImageError
from camhook.images.geometry import Geometry
from camhook.results.saving import Draw, ImageFiles, check_name, save
from camhook.results.summary import MapSummary
from camhook.targets import ClassNames, explained_position

__all__ = ["CAMResult"]


@dataclass(frozen=True, eq=False, repr=False)
class CAMResult:
    """Maps of some classes for some images.

    For every image and class, ``maps.mean((2, 3)) + offset`` equals the score that is explained, up to
    ``completeness_error``.

    Attributes
    ----------
    maps : Tensor
        (B, T, h, w), signed, in logits; float32, or float64 for a float64 model.
    offset : Tensor
        (B, T), in logits: what belongs to no position. It is the tail at the baseline, computed on its own.
    target : Tensor
        (B, T), int64: the classes explained.
    logits : Tensor
        (B, K), the model's own.
    scores : Tensor
        (B, T), what the maps add up to: the classes' logits, less those of the classes they are contrasted with.
    completeness_error : Tensor
        (B, T), absolute, in logits.
    tolerance : Tensor
        (B, 1), in logits: the error that rounding explains.
    method, head, target_layer : str
        How the map was made (``"cam"``), by what kind of head (``"mean/linear"``), and where it was read.
    explains : str
        ``"model"``: the model's own score.
    names : tuple of str
        A name for each image, for files and captions.
    """

    maps: Tensor
    offset: Tensor
    target: Tensor
    logits: Tensor
    scores: Tensor
    completeness_error: Tensor
    tolerance: Tensor
    method: str
    head: str
    target_layer: str
    model_name: str
    names: tuple[str, ...]
    class_names: ClassNames = field(repr=False)
    geometries: tuple[Geometry, ...] = field(repr=False)
    photos: Sequence[Image.Image] | None = field(repr=False)
    """The photos to draw on, upright and at full size; None where the caller gave a tensor."""
    contrast: str = ""
    explains: Literal["model", "probe"] = "model"

    @property
    def exact(self) -> Tensor:
        """(B, T), bool: the map adds up to the model's own score within tolerance."""
        return self.completeness_error <= self.tolerance

    @property
    def offset_share(self) -> Tensor:
        """(B, T): the share of the score that belongs to no position, |offset| / (|offset| + |score - offset|)."""
        inside = (self.scores - self.offset).abs()
        return self.offset.abs() / (self.offset.abs() + inside).clamp_min(torch.finfo(inside.dtype).tiny)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> CAMResult:
        """Return the result of one image, as a batch of one."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        one = slice(index % len(self), index % len(self) + 1)
        tensors = ("maps", "offset", "target", "logits", "scores", "completeness_error", "tolerance")
        changes: dict[str, Any] = {name: getattr(self, name)[one] for name in (*tensors, "names", "geometries")}
        return replace(self, **changes, photos=None if self.photos is None else self.photos[one])

    def renamed(self, names: Sequence[str]) -> CAMResult:
        """Return the same with other names for the images, which files and captions carry."""
        if len(names) != len(self):
            raise ImageError(f"{len(names)} names were given for {len(self)} images.")
        for name in names:
            check_name(name)
        return replace(self, names=tuple(names))

    def __repr__(self) -> str:
        lines = [
            f"CAMResult: {len(self)} image{'s' * (len(self) != 1)}, maps {tuple(self.maps.shape)} in logits, "
            f"{self.method} through {self.head} at {self.target_layer}, explains the {self.explains}"
        ]
        rows = [(i, j) for i in range(len(self)) for j in range(self.target.shape[1])]
        lines += [f"  {self.names[i]}: {self.caption(i, j)}" for i, j in rows[:10]]
        return "\n".join(lines + [f"  ... and {len(rows) - 10} more"] * (len(rows) > 10))

    def label(self, index: int = 0, position: int = 0) -> str:
        """Return the name of the class at that position among an image's targets."""
        return self.class_names.label(int(self.target[index, position])) + self.contrast

    def caption(self, index: int = 0, position: int = 0) -> str:
        """Return one line on a map: class, score, offset and completeness error."""
        return self.summary(index, position).caption()

    def summary(self, index: int = 0, position: int = 0) -> MapSummary:
        """Return the numbers of one map: of image ``index``, for the class at ``position`` among its targets."""
        return MapSummary(
            index=int(self.target[index, position]),
            name=self.label(index, position),
            score=float(self.scores[index, position]),
            offset=float(self.offset[index, position]),
            offset_share=float(self.offset_share[index, position]),
            completeness_error=float(self.completeness_error[index, position]),
            exact=bool(self.exact[index, position]),
        )

    def upsampled(self, size: tuple[int, int] | None = None) -> Tensor | list[Tensor]:
        """Return the maps, bilinearly upsampled, at the size of the original pictures.

        Parameters
        ----------
        size
            (height, width) for all; default each picture's own.

        Returns
        -------
        Tensor or list of Tensor
            (B, T, H, W) where all pictures have one size, else a list of (T, H, W); NaN outside the model's crop.
        """
        geometries = self.geometries if size is None else [each.resized(size) for each in self.geometries]
        maps = [geometry.to_photo(each) for geometry, each in zip(geometries, self.maps, strict=True)]
        return torch.stack(maps) if len({m.shape for m in maps}) == 1 else maps

    def overlay(
        self,
        index: int = 0,
        target: int | str | None = None,
        *,
        colormap: str = "turbo",
        alpha: float = 0.6,
        scale: float | None = None,
    ) -> Image.Image:
        """Blend one class's positive evidence over the original photo, at its full size.

        Parameters
        ----------
        index
            Which image.
        target
            Which of the classes explained, by index or name; default the first.
        colormap, alpha
            See `drawing.overlay.overlay`.
        scale
            Logits at the last colour; default the largest value among all maps of that image, so that classes compare.

        Raises
        ------
        TargetError
            If that class was not explained.
        """
        scale = self.scale(index) if scale is None else scale
        map = self._drawable(index, target)
        return drawing.overlay(self.photo(index), map, scale=scale, colormap=colormap, alpha=alpha)

    def boxes(
        self,
        index: int = 0,
        target: int | str | None = None,
        *,
        threshold: float = 0.2,
        component: drawing.Component = "largest",
    ) -> npt.NDArray[np.signedinteger]:
        """Return boxes (n, 4), (left, top, right, bottom) in the photo's pixels; see `drawing.overlay.boxes`."""
        return drawing.boxes(self._drawable(index, target), threshold=threshold, component=component)

    def masks(
        self,
        index: int = 0,
        target: int | str | None = None,
        *,
        threshold: float = 0.2,
        component: drawing.Component = "largest",
    ) -> npt.NDArray[np.bool_]:
        """Return a mask (H, W) of the evidence in the photo's pixels; see `drawing.overlay.masks`."""
        return drawing.masks(self._drawable(index, target), threshold=threshold, component=component)

    def panels(self, index: int = 0) -> list[Panel]:
        """Return the photo and an overlay of each class with its caption, ready for `montage`."""
        height, width = self.geometries[index].photo_size
        panels = [Panel(self.photo(index), self.names[index], (f"{width} x {height}",))]
        for position in range(self.target.shape[1]):
            summary = self.summary(index, position)
            nothing = () if (self.maps[index, position] > 0).any() else ("no positive evidence",)
            panels.append(Panel(self.overlay(index, summary.index), summary.name, (*summary.lines(), *nothing)))
        return panels

    def figure(self) -> Image.Image:
        """Draw a row for each image: the photo, then an overlay of each class with its score and completeness error."""
        scales = ", ".join(f"{self.scale(index):.3g}" for index in range(len(self)))
        footer = (
            f"{self.model_name}, {self.method} at {self.target_layer}. Colour is positive evidence, up to {scales} "
            "logits (one scale per row). Grey: not seen by the model."
        )
        return montage([self.panels(index) for index in range(len(self))], footer=footer)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[str]:
        """Write pictures, or pictures, raw maps and a manifest.

        Parameters
        ----------
        path
            ``"name.png"``: the overlay at the photo's full size, or with several classes a figure of them side by side;
            several images are numbered (``name_0.png``, ...). A directory: for each image the overlays, the signed maps
            (``.npz``) and a manifest (``.json``), written last.
        overwrite
            Replace files that camhook did not write. Its own are always replaced.

        Returns
        -------
        list of str
            The files written.

        Raises
        ------
        OutputError
            If a file is there that camhook did not write, or the path cannot be written to.
        """
        several = self.target.shape[1] > 1
        pictures: list[Draw] = [self[i].figure if several else partial(self.overlay, i) for i in range(len(self))]
        return save((self.files(index) for index in range(len(self))), pictures, path, overwrite=overwrite)

    def files(self, index: int = 0, *, overlays: bool = True) -> ImageFiles:
        """Return what `save` writes into a directory for one image, with its overlays or without."""
        classes = [self.summary(index, position) for position in range(self.target.shape[1])]
        geometry = self.geometries[index]
        return ImageFiles(
            name=self.names[index],
            classes=classes,
            overlays=[partial(self.overlay, index, each.index) for each in classes] if overlays else [],
            arrays={name: getattr(self, name)[index].cpu().numpy() for name in ("maps", "offset", "target", "scores")},
            about={
                "photo_size": geometry.photo_size,
                "input_size": geometry.input_size,
                "input_scale": geometry.scale,
                "input_offset": geometry.offset,
                "model": self.model_name,
                **{key: getattr(self, key) for key in ("explains", "method", "head", "target_layer")},
            },
        )

    def photo(self, index: int = 0) -> Image.Image:
        """Return the picture to draw on, upright and at full size."""
        if self.photos is None:
            raise ImageError(
                "There is no photo to draw on: a tensor was explained, and the model's normalisation is not known. "
                "Pass data_config= to wrap, or photos instead of a tensor; .maps and .upsampled() are there."
            )
        return self.photos[index]

    def scale(self, index: int = 0) -> float:
        """Return the largest value among an image's maps, in logits, 0 where none is positive."""
        return float(self.maps[index].amax().clamp_min(0))

    def _repr_html_(self) -> str:
        return f'<img src="{data_uri(self.figure())}">'

    def _drawable(self, index: int, target: int | str | None) -> npt.NDArray[np.float32]:
        """Return one map (H, W) at the photo's size."""
        if not 0 <= index < len(self):
            raise ImageError(f"Image {index} was asked for; there are {len(self)}, counted from 0.")
        explained = self.target[index].tolist()
        position = 0 if target is None else explained_position(target, explained, self.class_names, image=index)
        if not torch.isfinite(self.maps[index, position]).all():
            raise CamhookError(
                f"The map of {self.label(index, position)} holds NaN or infinity, which cannot be drawn: the model's "
                "features or logits overflowed. Run it in float32."
            )
        upsampled = self.geometries[index].to_photo(self.maps[index, position])
        return np.asarray(upsampled.cpu().numpy(), dtype=np.float32)
