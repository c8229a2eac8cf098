"""Search for a plan: pooling by the mean first, then class tokens, then any other way of reading positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camhook.adapters.base import Adapter, Layout, adapters, shares_stride
from camhook.adapters.libraries import has_no_head, model_name
from camhook.decompose.linear_tail import Run
from camhook.engine.class_tokens import TokenPath
from camhook.engine.copies import RandomParameters
from camhook.engine.head import Head, Refusal, classify, classify_general
from camhook.engine.outputs import described
from camhook.engine.plan import Entry, Features, Plan
from camhook.engine.points import FeaturePoint
from camhook.engine.tail import Output, Tail
from camhook.engine.token_search import meta_capture, token_paths
from camhook.engine.tracing import Event, trace
from camhook.errors import LayoutError, UnsupportedModelError

__all__ = ["make_plan"]


def make_plan(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    adapter: Adapter | None = None,
    layers: Sequence[str] = (),
    output: Output,
) -> Plan:
    """Find out where and how to read a model's map. The live model is not run and not touched.

    Parameters
    ----------
    input_shape
        (B, C, H, W) of the input to trace with; B is best 2.
    adapter, layers
        Take this adapter, and the outputs of these modules (``"input of NAME"``: the inputs), instead of trying all.

    Raises
    ------
    UnsupportedModelError
        If no map can be read, with the reason for each place that was tried.
    LayoutError
        If a layer is not a module that returns a tensor.
    """
    return _Search(model, input_shape, adapter, layers, output).plan()


class _Search:
    """The state of a search: the trace, and the reasons why places were refused."""

    def __init__(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        adapter: Adapter | None,
        layers: Sequence[str],
        output: Output,
    ) -> None:
        self.model, self.output, self.layers = model, output, list(layers)
        self.trace = trace(model, input_shape)
        self.input_size = (input_shape[2], input_shape[3])
        self.random = RandomParameters(self.trace.meta_copy, self.trace.inputs)
        self.reasons: list[str] = []
        self.adapters = [adapter] if adapter else [each for each in adapters() if each.applies(model)]

    def plan(self) -> Plan:
        """Return the first plan that holds."""
        if has_no_head(self.model):
            return self._encoder()
        if not _is_logits(returned := self.output(self.trace.output)):
            if any(map(_is_logits, tree_leaves(returned))):
                raise UnsupportedModelError(
                    f"{model_name(self.model)} returned {described(returned)}, where logits (B, K) were expected. Pass "
                    "output= to wrap: an index, a key, an attribute name or a function that picks them."
                )
            return self._encoder()
        for adapter in self.adapters:
            layers = self.layers or adapter.layers(self.model) or []
            if len(layers) > 1:
                options = [list(self._places(next(self.trace.candidates(layer)), adapter)) for layer in layers]
                plans: Iterator[Plan | None] = (self._general(places, adapter) for places in product(*options))
            else:
                plans = self._plans(list(self.trace.candidates(*layers)), adapter)
            for plan in plans:
                if plan is not None:
                    return plan
        raise self._error()

    def _error(self) -> UnsupportedModelError:
        tried = "\n".join(f"  - {reason}" for reason in dict.fromkeys(self.reasons))
        advice = (
            "Name a layer whose output still has positions and reaches the score by way of them (for class tokens: one "
            "before their last attention), or leave target_layer out."
            if self.layers
            else "If you know the place, pass target_layer= or adapter=."
        )
        return UnsupportedModelError(
            f"{model_name(self.model)}: no place was found where its score is a sum over positions of the picture. "
            f"Tried:\n{tried or '  - no tensor with positions was seen'}\n{advice}"
        )

    def _plans(self, events: Sequence[Event], adapter: Adapter) -> Iterator[Plan | None]:
        others: list[tuple[Event, Features, Refusal]] = []
        given = self.trace.features if self.trace.has_forward_head else None
        for event in events:
            for features in self._places(event, adapter):
                check = partial(
                    classify,
                    layout=features.layout,
                    shape=features.shape,
                    grid_size=features.grid_size,
                    allow_bypass=lambda: bool(self.layers) or not self.random.has_bypass,
                )
                head = self._classified(check, [features])
                if isinstance(head, Head):
                    if head.reads_prefix:  # DINOv2 joins the class token and the mean: both read the picture
                        yield self._token_plan([features], features.layout, adapter)
                    yield self._made([features], None, head, adapter)
                else:
                    self.reasons.append(f"{features.point} {features.shape} as {features.layout.axes}: {head.reason}")
                    others.append((event, features, head))
            is_map = event.tensor.ndim == 4 and event.tensor is not given
            if is_map and any(refusal.reads_positions for at, _, refusal in others if at is event):
                break  # what precedes a map that is not pooled by its mean is not so either
        if not self.layers:
            for _, features, refusal in others:
                if refusal.reads_prefix:
                    read = [features] if refusal.reads_positions else []
                    yield self._token_plan(read, features.layout, adapter)
            if not any(refusal.reads_positions for *_, refusal in others):
                yield from (self._token_plan([], Layout("NLC", prefix), adapter) for prefix in (1, 2))
        later = []
        for _, features, refusal in others:
            if refusal.reads_positions:
                plan = self._general([features], adapter)
                if plan is not None and plan.has_bypass:  # better a place that nothing bypasses, if there is one
                    later.append(plan)
                else:
                    yield plan
        yield from later

    def _encoder(self) -> Plan:
        """Return the plan of an encoder without a classifier: where a probe would read its features."""
        for adapter in self.adapters:
            features = self._last_features(adapter)
            if features is not None:
                return Plan(
                    features=(features,),
                    tokens=None,
                    entry="forward",
                    skipped_modules=(),
                    has_bypass=False,
                    adapter=adapter.name,
                    head=None,
                    input_size=self.input_size,
                    num_classes=0,
                    encoder=features,
                    reading=self._reading(features, adapter),
                )
        raise UnsupportedModelError(
            f"{model_name(self.model)} has no head, and no tensor with positions was found. "
            "If you know the place, pass target_layer= or adapter=."
        )

    def _last_features(self, adapter: Adapter) -> Features | None:
        """Return the last tensor whose positions are known, of those that a map may be read from, else of all."""
        likely = self.trace.candidates(*self.layers[:1])
        every = (event for event in reversed(self.trace.events) if event.is_spatial)
        return next((place for event in chain(likely, every) for place in self._places(event, adapter)), None)

    def _reading(self, features: Features, adapter: Adapter) -> TokenPath | None:
        if features.layout.num_prefix_tokens == 0:
            return None
        within = adapter.reads(self.model) if adapter.reads else ("",)
        return next(token_paths(self.trace, features.layout, self.input_size, within), None)

    def _places(self, event: Event, adapter: Adapter) -> Iterator[Features]:
        """Yield an event's tensor in the layouts that it may have."""
        shape = tuple(event.tensor.shape)
        layouts = list(adapter.layouts(self.model, shape))
        certain = [layout for layout in layouts if layout.patch_grid(shape, self.input_size)]
        if len(shape) == 4:  # (h, w) are the axes that one stride explains; both, of a map as deep as it is wide
            grids = {layout: layout.grid_size(shape, self.input_size) for layout in layouts if len(layout.axes) == 4}
            certain = [layout for layout, grid in grids.items() if shares_stride(grid, self.input_size)]
        if not layouts:
            self.reasons.append(f"{event.point} {shape}: it has no positions")
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

    def _classified(self, check: Callable[[Run], Head | Refusal], features: Sequence[Features]) -> Head | Refusal:
        """Classify the meta copy's tail, run on real numbers from these features on."""
        points = [each.point for each in features]
        tail = Tail(
            self.trace.meta_copy.module,
            entry=self._entry(features),
            points=points,
            tokens=None,
            skipped_modules=self.trace.done_before(points),
            output=self.output,
        )
        from_features = tail.run_on(self.trace.inputs, self.trace.outputs)

        def run(*given: Tensor) -> Tensor:
            copies = [each.clone() for each in given]  # a tail may begin in place
            with self.random.given(*copies):
                return from_features(*copies)

        return check(run)

    def _entry(self, features: Sequence[Features]) -> Entry:
        """Return ``"forward_head"`` where that is what takes the features."""
        given = [event.point for event in self.trace.events if event.tensor is self.trace.features]
        return "forward_head" if len(features) == 1 and features[0].point in given else "forward"

    def _token_plan(self, features: Sequence[Features], layout: Layout, adapter: Adapter) -> Plan | None:
        """Return a plan by what class tokens read, and by what the tail reads of the features besides."""
        within = adapter.reads(self.model) if adapter.reads else ("",)
        points = [each.point for each in features]
        for path in token_paths(self.trace, layout, self.input_size, within, patches_go_on=bool(features)):
            tail = Tail(
                self.trace.meta_copy.module,
                entry="forward",
                points=points,
                tokens=path,
                skipped_modules=self.trace.done_before([FeaturePoint(path.entry, "input"), *points]),
                output=self.output,
            )
            captured, reads = meta_capture(self.trace, path)
            given = [torch.empty(each.shape, dtype=torch.float64, device="meta") for each in features]
            try:
                logits = tail.run_on(self.trace.inputs, self.trace.outputs, captured)(*reads, *given)
            except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
                self.reasons.append(f"class tokens from {path.entry} on: {error}")
                continue
            if logits.shape != self.output(self.trace.output).shape:
                continue
            pooling = "attention"
            if features:
                head = self._classify_general(features)
                pooling += f"+{head.pooling}" if isinstance(head, Head) else ""
            return self._made(features, path, Head(pooling, "deep", accepts_1x1=False, error=0.0), adapter)
        return None

    def _general(self, features: Sequence[Features], adapter: Adapter) -> Plan | None:
        head = self._classify_general(features)
        if isinstance(head, Head):
            return self._made(features, None, head, adapter)
        self.reasons.append(f"{', '.join(str(each.point) for each in features)}: {head.reason}")
        return None

    def _classify_general(self, features: Sequence[Features]) -> Head | Refusal:
        check = partial(
            classify_general,
            names=[str(each.point) for each in features],
            layouts=[each.layout for each in features],
            shapes=[each.shape for each in features],
            grid_sizes=[each.grid_size for each in features],
        )
        return self._classified(check, features)

    def _made(self, features: Sequence[Features], tokens: TokenPath | None, head: Head, adapter: Adapter) -> Plan:
        has_bypass = tokens is None and self.random.has_bypass
        entry = "forward" if has_bypass or tokens else self._entry(features)
        points = [each.point for each in features] + ([FeaturePoint(tokens.entry, "input")] if tokens else [])
        encoder = features[0] if features else self._last_features(adapter)
        return Plan(
            features=tuple(features),
            tokens=tokens,
            entry=entry,
            skipped_modules=self.trace.done_before(points) if entry == "forward" and not has_bypass else (),
            has_bypass=has_bypass,
            adapter=adapter.name,
            head=head,
            input_size=self.input_size,
            num_classes=self.output(self.trace.output).shape[1],
            encoder=encoder,
            reading=tokens or (self._reading(encoder, adapter) if encoder else None),
        )


def _is_logits(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim == 2
