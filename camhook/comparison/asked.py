"""What a comparison is asked to do, checked before anything expensive runs; and how it is described afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from PIL import Image
from torch import Tensor

from camhook.cam import CAM
from camhook.comparison.attributions import METHODS, method
from camhook.comparison.baselines import BASELINES
from camhook.engine.inputs import size_of
from camhook.errors import CamhookError, ImageError, TargetError
from camhook.images.preprocessing import ImageBatch
from camhook.metrics import METRICS, Metric, metric
from camhook.metrics.arguments import Boxes, Masks, as_boxes, as_object_masks
from camhook.targets import resolve_targets

__all__ = [
    "DEFAULT_METHODS", "DEFAULT_METRICS", "chosen_methods", "chosen_metrics", "one_class_each", "pictures",
    "progress_bar", "truths", "versions",
]  # fmt: skip

DEFAULT_METHODS = tuple(
    name for name, each in METHODS.items() if not each.is_control and name not in ("lime", "shapley_value_sampling")
)
DEFAULT_METRICS = (
    "insertion", "deletion", "average_drop", "increase_in_confidence", "average_gain", "coherency", "complexity",
    "adcc", "completeness",
)  # fmt: skip
_WITH_BOXES = ("pointing_game", "energy_inside", "max_box_acc_v2")
_WITH_MASKS = ("pixel_average_precision", "pxap")


def chosen_methods(names: str | Sequence[str] | None) -> list[str]:
    """Return the methods' names, in the order of the registry for ``"all"``, controls last.

    Examples
    --------
    >>> chosen_methods(["saliency", "cam"])
    ['saliency', 'cam', 'random', 'random_coarse', 'gaussian']
    """
    if names is None:
        names = DEFAULT_METHODS
    elif isinstance(names, str):
        names = list(METHODS) if names == "all" else [names]
    wanted = [method(name).name for name in dict.fromkeys(names)]
    return [n for n in wanted if not METHODS[n].is_control] + [n for n in METHODS if METHODS[n].is_control]


def chosen_metrics(names: str | Sequence[str] | None, at_hand: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics, those for ``None`` and ``"all"`` as far as what they need is at hand.

    Raises
    ------
    CamhookError
        A name is unknown, or a metric that was named needs what is not at hand.
    """

    def lacks(each: Metric) -> str:
        missing = [need for need in each.needs if not any(at_hand.get(name) is not None for name in need.split("|"))]
        return " or ".join(missing[0].split("|")) if missing else ""

    if names is None or names == "all":
        wanted: Sequence[str] = [n for n in METRICS if n != "grid_pointing_game"]
        if names is None:
            wanted = [*DEFAULT_METRICS, *_WITH_BOXES, *_WITH_MASKS]
        return [METRICS[n] for n in METRICS if n in wanted and not lacks(METRICS[n])]
    wanted = [names] if isinstance(names, str) else names
    found = [metric(name) for name in dict.fromkeys(wanted)]
    for each in found:
        if missing := lacks(each):
            first = missing.split(" or ")[0]
            raise CamhookError(
                f"The metric {each.name!r} needs {missing}: where the object is in each image. Pass {first}=, or leave "
                "the metric out."
            )
    if not found:
        raise CamhookError("No metric was named; name at least one, or pass none for the default.")
    return found


def one_class_each(target: Any, logits: Tensor, cam: CAM, what: str) -> Tensor:
    """Return one class an image, (B,).

    Raises
    ------
    TargetError
        They are not one an image, or a class does not exist.
    """
    found = resolve_targets(target, None, logits, cam.class_names)
    if found.shape[1] != 1:
        raise TargetError(
            f"Found {found.shape[1]} {what}s an image, expected one: a comparison explains one class each."
        )
    return found[:, 0]


def truths(boxes: Boxes | None, masks: Masks | None, images: Tensor, batch: ImageBatch | None) -> dict[str, Any]:
    """Return boxes and masks at the model's input, checked.

    Raises
    ------
    ImageError
        Not one entry an image, or a box that the model's crop left out of the photo altogether.
    """
    found: dict[str, Any] = {}
    for name, count in (("boxes", _count(boxes)), ("masks", _count(masks))):
        if count not in (None, len(images)):
            raise ImageError(f"Found {name} of {count} images for {len(images)} images, expected one entry an image.")
    if boxes is not None:
        sizes = [size_of(images)] * len(images) if batch is None else [each.photo_size for each in batch.geometries]
        rows = [as_boxes([each], size)[0] for each, size in zip(boxes, sizes, strict=True)]
        if batch is not None:
            for i, geometry in enumerate(batch.geometries):
                (down, right), (top, left) = geometry.scale, geometry.offset
                height, width = geometry.input_size
                moved = rows[i] * [right, down, right, down] + [left, top, left, top]
                rows[i] = moved.clip(0, [width, height, width, height])
                rows[i] = rows[i][(rows[i][:, 2] - rows[i][:, 0] > 0.5) & (rows[i][:, 3] - rows[i][:, 1] > 0.5)]
                if not len(rows[i]):
                    raise ImageError(
                        f"The boxes of {batch.names[i]} lie outside what the model sees of the photo. Leave it out, or "
                        "pass data_config= with a wider crop to wrap."
                    )
        found["boxes"] = rows
    if masks is not None:
        found["masks"] = as_object_masks(masks, images[:, 0])
    return found


def _count(entries: Any) -> int | None:
    return None if entries is None else len(entries)


def pictures(cam: CAM, images: Tensor) -> list[Image.Image]:
    """Return what the model saw, to draw on."""
    if cam.preprocessing is not None:
        return cam.preprocessing.photos_of(images)
    pixels = images.detach().float().cpu()
    pixels = pixels if pixels.shape[1] == 3 else pixels.mean(1, keepdim=True)
    low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    pixels = ((pixels - low) / (high - low).clamp_min(1e-12) * 255).round().byte().expand(-1, 3, -1, -1)
    return [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in pixels]


def described_baseline(baseline: str | float | Tensor) -> str:
    """Say what a baseline is."""
    if isinstance(baseline, str):
        return f"{baseline}: {BASELINES[baseline]}"
    return "a tensor of the caller's" if isinstance(baseline, Tensor) else f"{baseline} in the model's input"


def versions() -> dict[str, str]:
    """Return the versions of what has computed."""
    names = ("camhook", "captum", "torch", "timm", "numpy", "scipy", "scikit-learn", "scikit-image")
    modules = {"scikit-learn": "sklearn", "scikit-image": "skimage"}
    return {name: version(name) for name in names if find_spec(modules.get(name, name)) is not None}


@contextmanager
def progress_bar(total: int, *, show: bool) -> Iterator[Any]:
    """Show how far a comparison is."""
    from tqdm import tqdm

    with tqdm(total=total, disable=not show, unit="step", dynamic_ncols=True) as bar:
        yield bar
