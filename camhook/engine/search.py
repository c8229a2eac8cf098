"""The search for a plan: pooled by the mean first, then class tokens, then whatever else reads positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camhook.adapters.base import Adapter, Layout, adapters, shares_stride
from camhook.adapters.timm import has_no_head, model_name
from camhook.engine.class_tokens import TokenPath, token_paths
from camhook.engine.copies import StandIn
from camhook.engine.head import Head, Refusal, Run, classify, classify_general
from camhook.engine.outputs import described
from camhook.engine.plan import Entry, Features, Plan
from camhook.engine.points import FeaturePoint
from camhook.engine.tail import Output, Tail
from camhook.engine.token_capture import blank
from camhook.engine.tracing import Event, trace
from camhook.errors import LayoutError, UnsupportedModelError

__all__ = ["make_plan"]


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
        if has_no_head(self.model):
            return self._encoder()
        if not _is_logits(returned := self.output(self.found.output)):
            if any(map(_is_logits, tree_leaves(returned))):
                raise UnsupportedModelError(
                    f"{model_name(self.model)} returned {described(returned)}, where logits (B, K) were expected. Pass "
                    "output= to wrap: an index, a key, an attribute name or a function that picks them."
                )
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
        given = self.found.features if self.found.has_forward_head else None  # what lies behind that, comes after it
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
                    if head.reads_prefix:  # DINOv2 joins the class token and the mean: both read the picture
                        yield self._token_plan([features], features.layout, adapter)
                    yield self._made([features], None, head, adapter)
                else:
                    self.reasons.append(f"{features.point} {features.shape} as {features.layout.axes}: {head.reason}")
                    others.append((event, features, head))
            is_map = event.tensor.ndim == 4 and event.tensor is not given
            if is_map and any(seen.reads_positions for at, _, seen in others if at is event):
                break  # what lies before a map that is not pooled by its mean is not so either
        for _, features, seen in others:
            if seen.reads_prefix:
                yield self._token_plan([features] if seen.reads_positions else [], features.layout, adapter)
        if not any(seen.reads_positions for *_, seen in others):
            yield from (self._token_plan([], Layout("NLC", prefix), adapter) for prefix in (1, 2))
        later = []
        for _, features, seen in others:
            if seen.reads_positions:
                plan = self._general([features], adapter)
                if plan is not None and plan.passes == 2:  # better a place that nothing comes round, if there is one
                    later.append(plan)
                else:
                    yield plan
        yield from later

    def _encoder(self) -> Plan:
        """Return the plan of an encoder without a classifier: where a probe would read its features."""
        for adapter in self.adapters:
            features = self._last_features(adapter)
            if features is not None:
                reading = self._reading(features, adapter)
                size = self.input_size
                return Plan((features,), None, "forward", (), 1, adapter.name, None, size, 0, features, reading)
        raise UnsupportedModelError(
            f"{model_name(self.model)} has no head, and no tensor with positions was found. "
            "If you know the place, pass target_layer= or adapter=."
        )

    def _last_features(self, adapter: Adapter) -> Features | None:
        """Return the last tensor whose positions are known, of those that a map may be read from, else of all."""
        likely = self.found.candidates(self.layers[0] if self.layers else None)
        every = (event for event in reversed(self.found.events) if event.is_spatial)
        return next((place for event in chain(likely, every) for place in self._places(event, adapter)), None)

    def _reading(self, features: Features, adapter: Adapter) -> TokenPath | None:
        if features.layout.num_prefix_tokens == 0:
            return None
        within = adapter.reads(self.model) if adapter.reads else ("",)
        return next(token_paths(self.found, features.layout, self.input_size, within), None)

    def _places(self, event: Event, adapter: Adapter) -> Iterator[Features]:
        shape = tuple(event.tensor.shape)
        layouts = list(adapter.layouts(self.model, shape))
        certain = [layout for layout in layouts if layout.patch_grid(shape, self.input_size)]
        if len(shape) == 4:  # (h, w) are the axes that one stride explains; both, of a map as deep as it is wide
            grids = {layout: layout.grid_size(shape, self.input_size) for layout in layouts if len(layout.axes) == 4}
            certain = [layout for layout, grid in grids.items() if shares_stride(grid, self.input_size)]
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
            clones = [each.clone() for each in given]  # a tail may begin with an in-place step
            with self.standing_in.given(*clones):
                return from_features(*clones)

        return classified(run)

    def _entry(self, features: Sequence[Features]) -> Entry:
        """Return ``"forward_head"`` where that is what takes the features."""
        given = [event.point for event in self.found.events if event.tensor is self.found.features]
        return "forward_head" if len(features) == 1 and features[0].point in given else "forward"

    def _token_plan(self, features: Sequence[Features], layout: Layout, adapter: Adapter) -> Plan | None:
        """Return a plan by what class tokens read, and by what the tail reads of the features besides."""
        within = adapter.reads(self.model) if adapter.reads else ("",)
        points = [each.point for each in features]
        for path in token_paths(self.found, layout, self.input_size, within, patches_go_on=bool(features)):
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
            return self._made(features, path, Head(pooling, "deep", False, bool(path.cuts), 0.0), adapter)
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
        encoder = features[0] if features else self._last_features(adapter)
        reading = tokens or (self._reading(encoder, adapter) if encoder else None)
        where, what = (
            (tuple(features), tokens, entry, stubs, passes),
            (adapter.name, head, self.input_size, num_classes),
        )
        return Plan(*where, *what, encoder, reading)


def _is_logits(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim == 2
