"""The outcome of wrapping: where a model's map is read, how its features are laid out, what the tail does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camhook.adapters.base import Adapter, Layout, adapters
from camhook.errors import LayoutError, UnsupportedModelError
from camhook.heads import Head, Refusal, Run, classify, classify_general
from camhook.skeletons import StandIn
from camhook.tails import Output, Tail
from camhook.tokens import TokenPath, blank, token_paths
from camhook.tracing import Event, FeaturePoint, trace

__all__ = ["Entry", "Features", "Plan", "has_no_head", "make_plan", "model_name"]

Entry = Literal["forward_head", "forward"]


@dataclass(frozen=True)
class Features:
    """One tensor with positions that the tail reads.

    Attributes
    ----------
    point
        Where it is captured.
    layout, shape, grid_size
        How it is laid out, its shape (batch of 2) and grid (h, w) for the input that was traced.
    """

    point: FeaturePoint
    layout: Layout
    shape: tuple[int, ...]
    grid_size: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Where a model's map is read and how.

    Attributes
    ----------
    features
        The tensors that are captured.
    tokens
        The path of class tokens, if their reads are what the map is made of.
    entry
        The method that runs the tail. Before the features it runs on shapes alone.
    head
        What the tail does; None for an encoder without a classifier.
    stubs
        Modules that are done before any of this is reached, and are not run again.
    passes
        2 if something comes round the features, so that the tail costs a second pass; else 1.
    """

    features: tuple[Features, ...]
    tokens: TokenPath | None
    entry: Entry
    stubs: tuple[str, ...]
    passes: int
    adapter: str
    head: Head | None
    input_size: tuple[int, int]
    num_classes: int

    @property
    def target_layer(self) -> str:
        """Where the map is read, in words."""
        places = [str(each.point) for each in self.features]
        if self.tokens is not None:
            places.insert(0, f"{len(self.tokens.reads)} attentions from {self.tokens.entry} on")
        return ", ".join(places)

    @property
    def grid_size(self) -> tuple[int, int]:
        """The finest grid (h, w) among all that is read, which is the map's."""
        sizes = [each.grid_size for each in self.features]
        sizes += [read.grid_size for read in self.tokens.reads] if self.tokens else []
        return max(h for h, _ in sizes), max(w for _, w in sizes)

    @property
    def is_pooled(self) -> bool:
        """Whether the score is a function of the mean of one tensor's positions."""
        return self.tokens is None and len(self.features) == 1 and self.head is not None and self.head.pooling == "mean"

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens belong to no position."""
        return self.tokens.prefix if self.tokens else max(each.layout.num_prefix_tokens for each in self.features)

    def tail(self, module: nn.Module, output: Output) -> Tail:
        """Return the tail of this model, or of a copy of it."""
        return Tail(module, self.entry, [each.point for each in self.features], self.tokens, self.stubs, output)


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
    return _Search(model, input_shape, adapter, target_layer, output).plan()


class _Search:
    """The search for a plan: pooled by the mean first, then class tokens, then whatever else reads positions."""

    def __init__(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        adapter: Adapter | None,
        target_layer: str | None,
        output: Output,
    ) -> None:
        self.model, self.output = model, output
        self.found = trace(model, input_shape)
        self.input_size = (input_shape[2], input_shape[3])
        self.standing_in = StandIn(self.found.skeleton, self.found.inputs)
        self.reasons: list[str] = []
        self.adapters = [adapter] if adapter else [each for each in adapters() if each.applies(model)]
        self.layers = [target_layer] if target_layer else None

    def plan(self) -> Plan:
        """Return the first plan that holds."""
        if has_no_head(self.model) or not _is_logits(self.output(self.found.output)):
            return self._encoder()
        for adapter in self.adapters:
            layers = self.layers or adapter.layers(self.model)
            if layers is not None and len(layers) > 1:
                options = [list(self._places(next(self.found.candidates(layer)), adapter)) for layer in layers]
                plans: Iterator[Plan | None] = (self._general(places, adapter) for places in product(*options))
            else:
                events = list(self.found.candidates(layers[0] if layers else None))
                plans = self._plans(events, adapter)
            for plan in plans:
                if plan is not None:
                    return plan
        tried = "\n".join(f"  - {reason}" for reason in dict.fromkeys(self.reasons))
        raise UnsupportedModelError(
            f"{model_name(self.model)}: no place was found where its score is a sum over positions of the picture. "
            f"Tried:\n{tried or '  - no tensor with positions was seen'}\n"
            "If you know the place, pass target_layer= or adapter=."
        )

    def _plans(self, events: Sequence[Event], adapter: Adapter) -> Iterator[Plan | None]:
        others: list[tuple[Event, Features, Refusal]] = []
        for event in events:
            for features in self._places(event, adapter):
                head = self._try(
                    partial(
                        classify,
                        layout=features.layout,
                        shape=features.shape,
                        grid_size=features.grid_size,
                        is_alone=lambda: self.layers is not None or not self.standing_in.came_round,
                    ),
                    [features],
                )
                if isinstance(head, Head):
                    yield self._made([features], None, head, adapter)
                else:
                    self.reasons.append(f"{features.point} {features.shape} as {features.layout.axes}: {head.reason}")
                    others.append((event, features, head))
        for _, features, seen in others:
            if seen.reads_prefix:
                yield self._token_plan([features] if seen.reads_positions else [], features.layout, adapter)
        if not any(seen.reads_positions for *_, seen in others):
            yield from (self._token_plan([], Layout("NLC", prefix), adapter) for prefix in (1, 2))
        for _, features, seen in others:
            if seen.reads_positions:
                yield self._general([features], adapter)

    def _encoder(self) -> Plan:
        """Return the plan of an encoder without a classifier: where a probe would read its features."""
        for event in self.found.candidates(self.layers[0] if self.layers else None):
            for adapter in self.adapters:
                for features in self._places(event, adapter):
                    return Plan((features,), None, "forward", (), 1, adapter.name, None, self.input_size, 0)
        raise UnsupportedModelError(
            f"{model_name(self.model)} has no head, and no tensor with positions was found. "
            "If you know the place, pass target_layer= or adapter=."
        )

    def _places(self, event: Event, adapter: Adapter) -> Iterator[Features]:
        shape = tuple(event.tensor.shape)
        layouts = list(adapter.layouts(self.model, shape))
        certain = [layout for layout in layouts if layout.patch_grid(shape, self.input_size)]
        for layout in certain or layouts:
            try:
                grid_size = layout.grid_size(shape, self.input_size)
            except LayoutError as error:
                self.reasons.append(f"{event.point} {shape} as {layout.axes}: {error}")
                continue
            if grid_size == (1, 1):
                self.reasons.append(f"{event.point} {shape} as {layout.axes}: only one position")
                continue
            yield Features(event.point, layout, shape, grid_size)

    def _try(self, classified: Callable[[Run], Head | Refusal], features: Sequence[Features]) -> Head | Refusal:
        """Classify the skeleton's tail, run on real numbers from these features on."""
        points = [each.point for each in features]
        stubs = self.found.done_before(points)
        tail = Tail(self.found.skeleton.module, self._entry(features), points, None, stubs, self.output)
        from_features = tail.of(self.found.inputs, self.found.outputs)

        def run(*given: Tensor) -> Tensor:
            with self.standing_in:
                return from_features(*(each.clone() for each in given))  # a tail may begin with an in-place step

        return classified(run)

    def _entry(self, features: Sequence[Features]) -> Entry:
        """Return ``"forward_head"`` where that is what takes the features."""
        given = [event.point for event in self.found.events if event.tensor is self.found.features]
        return "forward_head" if len(features) == 1 and features[0].point in given else "forward"

    def _token_plan(self, features: Sequence[Features], layout: Layout, adapter: Adapter) -> Plan | None:
        """Return a plan by what class tokens read, and by what the tail reads of the features besides."""
        within = adapter.reads(self.model) if adapter.reads else ("",)
        points = [each.point for each in features]
        for path in token_paths(self.found, layout, self.input_size, within):
            stubs = self.found.done_before([FeaturePoint(path.entry, "input"), *points])
            run = Tail(self.found.skeleton.module, "forward", points, path, stubs, self.output)
            recorded, reads = blank(self.found, path)
            given = [torch.empty(each.shape, dtype=torch.float64, device="meta") for each in features]
            try:
                logits = run.of(self.found.inputs, self.found.outputs, recorded)(*reads, *given)
            except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
                self.reasons.append(f"class tokens from {path.entry} on: {error}")
                continue
            if logits.shape != self.output(self.found.output).shape:
                continue
            pooling = "attention"
            if features:
                head = self._classify_general(features)
                pooling += f"+{head.pooling}" if isinstance(head, Head) else ""
            return self._made(features, path, Head(pooling, "deep", False, True, 0.0), adapter)
        return None

    def _general(self, features: Sequence[Features], adapter: Adapter) -> Plan | None:
        head = self._classify_general(features)
        if isinstance(head, Head):
            return self._made(features, None, head, adapter)
        self.reasons.append(f"{', '.join(str(each.point) for each in features)}: {head.reason}")
        return None

    def _classify_general(self, features: Sequence[Features]) -> Head | Refusal:
        layouts, shapes, grids = zip(*((each.layout, each.shape, each.grid_size) for each in features), strict=True)
        return self._try(lambda run: classify_general(run, layouts, shapes, grids), features)

    def _made(self, features: Sequence[Features], tokens: TokenPath | None, head: Head, adapter: Adapter) -> Plan:
        passes = 2 if tokens is None and self.standing_in.came_round else 1
        entry = "forward" if passes == 2 or tokens else self._entry(features)
        if passes == 2:
            head = replace(head, widens=False)
        points = [each.point for each in features] + ([FeaturePoint(tokens.entry, "input")] if tokens else [])
        stubs = self.found.done_before(points) if entry == "forward" and passes == 1 else ()
        num_classes = self.output(self.found.output).shape[1]
        return Plan(tuple(features), tokens, entry, stubs, passes, adapter.name, head, self.input_size, num_classes)


def _is_logits(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim == 2


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
