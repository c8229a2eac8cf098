"""Figure of the equation behind a class activation map: weighted feature maps plus offset equal the logit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from camhook.drawing.montage import Panel, montage
from camhook.drawing.overlay import Photo, signed_overlay
from camhook.drawing.text import draw_text
from camhook.errors import CamhookError

__all__ = ["Term", "anatomy", "channel_anatomy"]

_INK = (25, 25, 25)
_COLUMNS = 5  # panels in a row


@dataclass(frozen=True)
class Term:
    """A summand: its ``map`` (H, W) at the photo's size and its ``score``, both signed and in logits.

    The score is the mean of the map before it was upsampled; ``weight`` is None for a sum of several channels.
    """

    label: str
    weight: float | None
    map: npt.NDArray[np.floating]
    score: float


def anatomy(photo: Photo, terms: Sequence[Term], total: Term, *, offset: float, title: str = "") -> Image.Image:
    """Draw the equation photo = term + term + ... + offset = map, each panel with what it adds to the logit.

    Red adds to the score, blue takes from it. The terms with a weight share one scale, the largest value among them;
    the other channels and the finished map, which are sums of many, share another.

    Parameters
    ----------
    photo : PIL.Image.Image or uint8 array (H, W, 3)
    terms : sequence of Term
        The summands; those not shown one by one are a single term with ``weight=None``.
    total : Term
        The finished map; its ``score`` is the logit.
    offset : float
        What belongs to no position, in logits.
    title : str

    Raises
    ------
    CamhookError
        A map has another size than the photo.
    """
    single = _largest(term for term in terms if term.weight is not None)
    summed = _largest(term for term in (*terms, total) if term.weight is None)
    *parts, whole = (
        signed_overlay(photo, term.map, scale=summed if term.weight is None else single) for term in (*terms, total)
    )
    picture = photo if isinstance(photo, Image.Image) else Image.fromarray(photo)
    logit = f"logit {total.score:+.2f}"

    panels = [Panel(picture, "photo", (logit,))]
    for term, part in zip(terms, parts, strict=True):
        weight = "" if term.weight is None else f"w = {term.weight:+.3g}  ·  "
        panels.append(Panel(part, term.label, (f"{weight}adds {term.score:+.2f}",), "=" if len(panels) == 1 else "+"))
    tile = Image.new("RGB", picture.size, (242, 242, 242))
    middle, value = (tile.width / 2, tile.height / 2), f"{round(offset, 2) + 0.0:+.2f}"
    draw_text(ImageDraw.Draw(tile), middle, value, size=max(tile.size) / 8, fill=_INK, anchor="mm")
    panels.append(Panel(tile, "offset", ("belongs to no position",), "+" if terms else "="))
    panels.append(Panel(whole, total.label, (logit,), "="))

    footer = (
        f"Red adds to the score, blue takes from it. Full colour is {single:.3g} logits of either sign in panels with "
        f"a weight w, {summed:.3g} in the sums of many. A panel adds the mean of its map over all positions."
    )
    missing = total.score - offset - sum(term.score for term in terms)
    if abs(missing) >= 0.005:  # an equation that does not hold must not look as if it did
        footer += f" What these panels add leaves {missing:+.2f} of the logit out."
    rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    return montage(rows, cell=(260, 260), title=title, footer=footer)


def channel_anatomy(
    photo: Photo,
    contributions: npt.NDArray[np.floating],
    weights: npt.NDArray[np.floating],
    total: Term,
    *,
    offset: float,
    channels: int,
    upsample: Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]],
    title: str = "",
) -> Image.Image:
    """Draw the channels that add most to a logit as terms of `anatomy`, and the sum of the others as one term.

    Parameters
    ----------
    photo : PIL.Image.Image or uint8 array (H, W, 3)
    contributions : array (C, h, w)
        Weight times feature map of each channel, in logits.
    weights : array (C,)
        The class's weight of each channel.
    total, offset, title
        See `anatomy`.
    channels : int
        How many to show one by one, 1 to C.
    upsample : callable
        Takes a map (h, w) to the photo's size, (H, W).

    Raises
    ------
    CamhookError
        There are fewer channels, or a map has another size than the photo.
    """
    count = len(contributions)
    if not 1 <= channels <= count:
        raise CamhookError(f"channels={channels}: from 1 to {count}, the number of feature maps, was expected.")
    scores = contributions.mean((1, 2))
    best = np.argsort(-scores, kind="stable")[:channels]
    terms = [Term(f"channel {c}", float(weights[c]), upsample(contributions[c]), float(scores[c])) for c in best]
    if count > channels:
        others = contributions.sum(0) - contributions[best].sum(0)
        terms.append(Term(f"the other {count - channels} channels", None, upsample(others), float(others.mean())))
    return anatomy(photo, terms, total, offset=offset, title=title)


def _largest(terms: Iterable[Term]) -> float:
    return max((float(np.nanmax(np.abs(term.map), initial=0)) for term in terms), default=0.0)
