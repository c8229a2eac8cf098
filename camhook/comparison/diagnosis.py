"""What the reader of a table should know of a method on this model, above all where it silently does nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from torch import Tensor, nn

from camhook.comparison.attributions import Attributed, attribute
from camhook.comparison.captum_methods import plain_gradient
from camhook.comparison.subjects import Subject

__all__ = ["diagnosed"]

_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")
_GUIDED = {"guided_backprop": "It", "guided_grad_cam": "Its guided backpropagation"}
_LAYER = ("layer_grad_cam", "guided_grad_cam")
_PARTS = ("feature_ablation", "kernel_shap", "lime", "shapley_value_sampling")


def diagnosed(subject: Subject, name: str, images: Tensor, target: Tensor, found: Attributed) -> Iterator[str]:
    """Yield remarks on what a method gave for images and targets."""
    first, classes = images[:1], target[:1]
    if name in _GUIDED:
        guided = attribute(subject, "guided_backprop", first, classes).maps
        plain = plain_gradient(subject, first.clone(), classes).maps.double().cpu()
        if torch.allclose(guided, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max())):
            here = _listed(subject, ())
            yield f"{_GUIDED[name]} equals the plain gradient: it acts on nn.ReLU only, and there is: {here}."
    if found.delta is not None:
        assert found.total is not None
        yield (f"Captum's convergence delta, the miss of f(x) - f(baseline): {_spread(found.delta.abs())} logits.")
    if name == "deep_lift" and (other := _listed(subject, tuple(SUPPORTED_NON_LINEAR))):
        yield f"It has no rule for {other} and takes their plain gradient."
    if name in _LAYER:
        features = subject.features(first, classes)
        rows, columns = features.grid_size
        yield f"Read channel first at {features.point} ({features.layout.axes}, {rows} x {columns})."
    if name in _PARTS:
        yield f"{len(subject.parts(first).unique())} parts: {subject.segments}."
    flat = found.maps.flatten(1)
    if bool((flat.amax(1) == flat.amin(1)).any()):
        yield "Some maps are constant: they say nothing."


def _listed(subject: Subject, known: tuple[type[nn.Module], ...]) -> str:
    """Name the model's activations that are of no known type, with how often they occur."""
    modules = [m for m in subject.scorer.modules() if type(m).__module__ in _ACTIVATIONS]
    modules = [m for m in modules if not isinstance(m, (nn.MultiheadAttention, *known))]
    counts = Counter(type(module).__name__ for module in modules)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or ("" if known else "none as modules")


def _spread(values: Tensor) -> str:
    mean, largest = float(values.mean()), float(values.max())
    return f"{mean:.2g}" if len(values) == 1 else f"mean {mean:.2g}, at most {largest:.2g}"
