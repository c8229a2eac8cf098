"""The outcome of wrapping: where a model's map is read, how its features are laid out, what the tail does with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from camhook.adapters.base import Adapter, Layout, adapters
from camhook.errors import LayoutError, UnsupportedModelError
from camhook.heads import Head, classify
from camhook.hooks import replacing
from camhook.skeletons import StandIn
from camhook.tracing import Event, FeaturePoint, Trace, trace

__all__ = ["Output", "Plan", "make_plan"]

Output = Callable[[Any], Tensor]
"""Picks the logits (B, K) out of what a model returns."""


@dataclass(frozen=True)
class Plan:
    """Where a model's map is read and how.

    Attributes
    ----------
    point
        The tensor the map is read from.
    given
        What the tail's entry is given, where that is another tensor that has to be captured too.
    entry
        The method that runs the tail: ``"forward_head"`` costs next to nothing, ``"forward"`` is a second whole pass.
    """

    point: FeaturePoint
    given: FeaturePoint | None
    entry: str
    adapter: str
    layout: Layout
    head: Head
    feature_shape: tuple[int, ...]
    grid_size: tuple[int, int]
    input_size: tuple[int, int]
    num_classes: int

    @property
    def points(self) -> tuple[FeaturePoint, ...]:
        """What has to be captured in the forward pass."""
        return (self.point,) if self.given is None else (self.point, self.given)

    @property
    def forward_passes(self) -> int:
        """How many passes through the backbone one call costs."""
        return 2 if self.entry == "forward" else 1

    def tail(self, model: nn.Module, given: Tensor | None, output: Output) -> Callable[[Tensor], Tensor]:
        """Return the model's tail as a function from features to logits."""
        return _tail(model, self.entry, self.point, given, output)


def _tail(
    model: nn.Module, entry: str, point: FeaturePoint, given: Tensor | None, output: Output
) -> Callable[[Tensor], Tensor]:
    run = getattr(model, entry)

    def from_features(features: Tensor) -> Tensor:
        if given is None:
            return output(run(features))
        with replacing(model, point, features):
            return output(run(given))

    return from_features


def make_plan(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    adapter: Adapter | None = None,
    target_layer: str | None = None,
    output: Output,
) -> Plan:
    """Find out where and how to read a model's map. The live model is not run and not touched.

    Parameters
    ----------
    input_shape
        (B, C, H, W) of the input to trace with; B is best 2.
    adapter, target_layer
        Take this one instead of trying all.

    Raises
    ------
    UnsupportedModelError
        If nothing is found that a map can be made of, with the reason for each place that was tried.
    LayoutError
        If `target_layer` is not a module that gives a tensor.
    """
    name = model_name(model)
    found = trace(model, input_shape)
    if has_no_head(model):
        raise UnsupportedModelError(
            f"{name} has no head (num_classes=0 or an Identity in the classifier's place), so there is no class score "
            "to explain. Give it a classifier (model.reset_classifier(...) and trained weights)."
        )
    reasons: list[str] = []
    standing_in = StandIn(found.skeleton)
    layer = target_layer or (adapter.target_layer if adapter else None)
    for event in found.candidates(layer):
        for option in [adapter] if adapter else adapters():
            if option.applies(model):
                plan = _try(model, found, event, option, standing_in, input_shape, output, reasons)
                if plan is not None:
                    return plan
    tried = "\n".join(f"  - {reason}" for reason in dict.fromkeys(reasons)) or "  - no tensor with positions was seen"
    raise UnsupportedModelError(
        f"{name}: no place was found where its score is a sum over positions of the picture. Expected a tail that "
        f"reads spatial features through their mean; tried:\n{tried}\nIf you know the place, pass "
        "target_layer= or adapter=."
    )


def _try(
    model: nn.Module,
    found: Trace,
    event: Event,
    adapter: Adapter,
    standing_in: StandIn,
    input_shape: tuple[int, ...],
    output: Output,
    reasons: list[str],
) -> Plan | None:
    shape = tuple(event.tensor.shape)
    input_size = (input_shape[2], input_shape[3])
    entry, given, given_point = _entry(found, event)
    run = _tail(found.skeleton.module, entry, event.point, given, output)

    def real_run(features: Tensor) -> Tensor:
        with standing_in:
            return run(features)

    for layout in adapter.layouts(model, shape):
        where = f"{event.point} {shape} as {layout.axes}"
        try:
            grid_size = layout.grid_size(shape, input_size)
        except LayoutError as error:
            reasons.append(f"{where}: {error}")
            continue
        if grid_size == (1, 1):
            reasons.append(f"{where}: only one position")
            continue
        head = classify(real_run, layout, shape, grid_size)
        if isinstance(head, str):
            reasons.append(f"{where}: {head}")
            continue
        num_classes = output(found.output).shape[1]
        return Plan(
            event.point, given_point, entry, adapter.name, layout, head, shape, grid_size, input_size, num_classes
        )
    return None


def _entry(found: Trace, event: Event) -> tuple[str, Tensor | None, FeaturePoint | None]:
    """Return the method that runs the tail from this point, what it is given there (None: the features themselves)."""
    if not found.has_forward_head or (not event.in_head and event.tensor is not found.features):
        return "forward", found.inputs, None
    if event.tensor is found.features:
        return "forward_head", None, None
    source = next(found.candidates())
    return "forward_head", source.tensor, source.point


def has_no_head(model: nn.Module) -> bool:
    """Tell whether a timm model was made without a classifier."""
    if getattr(model, "num_classes", None) == 0:
        return True
    get_classifier = getattr(model, "get_classifier", None)
    classifier = get_classifier() if callable(get_classifier) else None
    parts: list[Any] = list(classifier) if isinstance(classifier, tuple | list | nn.ModuleList) else [classifier]
    return bool(parts) and all(isinstance(part, nn.Identity) for part in parts)


def model_name(model: nn.Module) -> str:
    """Return timm's name of the architecture, or the class name."""
    config = getattr(model, "pretrained_cfg", None)
    architecture = config.get("architecture") if isinstance(config, dict) else None
    return architecture or type(model).__name__
