"""Maps drawn on photos: colours, overlays, masks, boxes, contours. Arrays in, arrays or pictures out.

A map is a signed array (H, W) in logit units, of the photo's own size; NaN marks what the model's crop left out of the
photo. Display keeps the positive part (ReLU) and divides it by one scale, so a map without positive evidence shows
none. Colours of lines are names or "#rrggbb".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw

from camhook.errors import CamhookError, DependencyError
from camhook.suggestions import hint

Photo = Image.Image | npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.floating]
Integers = npt.NDArray[np.signedinteger]
Component = Literal["largest", "all"]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as in PIL's convert("L")
_BLUE_RED = np.array([(20, 80, 190), (200, 20, 30)], dtype=np.uint8)


def opencv() -> ModuleType:
    """Import OpenCV on first use: its wheel needs system libraries that slim containers lack.

    Raises
    ------
    DependencyError
        It is not installed, or does not load; the message names the missing library and what mends it.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        raise DependencyError("Drawing needs OpenCV, which is not installed: pip install opencv-python") from error
    except ImportError as error:
        library = re.search(r"lib[\w.+-]+\.so[.\d]*", str(error))
        found = f"the system library {library.group()} is missing" if library else f"it says: {error}"
        raise DependencyError(
            f"OpenCV is installed but does not load: {found}. Debian or Ubuntu: apt-get install libgl1 libglib2.0-0. "
            "Elsewhere, or without root: replace opencv-python by opencv-python-headless, which needs neither (pip "
            "uninstall the one, then pip install the other)."
        ) from error
    return cv2


def colorize(map: npt.ArrayLike, *, scale: float, colormap: str = "turbo") -> Pixels:
    """Colour the positive part of a map (H, W) from 0 to ``scale``, as uint8 RGB (H, W, 3); NaN becomes mid grey.

    Parameters
    ----------
    map : array (H, W)
        Signed, in logits.
    scale : float
        Logits at the last colour, which larger values take too. At 0 or less nothing counts as evidence.
    colormap : str
        An OpenCV colour map by name: "turbo", "jet", "viridis", "inferno", "magma"...

    Raises
    ------
    CamhookError
        The map is not 2-d or not finite, the scale is not finite, or the colour map has no such name.

    Examples
    --------
    >>> colorize([[-1.0, 2.0]], scale=2.0, colormap="hot").tolist()
    [[[0, 0, 0], [255, 255, 255]]]
    """
    values, cv2 = _checked_map(map), opencv()
    known = sorted(name[9:].lower() for name in dir(cv2) if name.startswith("COLORMAP_"))
    if colormap not in known:
        raise CamhookError(f"Found colormap {colormap!r}, expected an OpenCV colour map. {hint(str(colormap), known)}")
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    palette = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{colormap.upper()}"))[:, 0, ::-1]  # OpenCV gives BGR
    colors: Pixels = palette[np.rint(255 * _strength(values, scale)).astype(np.uint8)]
    colors[np.isnan(values)] = 128
    return colors


def overlay(
    photo: Photo, map: npt.ArrayLike, *, scale: float | None = None, colormap: str = "turbo", alpha: float = 0.6
) -> Image.Image:
    """Blend the positive part of a map over its photo; the photo stays as it is where there is no evidence.

    Opacity is ``alpha * smoothstep(2 v)``, v = ReLU(map) / scale clipped to [0, 1]: no edge where evidence starts, and
    full from half the scale on, where colour alone tells values apart. What the crop left out turns grey behind a line.

    Parameters
    ----------
    photo : PIL.Image.Image or uint8 array (H, W, 3)
    map : array (H, W)
        Signed, in logits, at the photo's size.
    scale : float, optional
        Logits at the last colour; pass the largest value over all maps shown together. Default: this map's largest.
    colormap : str
        See `colorize`.
    alpha : float
        Opacity of strong evidence, 0 to 1.

    Raises
    ------
    CamhookError
        Map and photo differ in size, or an option is out of range.
    """
    values, pixels = _checked_pair(map, photo)
    if not 0 <= alpha <= 1:
        raise CamhookError(f"Found alpha={alpha!r}, expected an opacity; pass 0 (photo alone) to 1.")
    scale = float(_evidence(values).max()) if scale is None else scale
    ramp = np.minimum(2 * _strength(values, scale), 1)
    heat = colorize(values, scale=scale, colormap=colormap)
    return _framed(_blend(pixels, heat, alpha * ramp * ramp * (3 - 2 * ramp)), np.isnan(values))


def signed_overlay(photo: Photo, map: npt.ArrayLike, *, scale: float) -> Image.Image:
    """Blend both signs of a map over its photo in pale grey: red adds to the score, blue subtracts from it.

    Colour is full where the map reaches ``scale`` logits of either sign. Other parameters and errors as in `overlay`.
    """
    values, pixels = _checked_pair(map, photo)
    grey = np.rint(0.45 * (pixels @ _LUMA) + 0.55 * 255).astype(np.uint8)
    tint = _BLUE_RED[(values > 0).astype(np.intp)]
    # Steeper than linear for weak values: one channel of hundreds is seldom strong on the scale of the finished map.
    opacity = 0.9 * _strength(np.abs(values), scale) ** 0.7
    return _framed(_blend(np.stack([grey] * 3, axis=2), tint, opacity), np.isnan(values))


def masks(map: npt.ArrayLike, *, threshold: float = 0.2, component: Component = "largest") -> npt.NDArray[np.bool_]:
    """Return a mask (H, W) of strong evidence: at least ``threshold`` times the map's largest value.

    Zhou et al. 2016 (arXiv 1512.04150, section 3.2) take 20% of the maximum and the largest connected component.
    Positions connect through sides and corners; of equally large components the upper, then the left, comes first.
    NaN is never marked, and nothing is where no evidence is positive.

    Raises
    ------
    CamhookError
        The map is not 2-d or not finite, the threshold not above 0 and up to 1, the component unknown.

    Examples
    --------
    >>> masks([[5.0, 0.5, 2.0], [-9.0, 0.0, 1.0]]).tolist()
    [[False, False, True], [False, False, True]]
    """
    labels, found = _components(map, threshold, component)
    return np.isin(labels, found[:, 0])


def boxes(map: npt.ArrayLike, *, threshold: float = 0.2, component: Component = "largest") -> Integers:
    """Return the bounding boxes of what `masks` marks: rows (left, top, right, bottom), right and bottom exclusive.

    The component of most pixels comes first; (0, 4) where no evidence is positive. Parameters and errors as in `masks`.

    Examples
    --------
    >>> boxes([[5.0, 0.5, 2.0], [-9.0, 0.0, 1.0]], component="all").tolist()
    [[2, 0, 3, 2], [0, 0, 1, 1]]
    """
    return _components(map, threshold, component)[1][:, 1:]


def draw_boxes(
    picture: Image.Image, boxes: npt.ArrayLike, *, color: str = "white", width: int | None = None
) -> Image.Image:
    """Draw rows of `boxes` on a copy of a picture; a dark edge shows them on any photo. CamhookError if not (n, 4)."""
    found = np.asarray(boxes)
    rows = np.rint(found if found.size else np.empty((0, 4))).astype(np.int64)
    if rows.ndim != 2 or rows.shape[1] != 4 or (rows[:, :2] >= rows[:, 2:]).any():
        rule = "rows (left, top, right, bottom) with left < right and top < bottom"
        raise CamhookError(f"Found boxes {found.tolist()}, expected {rule}; pass what boxes() returns.")
    drawn = picture.convert("RGB")  # a copy, always
    sheet, width = ImageDraw.Draw(drawn), _line_width(drawn.size) if width is None else width
    for left, top, right, bottom in rows.tolist():
        sheet.rectangle((left - 1, top - 1, right, bottom), outline="black", width=width + 2)
        sheet.rectangle((left, top, right - 1, bottom - 1), outline=color, width=width)
    return drawn


def draw_contours(
    picture: Image.Image, map: npt.ArrayLike, *, levels: Sequence[float] = (0.2, 0.5, 0.8), color: str = "white"
) -> Image.Image:
    """Draw contour lines of a map on a copy of a picture, at shares of the map's largest value; errors as `masks`."""
    values, pixels = _checked_pair(map, picture)
    cv2, width = opencv(), _line_width(picture.size)
    regions = [masks(values, threshold=level, component="all").astype(np.uint8) for level in levels]
    lines = [line for region in regions for line in cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]]
    for thickness, ink in ((width + 2, "black"), (width, color)):
        cv2.drawContours(pixels, lines, -1, ImageColor.getrgb(ink)[:3], thickness, cv2.LINE_AA)
    return Image.fromarray(pixels)


def _checked_map(map: npt.ArrayLike) -> Values:
    values = np.asarray(map)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiub" or np.isinf(values).any():
        found = f"Found a map of {values.dtype} {values.shape}, or with infinite values"
        raise CamhookError(f"{found}; expected real numbers (H, W), finite or NaN: pass one map of one image.")
    return values.astype(np.promote_types(values.dtype, np.float32), copy=False)


def _checked_pair(map: npt.ArrayLike, photo: Photo) -> tuple[Values, Pixels]:
    values = _checked_map(map)
    pixels = np.array(photo.convert("RGB") if isinstance(photo, Image.Image) else photo)  # a copy, always
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        found = f"{pixels.dtype} of shape {pixels.shape}"
        raise CamhookError(f"Found a photo of {found}, expected uint8 RGB (H, W, 3); pass a PIL image or convert it.")
    if pixels.shape[:2] != values.shape:
        found = f"(height, width) {values.shape} for a photo of {pixels.shape[:2]}"
        raise CamhookError(f"Found a map of {found}, expected the same; upsample the map to the photo.")
    return values, pixels


def _evidence(values: Values) -> Values:
    return np.where(values > 0, values, 0)  # NaN > 0 is False: no evidence where the crop left the photo out


def _strength(values: Values, scale: float) -> Values:
    if not math.isfinite(scale):
        raise CamhookError(f"Found scale={scale}, expected a finite number of logits; pass the maps' largest value.")
    return np.minimum(_evidence(values), scale) / scale if scale > 0 else np.zeros_like(values)


def _blend(pixels: Pixels, tint: Pixels, opacity: Values) -> Pixels:
    base = pixels.astype(np.float32)
    return np.rint(base + (tint - base) * opacity.astype(np.float32)[..., None]).astype(np.uint8)


def _framed(pixels: Pixels, outside: npt.NDArray[np.bool_]) -> Image.Image:
    if outside.any():
        pixels[outside] = np.rint(0.4 * (pixels[outside] @ _LUMA) + 40).astype(np.uint8)[:, None]
        reach = 2 * _line_width(outside.shape) - 1
        near = opencv().dilate((~outside).astype(np.uint8), np.ones((reach, reach), dtype=np.uint8))
        pixels[outside & (near > 0)] = 255  # beyond the crop's edge, so that the line hides no evidence
    return Image.fromarray(pixels)


def _components(map: npt.ArrayLike, threshold: float, component: Component) -> tuple[Integers, Integers]:
    """Label strong positions by component (H, W), and list (label, left, top, right, bottom), largest first."""
    evidence = _evidence(_checked_map(map))
    if not 0 < threshold <= 1:
        raise CamhookError(f"Found threshold={threshold!r}, expected a share of the maximum; pass above 0 and up to 1.")
    if component not in ("largest", "all"):
        raise CamhookError(f"Found component={component!r}, expected 'largest' or 'all'; pass one of those.")
    strong = (evidence >= threshold * float(evidence.max())) & (evidence > 0)
    _, labels, stats, _ = opencv().connectedComponentsWithStats(strong.astype(np.uint8), connectivity=8)
    left, top, width, height, area = stats[1:].astype(np.int64).T  # the first row is the background
    order = np.lexsort((left, top, -area))[: 1 if component == "largest" else None]
    return labels, np.stack([np.arange(1, len(stats)), left, top, left + width, top + height], axis=1)[order]


def _line_width(size: tuple[int, ...]) -> int:
    return max(2, round(min(size) / 200))
