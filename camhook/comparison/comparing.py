"""Comparison of attribution methods on one model: `compare`, and its result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from torch import Tensor
from tqdm import tqdm

from camhook.cam import CAM
from camhook.comparison import files
from camhook.comparison.baselines import described_baseline
from camhook.comparison.measuring import Measured, Measurement, MethodError
from camhook.comparison.methods import METHODS, chosen_methods
from camhook.comparison.metric_inputs import chosen_metrics, confident_mosaics, ground_truth
from camhook.comparison.subjects import Segments, Subject
from camhook.comparison.table import ComparisonTable
from camhook.errors import CamhookError
from camhook.images.photos import Source
from camhook.metrics.types import Boxes, Masks

__all__ = ["Comparison", "compare"]


class Comparison(ComparisonTable):
    """Attribution methods measured on the same model, images and targets; `ComparisonTable` lists its attributes."""

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[str]:
        """Write the comparison to files.

        Parameters
        ----------
        path
            ``.html``: a self-contained page with maps and tables, which opens offline; ``.csv``: the rows; ``.json``:
            all numbers, notes and settings; ``.png``: the figure. A directory: all four.
        overwrite
            Replace files that camhook did not write. Its own are always replaced.

        Returns
        -------
        list of str
            The files written.

        Raises
        ------
        OutputError
            A file is there that camhook did not write, the path cannot be written to, or its ending is unknown.
        """
        return files.save(self, path, overwrite=overwrite)


def compare(
    cam: CAM,
    images: Source | Sequence[Source] | Tensor,
    *,
    target: Any = None,
    methods: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    boxes: Boxes | None = None,
    masks: Masks | None = None,
    labels: Any = None,
    baseline: str | float | Tensor = "black",
    segments: Segments = "grid",
    cells: int = 7,
    steps: int = 224,
    mosaics: int = 8,
    mosaic_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Compare camhook's maps with Captum's attributions: same model, images and targets, measured by the same metrics.

    Controls that do not depend on the model (random, coarse random, a centred Gaussian) are always included. A method
    that cannot be applied to the model is reported with the reason. The model is not changed: Captum runs on a copy.

    Parameters
    ----------
    cam : CAM
        The wrapped model.
    images
        As for ``cam(images)``: photos, or a preprocessed tensor (B, C, H, W). Maps are measured at the model's input.
    target
        The class to explain, by index or name: one for all, or one per image. Default: the labels if given, else the
        predicted class.
    methods, metrics : str or sequence of str, optional
        Names of `camhook.comparison.methods.METHODS` and `camhook.metrics.METRICS`, or ``"all"``. Default: all methods
        but the two slowest; the metrics that need no more than is given, but for the expensive ones: road, infidelity,
        sensitivity_max and randomisation.
    boxes, masks
        Where the object is: per image a box (left, top, right, bottom) or several, in the photo's own pixels (the
        input's for a tensor); or bool (B, H, W), at the model's input.
    labels
        The true classes, one per image: the default target, and a condition for images used in mosaics.
    baseline : str, float or Tensor
        What replaces removed pixels, for methods and metrics alike (insertion starts from its own blur): ``"black"``,
        ``"blur"``, ``"mean"``, ``"zero"``, a number or a tensor in the input's units.
    segments, cells
        What FeatureAblation, KernelShap, Lime and ShapleyValueSampling remove as a whole: the cells of a grid of
        ``cells`` per side, or ``"superpixels"``, about as many.
    steps : int
        Of insertion and deletion.
    mosaics, mosaic_size
        For grid_pointing_game: the largest number of 2 x 2 mosaics, and their (height, width). Default: twice the
        images' size, or that itself for a model that takes no other.
    batch_size : int, optional
        Images per forward pass, and in memory. Default 4 on a CPU, where more are slower, else 32.
    options : mapping, optional
        Options by name of a method or metric: ``{"integrated_gradients": {"n_steps": 100}}``.
    seed : int
        Seed of everything random.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Comparison

    Raises
    ------
    CamhookError
        A name is unknown (similar names are listed), a metric lacks the boxes or labels that it needs, lengths differ,
        or the images are too small for the grid.

    Examples
    --------
    >>> import timm, torch, camhook
    >>> cam = camhook.wrap(timm.create_model("test_resnet"))
    >>> found = compare(cam, torch.rand(2, 3, 32, 32), methods=["cam", "saliency"], metrics=["complexity"])
    >>> found.methods
    ('cam', 'saliency', 'random', 'random_coarse', 'gaussian')
    """
    names, options = chosen_methods(methods), options or {}
    measures = chosen_metrics(metrics, boxes=boxes, masks=masks)
    if unknown := set(options) - set(names) - {each.name for each in measures}:
        raise CamhookError(f"Found options for {min(unknown)!r}, which is neither a method nor a metric here.")
    subject = Subject(cam, baseline=baseline, segments=segments, cells=cells, batch_size=batch_size, seed=seed)
    pixels, batch = subject.inputs(images)
    subject.feature_mask(pixels[:1])  # raises if the images are too small
    logits = subject.logits(pixels)
    truth = None if labels is None else subject.classes(labels, logits, "label")
    classes = truth if target is None and truth is not None else subject.classes(target, logits)
    mosaic = None
    if any(each.name == "grid_pointing_game" for each in measures):
        mosaic = confident_mosaics(subject, pixels, truth, limit=mosaics, size=mosaic_size)
    measurement = Measurement(
        subject,
        given={"images": pixels, "target": classes.cpu(), **ground_truth(boxes, masks, pixels, batch)},
        classes=classes,
        metrics=measures,
        mosaics=mosaic,
        steps=steps,
        options=options,
    )
    measured: dict[str, Measured] = {}
    failures: dict[str, str] = {}
    total = len(names) * (len(pixels) + len(measures))
    with tqdm(total=total, disable=not progress, unit="step", dynamic_ncols=True) as bar:
        for name in names:
            bar.set_postfix_str(name)
            try:
                measured[name] = measurement.measure(name, bar.update)
            except MethodError as error:
                failures[name] = str(error)
    return Comparison(
        model=subject.name,
        explained=subject.describe(),
        images=tuple(batch.names if batch else [f"image{i}" for i in range(len(pixels))]),
        pictures=tuple(subject.pictures(pixels)),
        classes=subject.labels(classes),
        confidence=tuple(logits.double().softmax(1).gather(1, classes[:, None])[:, 0].tolist()),
        metrics=tuple(each.name for each in measures),
        maps={name: each.maps for name, each in measured.items()},
        values={name: each.values for name, each in measured.items()},
        seconds={name: each.seconds for name, each in measured.items()},
        memory={name: each.peak_bytes for name, each in measured.items()},
        notes={name: each.notes for name, each in measured.items()},
        failures=failures,
        settings={
            "images": f"{len(pixels)}, {pixels.shape[2]} x {pixels.shape[3]} pixels at the model's input",
            "baseline": described_baseline(baseline),
            "segments": f"{segments}, {cells} x {cells}" if segments == "grid" else f"about {cells**2} superpixels",
            "steps of insertion and deletion": str(steps),
            "grid pointing game": str(mosaic or "not measured"),
            "options": "; ".join(f"{name}: {text}" for name in names if (text := _options(name, options))),
            "batch size": str(subject.batch_size),
            "device": str(pixels.device),
            "dtype": str(pixels.dtype).removeprefix("torch."),
            "seed": str(seed),
        },
        versions=_versions(),
    )


def _options(name: str, options: Mapping[str, Mapping[str, Any]]) -> str:
    """List the options that a method runs with."""
    return ", ".join(f"{key}={value}" for key, value in {**METHODS[name].options, **options.get(name, {})}.items())


def _versions() -> dict[str, str]:
    names = ("camhook", "captum", "torch", "timm", "numpy", "scipy", "scikit-learn", "scikit-image")
    modules = {"scikit-learn": "sklearn", "scikit-image": "skimage"}
    return {name: version(name) for name in names if find_spec(modules.get(name, name)) is not None}
