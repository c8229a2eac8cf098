"""Running an attribution method in batches, and notes on what it computed for a model.

Above all, the notes say where a method has no effect and raises no error.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from torch import Tensor, nn

from camhook.comparison.captum_methods import Attribution, gradient
from camhook.comparison.methods import method
from camhook.comparison.subjects import Subject
from camhook.errors import CamhookError

__all__ = ["attribute", "notes"]

_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.activations_me")


def attribute(
    subject: Subject,
    name: str,
    images: Tensor,
    target: Tensor,
    *,
    options: Mapping[str, Any] | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> Attribution:
    """Explain images by one method, in batches. The random state is restored.

    Parameters
    ----------
    subject : Subject
        The model.
    name : str
        One of `camhook.comparison.methods.METHODS`.
    images : Tensor (B, C, H, W)
        Preprocessed, on the model's device.
    target : Tensor (B,)
        The classes to explain.
    options : mapping, optional
        Replace the method's defaults.
    done : callable, optional
        Called with the number of images after each batch.

    Returns
    -------
    Attribution
        Float64, on the CPU.

    Raises
    ------
    CamhookError
        There is no such method or option, or the method gave NaN or infinity. Captum's own errors pass.
    """
    chosen = method(name)
    if unknown := set(options or {}) - set(chosen.options):
        takes = f"it takes {', '.join(chosen.options)}" if chosen.options else "it takes none"
        raise CamhookError(f"The method {name!r} has no option {min(unknown)!r}; {takes}.")
    size = 1 if chosen.one_by_one else subject.batch_size
    parts: dict[str, list[Tensor]] = {each.name: [] for each in fields(Attribution)}
    with _seeded(subject.seed, images.device), torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum warns of every hook it sets
        for part, classes in zip(images.detach().split(size), target.split(size), strict=True):
            found = chosen.run(subject, part.clone(), classes, **(options or {}))
            for field, values in parts.items():
                if (value := getattr(found, field)) is not None:
                    values.append(value.detach().double().cpu())
            done(len(part))
    whole = Attribution(**{field: torch.cat(values) for field, values in parts.items() if values})
    if not bool(torch.isfinite(whole.maps).all()):
        raise CamhookError("The method gave NaN or infinity.")
    return whole


def notes(subject: Subject, name: str, images: Tensor, target: Tensor, found: Attribution) -> Iterator[str]:
    """Yield remarks on what a method computed for these images and targets."""
    first, classes = images[:1], target[:1]
    if name in ("guided_backprop", "guided_grad_cam"):
        guided = attribute(subject, "guided_backprop", first, classes).maps
        plain = gradient(subject, first.clone(), classes).sum(1).double().cpu()
        if torch.allclose(guided, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max())):
            what = "It" if name == "guided_backprop" else "Its guided backpropagation"
            activations = _activations(subject, ()) or "none as modules"
            yield f"{what} equals the plain gradient: it changes nn.ReLU only, and the model has: {activations}."
    if found.delta is not None:
        yield f"Captum's convergence delta, the error of f(x) - f(baseline): {_summary(found.delta.abs())} logits."
    if name == "deep_lift" and (others := _activations(subject, tuple(SUPPORTED_NON_LINEAR))):
        yield f"It has no rule for {others} and takes their gradient."
    if name in ("layer_grad_cam", "guided_grad_cam"):
        features = subject.features(first, classes)
        rows, columns = features.grid_size
        yield f"Read channel first at {features.point} ({features.layout.axes}, {rows} x {columns})."
    if name in ("feature_ablation", "kernel_shap", "lime", "shapley_value_sampling"):
        yield f"{len(subject.feature_mask(first).unique())} segments: {subject.segments}."
    flat = found.maps.flatten(1)
    if bool((flat.amax(1) == flat.amin(1)).any()):
        yield "Some maps are constant, and so without information."


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch and NumPy within the block, and restore their generators."""
    before = np.random.get_state()  # noqa: NPY002  (Captum draws from it)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002


def _activations(subject: Subject, known: tuple[type[nn.Module], ...]) -> str:
    """Name the model's activations of other than the known types, with their counts."""
    modules = [m for m in subject.classifier.modules() if type(m).__module__ in _ACTIVATIONS]
    modules = [m for m in modules if not isinstance(m, (nn.MultiheadAttention, *known))]
    counts = Counter(type(module).__name__ for module in modules)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _summary(values: Tensor) -> str:
    mean, largest = float(values.mean()), float(values.max())
    return f"{mean:.2g}" if len(values) == 1 else f"mean {mean:.2g}, at most {largest:.2g}"
