"""Run explanations side by side on one model, its images and targets, and measure them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from camhook.adapters.libraries import model_name
from camhook.cam import CAM
from camhook.comparison.asked import (
    chosen_methods,
    chosen_metrics,
    described_baseline,
    one_class_each,
    pictures,
    progress_bar,
    truths,
    versions,
)
from camhook.comparison.attributions import METHODS
from camhook.comparison.measuring import Measuring
from camhook.comparison.mosaics import confident_mosaics
from camhook.comparison.subjects import Segments, Subject
from camhook.comparison.table import Comparison
from camhook.errors import CamhookError, UnsupportedModelError
from camhook.images.photos import Source
from camhook.metrics.arguments import Boxes, Masks

__all__ = ["compare"]

_ALWAYS = ("maps", "images", "target", "model", "explain", "explainer", "cells")


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
    """Run camhook beside Captum's attributions on the same model, images and targets, and measure them all.

    Controls that know nothing of the model (random, coarse random, a centred Gaussian) are always in the table. A
    method that the model cannot take is reported with the reason, and the comparison goes on. The model is not changed:
    Captum runs on a copy.

    Parameters
    ----------
    cam
        The wrapped model.
    images
        As for ``cam(images)``: photos, or a preprocessed tensor (B, C, H, W). All is measured at the model's input.
    target
        The class to explain, by index or name: one for all, or one an image. Default: the labels where given, else the
        predicted class.
    methods, metrics
        Names out of `camhook.comparison.attributions.METHODS` and `camhook.metrics.METRICS`, or ``"all"``. Default: all
        methods but the two slowest; the metrics that need no more than is given, but for the expensive ones: road,
        infidelity, sensitivity_max and randomisation.
    boxes, masks
        Where the object is: a box (left, top, right, bottom) or several an image, in the photo's own pixels (the
        input's for a tensor); or bool (B, H, W), at the model's input.
    labels
        The true classes, one an image: the default target, and what confident images for mosaics must be read as.
    baseline
        What removed pixels become, for methods and metrics alike (insertion starts from its own blur): ``"black"``,
        ``"blur"``, ``"mean"``, ``"zero"``, a number or a tensor in the input's units.
    segments, cells
        What FeatureAblation, KernelShap, Lime and ShapleyValueSampling remove as one: the cells of a grid of so many a
        side, or ``"superpixels"``, about as many.
    steps
        Of insertion and deletion.
    mosaics, mosaic_size
        For grid_pointing_game: at most so many 2 x 2 mosaics, at this (height, width). Default twice the images' size,
        or that itself for a model that takes no other.
    batch_size
        How many pictures the model sees, and memory holds, at a time. Default 4 on a CPU (more are slower), else 32.
    options
        By name of a method or metric, options of its own: ``{"integrated_gradients": {"n_steps": 100}}``.
    seed
        Of all that is drawn.
    progress
        Show a bar.

    Returns
    -------
    Comparison

    Raises
    ------
    CamhookError
        A name is unknown (with near ones), a metric lacks the boxes or labels that it needs, lengths differ, or the
        images are too small for the grid.

    Examples
    --------
    >>> import timm, torch, camhook
    >>> cam = camhook.wrap(timm.create_model("test_resnet"))
    >>> found = compare(cam, torch.rand(2, 3, 32, 32), methods=["cam", "saliency"], metrics=["complexity"])
    >>> found.methods
    ('cam', 'saliency', 'random', 'random_coarse', 'gaussian')
    """
    names, options = chosen_methods(methods), options or {}
    at_hand = {"boxes": boxes, "masks": masks, **dict.fromkeys(_ALWAYS, True)}
    measures = chosen_metrics(metrics, at_hand)
    if unknown := set(options) - set(names) - {each.name for each in measures}:
        raise CamhookError(f"Found options for {min(unknown)!r}, which is neither a method nor a metric here.")
    pixels, batch = cam.inputs(images)
    if cam(pixels[:1]).explains != "model":
        raise UnsupportedModelError(
            "A probe's scores are not the model's own, which is what Captum explains. Wrap the model without the probe."
        )
    subject = Subject(cam, baseline=baseline, segments=segments, cells=cells, batch_size=batch_size, seed=seed)
    subject.parts(pixels[:1])  # says so if the images are too small
    logits = subject.logits(pixels)
    truth = None if labels is None else one_class_each(labels, logits, cam, "label")
    classes = truth if target is None and truth is not None else one_class_each(target, logits, cam, "target")
    given: dict[str, Any] = {"images": pixels, "target": classes.cpu(), **truths(boxes, masks, pixels, batch)}
    mosaic = None
    if any(each.name == "grid_pointing_game" for each in measures):
        mosaic = confident_mosaics(subject, pixels, truth, limit=mosaics, size=mosaic_size)
    run = Measuring(subject, given, classes, measures, mosaic, steps, options)
    with progress_bar(len(names) * (len(pixels) + len(measures)), show=progress) as bar:
        for name in names:
            bar.set_postfix_str(name)
            run.measure(name, bar.update)
    return Comparison(
        model=model_name(cam.model),
        explained=str(cam.describe()),
        images=tuple(batch.names if batch else [f"image{i}" for i in range(len(pixels))]),
        pictures=tuple(pictures(cam, pixels)),
        classes=tuple(cam.class_names.label(int(c)) for c in classes),
        confidence=tuple(logits.double().softmax(1).gather(1, classes[:, None])[:, 0].tolist()),
        metrics=tuple(each.name for each in measures),
        maps=run.maps,
        values=run.values,
        seconds=run.seconds,
        memory=run.memory,
        notes=run.notes,
        failures=run.failures,
        settings={
            "images": f"{len(pixels)}, {pixels.shape[2]} x {pixels.shape[3]} pixels at the model's input",
            "baseline": described_baseline(baseline),
            "parts": f"{segments}, {cells} x {cells}" if segments == "grid" else f"about {cells**2} superpixels",
            "steps of insertion and deletion": str(steps),
            "grid pointing game": str(mosaic or "not played"),
            "options": "; ".join(f"{name}: {_listed(name, options)}" for name in names if _listed(name, options)),
            "pictures at a time": str(subject.batch_size),
            "device": str(pixels.device),
            "dtype": str(pixels.dtype).removeprefix("torch."),
            "seed": str(seed),
        },
        versions=versions(),
    )


def _listed(name: str, options: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the options that a method ran with, in words."""
    return ", ".join(f"{key}={value}" for key, value in {**METHODS[name].options, **options.get(name, {})}.items())
