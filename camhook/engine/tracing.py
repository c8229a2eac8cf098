"""One forward on the meta device: which tensor does the tail read? The live model is neither run nor touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camhook.adapters.timm import is_encoder
from camhook.engine.attention import Attentions, Read
from camhook.engine.copies import Skeleton
from camhook.engine.points import FeaturePoint, shapes_of
from camhook.errors import LayoutError, UnsupportedModelError

__all__ = ["Attention", "Event", "Trace", "trace"]


_CANDIDATES = 6  # how far back from the logits a pooled tensor is looked for


@dataclass(frozen=True)
class Event:
    """One tensor that went into or came out of a module, and its version count at that moment."""

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
class Attention:
    """One attention call.

    Attributes
    ----------
    index
        Which attention call of the forward pass it is.
    queries
        How many rows read.
    values
        Shape of what they read, (B, heads, keys, d).
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
    """What one forward on the meta device told."""

    skeleton: Skeleton
    events: tuple[Event, ...]
    attentions: tuple[Attention, ...]
    outputs: dict[str, Any]
    """What each module gave, as shapes."""
    finished: tuple[str, ...]
    """The modules' names, one for each call, in the order in which they were done."""
    begun: dict[str, int]
    """How many calls were done when each module was first called."""
    features: Any
    """What ``forward_features`` returned, or None for a model that has no such method."""
    has_forward_head: bool
    inputs: Tensor
    output: Any

    def done_before(self, points: Sequence[FeaturePoint]) -> tuple[str, ...]:
        """Return the outermost modules that have done all their work when the first of these points is reached."""

        def reached(point: FeaturePoint) -> int:
            return self.begun[point.module] if point.side == "input" else self.finished.index(point.module) + 1

        count = min(map(reached, points))
        later = set(self.finished[count:])
        done = {name for name in self.finished[:count] if name and name not in later}
        return tuple(name for name in done if not any(name.startswith(f"{other}.") for other in done))

    def candidates(self, target_layer: str | None = None) -> Iterator[Event]:
        """Yield the points a map could be read from, best first.

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
        noted = {id(event.tensor) for event in self.events}
        yield from (self._where(tensor) for tensor in last_first[:_CANDIDATES] if id(tensor) in noted)

    def _where(self, tensor: Tensor) -> Event:
        """Return the module that gives this tensor (the last to finish), or else the first that is given it."""
        events = [e for e in self.events if e.tensor is tensor]
        made = [e for e in events if e.point.side == "output" and not (e.in_head and tensor is self.features)]
        return made[-1] if made else events[0]

    def _of_layer(self, target_layer: str) -> Iterator[Event]:
        name = target_layer.removeprefix("input of ")
        side = "output" if name == target_layer else "input"
        if name not in dict(self.skeleton.module.named_modules()):
            raise LayoutError(
                f"target_layer={target_layer!r}: the model has no module of that name. "
                "Expected one of the names that model.named_modules() lists."
            )
        found = [e for e in self.events if e.point.module == name and e.point.side == side]
        if not found:
            raise LayoutError(
                f"target_layer={target_layer!r} gave no tensor in a forward pass: it was not called as a module, or it "
                "returns something else. Choose a module that is called and returns one tensor."
            )
        yield found[-1]


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Run a skeleton of the model once on a meta tensor and note what each module was given and gave.

    Raises
    ------
    UnsupportedModelError
        If the forward pass cannot be run on the meta device.
    """
    skeleton = Skeleton(model)
    bones = skeleton.module
    events: list[Event] = []
    attentions: list[Attention] = []
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
    for name, module in bones.named_modules():

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

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))

    def attention(read: Read) -> None:
        shape = tuple(read.values.shape)
        attentions.append(Attention(read.index, read.queries, shape, tuple(running), read.is_module))

    runs: Any = bones
    split = callable(getattr(bones, "forward_features", None)) and callable(getattr(bones, "forward_head", None))
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), Attentions(attention):
            inputs = torch.empty(input_shape, dtype=torch.float64, device="meta")
            features = runs.forward_features(inputs) if split or is_encoder(bones) else None
            in_head = split
            output = [features] if is_encoder(bones) else runs.forward_head(features) if split else runs(inputs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} could not be traced with an input of shape {input_shape}: {error}. "
            "Expected a model that takes one (B, C, H, W) tensor; if it takes another size, pass input_size=(H, W)."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    marked = tuple(replace(e, point=replace(e.point, overwritten=e.tensor._version != e.version)) for e in events)
    return Trace(skeleton, marked, tuple(attentions), outputs, tuple(finished), begun, features, split, inputs, output)
