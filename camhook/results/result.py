"""What a call gives back: maps in logit units, how well they add up, and pictures of them on request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from camhook.drawing import overlay as drawing
from camhook.drawing.montage import Panel, montage
from camhook.errors import CamhookError, ImageError, TargetError
from camhook.images.geometry import Geometry
from camhook.targets import ClassNames

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
        (B, T), in logits: what belongs to no position. It is the tail's value at the rest alone, computed on its own.
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
        index %= len(self)
        one = slice(index, index + 1)
        tensors = ("maps", "offset", "target", "logits", "scores", "completeness_error", "tolerance")
        changes: dict[str, Any] = {name: getattr(self, name)[one] for name in tensors}
        changes |= {"names": self.names[one], "geometries": self.geometries[one]}
        return replace(self, **changes, photos=None if self.photos is None else self.photos[one])

    def renamed(self, names: Sequence[str]) -> CAMResult:
        """Return the same with other names for the images, which files and captions carry."""
        if len(names) != len(self):
            raise ImageError(f"{len(names)} names were given for {len(self)} images.")
        for name in names:
            if name in ("", ".", "..") or any(mark in name for mark in ("/", "\\", "\0")):
                raise ImageError(f"The name {name!r} cannot be part of a file's name. Give one without folders.")
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
        """Say in a line what a map shows: class, score, offset and completeness error."""
        score, offset = float(self.scores[index, position]), float(self.offset[index, position])
        error, exact = float(self.completeness_error[index, position]), bool(self.exact[index, position])
        verdict = f"completeness error {_small(error)}" if exact else f"NOT COMPLETE: misses the score by {error:.2g}"
        return f"{self.label(index, position)}: score {_signed(score)}, offset {_signed(offset)}, {verdict}"

    def upsampled(self, size: tuple[int, int] | None = None) -> Tensor | list[Tensor]:
        """Draw the maps at the size of the original pictures.

        Parameters
        ----------
        size
            (height, width) for all; default each picture's own.

        Returns
        -------
        Tensor or list of Tensor
            (B, T, H, W) where all pictures have one size, else a list of (T, H, W). NaN where the crop left a photo
            out.
        """
        maps = [self._upsampled(index, size=size) for index in range(len(self))]
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
        """Lay one class's positive evidence over the original photo, at its full size.

        Parameters
        ----------
        index
            Which image.
        target
            Which of the classes explained, by index or name; default the first.
        scale
            Logits at the last colour; default the largest value among all maps of that image, so that classes compare.

        Raises
        ------
        TargetError
            If that class was not explained.
        """
        position = self._position(index, target)
        scale = self.scale(index) if scale is None else scale
        return drawing.overlay(
            self.photo(index), self._drawable(index, position), scale=scale, colormap=colormap, alpha=alpha
        )

    def boxes(
        self,
        index: int = 0,
        target: int | str | None = None,
        *,
        threshold: float = 0.2,
        component: drawing.Component = "largest",
    ) -> npt.NDArray[np.signedinteger]:
        """Return boxes (n, 4), (left, top, right, bottom) in the photo's pixels; see `drawing.boxes`."""
        return drawing.boxes(
            self._drawable(index, self._position(index, target)), threshold=threshold, component=component
        )

    def masks(
        self,
        index: int = 0,
        target: int | str | None = None,
        *,
        threshold: float = 0.2,
        component: drawing.Component = "largest",
    ) -> npt.NDArray[np.bool_]:
        """Return a mask (H, W) of the evidence in the photo's pixels; see `drawing.masks`."""
        return drawing.masks(
            self._drawable(index, self._position(index, target)), threshold=threshold, component=component
        )

    def panels(self, index: int = 0) -> list[Panel]:
        """Return the photo and an overlay of each class with its caption, ready for `montage`."""
        height, width = self.geometries[index].photo_size
        panels = [Panel(self.photo(index), self.names[index], (f"{width} x {height}",))]
        for position in range(self.target.shape[1]):
            score, offset = float(self.scores[index, position]), float(self.offset[index, position])
            lines = [f"score {_signed(score)}, offset {_signed(offset)}"]
            lines.append(f"completeness error {_small(float(self.completeness_error[index, position]))}")
            if not self.exact[index, position]:
                lines[-1] += ": NOT COMPLETE"
            if not (self.maps[index, position] > 0).any():
                lines.append("no positive evidence")
            picture = self.overlay(index, int(self.target[index, position]))
            panels.append(Panel(picture, self.label(index, position), tuple(lines)))
        return panels

    def figure(self) -> Image.Image:
        """Draw a row for each image: the photo, then an overlay of each class with its score and completeness error."""
        rows = [self.panels(index) for index in range(len(self))]
        scales = ", ".join(f"{self.scale(index):.3g}" for index in range(len(self)))
        footer = (
            f"{self.model_name}, {self.method} at {self.target_layer}. Colour is positive evidence, up to {scales} "
            "logits (one scale a row). Grey: not seen by the model."
        )
        return montage(rows, footer=footer)

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
        from camhook.results.saving import save

        return save(self, path, overwrite=overwrite)

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
        import base64
        import io

        buffer = io.BytesIO()
        self.figure().save(buffer, "PNG")
        return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'

    def _position(self, index: int, target: int | str | None) -> int:
        if not 0 <= index < len(self):
            raise ImageError(f"Image {index} was asked for; there are {len(self)}, counted from 0.")
        explained = self.target[index].tolist()
        if target is None:
            return 0
        wanted = self.class_names.index(target) if isinstance(target, str) else int(target)
        if wanted not in explained:
            known = ", ".join(f"{c} ({self.class_names.label(c)})" for c in explained[:10])
            raise TargetError(
                f"Class {target!r} was not explained for image {index}; explained: {known}. Call cam again."
            )
        return explained.index(wanted)

    def _upsampled(self, index: int, positions: Sequence[int] | slice = slice(None), size: Any = None) -> Tensor:
        geometry = self.geometries[index] if size is None else self.geometries[index].resized(tuple(size))
        return geometry.to_photo(self.maps[index][positions])

    def _drawable(self, index: int, position: int) -> npt.NDArray[np.float32]:
        values = self._upsampled(index, [position])[0].float().cpu()
        if not torch.isfinite(self.maps[index, position]).all():
            raise CamhookError(
                f"The map of {self.label(index, position)} holds NaN or infinity, which cannot be drawn: the model's "
                "features or logits overflowed. Run it in float32."
            )
        return np.asarray(values.numpy(), dtype=np.float32)


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # adding zero turns -0.0 into 0.0


def _small(value: float) -> str:
    return f"{value:.0e}" if value else "0"
