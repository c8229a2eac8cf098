"""Trace of one forward pass on the meta device: every module's inputs and outputs. The live model is not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camhook.adapters.timm import has_forward_head, is_encoder
from camhook.engine.attention import AttentionCall, AttentionCalls
from camhook.engine.copies import MetaCopy
from camhook.engine.points import FeaturePoint, shapes_of
from camhook.errors import LayoutError, UnsupportedModelError

__all__ = ["Event", "Trace", "TracedAttention", "trace"]


_CANDIDATES = 6  # how far back from the logits a pooled tensor is looked for


@dataclass(frozen=True)
class Event:
    """One tensor at the input or output of a module, and its version counter at that moment."""

    point: FeaturePoint
    tensor: Tensor
    version: int
    in_head: bool

    @property
    def is_spatial(self) -> bool:
        """Whether the tensor still has more than one position: (B, C, h, w), (B, h, w, C) or (B, N, C)."""
        shape = self.tensor.shape
        return (len(shape) == 4 and shape[2] * max(shape[1], shape[3]) > 1) or (
            len(shape) == 3 and shape[1] > 1 and shape[2] > 1
        )


@dataclass(frozen=True)
class TracedAttention:
    """One attention call, as shapes.

    Attributes
    ----------
    index
        Its number among the attention calls of the forward pass.
    queries
        How many queries there are.
    values
        Shape of the values, (B, heads, keys, d).
    modules
        The modules that were running, outermost first, each with the shapes of the sequences (B, length, C) that it was
        given.
    is_module
        The innermost of them is an `nn.MultiheadAttention`.
    """

    index: int
    queries: int
    values: tuple[int, ...]
    modules: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]
    is_module: bool


@dataclass(frozen=True)
class Trace:
    """One forward pass on the meta device.

    Attributes
    ----------
    meta_copy
        The copy that was run.
    events
        The tensors at inputs and outputs of modules, in order.
    attentions
        The attention calls, in order.
    outputs
        What each module returned, as shapes.
    finished
        The modules' names, one per call, in the order in which the calls ended.
    begun
        How many calls had ended when each module was first called.
    features
        What ``forward_features`` returned, or None for a model that has no such method.
    """

    meta_copy: MetaCopy
    events: tuple[Event, ...]
    attentions: tuple[TracedAttention, ...]
    outputs: dict[str, Any]
    finished: tuple[str, ...]
    begun: dict[str, int]
    features: Any
    has_forward_head: bool
    inputs: Tensor
    output: Any

    def done_before(self, points: Sequence[FeaturePoint]) -> tuple[str, ...]:
        """Return the outermost modules whose last call has ended when the first of these points is reached."""

        def reached(point: FeaturePoint) -> int:
            return self.begun[point.module] if point.side == "input" else self.finished.index(point.module) + 1

        count = min(map(reached, points))
        later = set(self.finished[count:])
        done = {name for name in self.finished[:count] if name and name not in later}
        return tuple(name for name in done if not any(name.startswith(f"{other}.") for other in done))

    def candidates(self, target_layer: str | None = None) -> Iterator[Event]:
        """Yield the tensors that a map could be read from, best first.

        First what ``forward_head`` is given, then tensors within the head, last one first. For a model without that
        split, every spatial tensor from the last one back.
        """
        if target_layer is not None:
            yield from self._of_layer(target_layer)
            return
        tensors = [e.tensor for e in reversed(self.events) if e.is_spatial and (e.in_head or not self.has_forward_head)]
        if isinstance(self.features, Tensor):
            tensors.insert(0, self.features)
        last_first = list({id(tensor): tensor for tensor in tensors}.values())
        seen = {id(event.tensor) for event in self.events}
        yield from (self._event_of(tensor) for tensor in last_first[:_CANDIDATES] if id(tensor) in seen)

    def _event_of(self, tensor: Tensor) -> Event:
        """Return where a tensor is the output of a module (the last to finish), else the input of one (the first)."""
        events = [e for e in self.events if e.tensor is tensor]
        outputs = [e for e in events if e.point.side == "output" and not (e.in_head and tensor is self.features)]
        return outputs[-1] if outputs else events[0]

    def _of_layer(self, target_layer: str) -> Iterator[Event]:
        """Yield the last tensor at a layer of that name."""
        name = target_layer.removeprefix("input of ")
        side = "output" if name == target_layer else "input"
        found = [e for e in self.events if e.point.module == name and e.point.side == side]
        if not found:
            raise LayoutError(
                f"target_layer={target_layer!r} gave no tensor in a forward pass: it was not called as a module, or it "
                "returns something else. Choose a module that is called and returns one tensor."
            )
        yield found[-1]


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Run a meta copy of the model once and note the inputs and outputs of each module.

    Raises
    ------
    UnsupportedModelError
        If the forward pass cannot be run on the meta device.
    """
    meta_copy = MetaCopy(model)
    module = meta_copy.module
    events: list[Event] = []
    attentions: list[TracedAttention] = []
    running: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
    outputs: dict[str, Any] = {}
    calls: Counter[str] = Counter()
    finished: list[str] = []
    begun: dict[str, int] = {}
    in_head = False

    def note(name: str, side: Literal["input", "output"], call: int, value: Any) -> None:
        if isinstance(value, tuple | list) and len(value) == 1:
            value = value[0]
        if isinstance(value, Tensor):
            events.append(Event(FeaturePoint(name, side, call), value, value._version, in_head))

    handles = []
    for name, each in module.named_modules():

        def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            note(name, "input", calls[name], args[:1])
            begun.setdefault(name, len(finished))
            calls[name] += 1
            given = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            running.append((name, tuple(shape for shape in given if len(shape) == 3)))

        def after(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            note(name, "output", calls[name] - 1, output)
            running.pop()
            outputs[name] = shapes_of(output)
            finished.append(name)

        handles.append(each.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(each.register_forward_hook(after))

    def attention(call: AttentionCall) -> None:
        shape = tuple(call.values.shape)
        attentions.append(TracedAttention(call.index, call.queries, shape, tuple(running), call.is_module))

    runs: Any = module
    split = has_forward_head(module)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), AttentionCalls(attention):
            inputs = torch.empty(input_shape, dtype=torch.float64, device="meta")
            features = runs.forward_features(inputs) if split or is_encoder(module) else None
            in_head = split
            output = [features] if is_encoder(module) else runs.forward_head(features) if split else runs(inputs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} could not be traced with an input of shape {input_shape}: {error}. "
            "Expected a model that takes one (B, C, H, W) tensor; if it takes another size, pass input_size=(H, W)."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    marked = tuple(replace(e, point=replace(e.point, overwritten=e.tensor._version != e.version)) for e in events)
    return Trace(
        meta_copy=meta_copy,
        events=marked,
        attentions=tuple(attentions),
        outputs=outputs,
        finished=tuple(finished),
        begun=begun,
        features=features,
        has_forward_head=split,
        inputs=inputs,
        output=output,
    )
