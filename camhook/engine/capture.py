"""One forward pass of the live model, watched: what its plan asks for is kept, and accounted for afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camhook.decompose.decomposition import Accounting
from camhook.decompose.maps import RELATIVE_TOLERANCE
from camhook.decompose.tail_inputs import FeatureSource, MeanSource, ReadSource, Source, WeightedSource
from camhook.engine.head import Embedding
from camhook.engine.hooks import capturing, hooked
from camhook.engine.plan import Plan
from camhook.engine.points import FeaturePoint, shapes_of
from camhook.engine.tail import Output
from camhook.engine.token_capture import Recording, recording

__all__ = ["Observation", "observing"]


@dataclass
class Observation:
    """What one forward pass told: features, shapes of what came before them, what class tokens read."""

    features: dict[FeaturePoint, Tensor]
    shapes: dict[str, Any]
    recorded: Recording | None

    def account(self, plan: Plan, module: nn.Module, inputs: Tensor, output: Output) -> Accounting:
        """Account for the logits of these inputs by positions, with the tail of this module, the model's twin."""
        assert plan.head is not None
        captured = [_widened(self.features[each.point]) for each in plan.features]
        size = (inputs.shape[2], inputs.shape[3])
        grids = [each.layout.grid_size(tuple(f.shape), size) for each, f in zip(plan.features, captured, strict=True)]
        if self.recorded is not None:
            assert plan.tokens is not None
            self.recorded.complete(module, plan.tokens)
        kept = [*self.features.values(), *(self.recorded.values if self.recorded else ())]
        dtype = max((each.dtype for each in kept), key=RELATIVE_TOLERANCE.__getitem__)
        given = inputs if plan.passes == 2 else inputs.to("meta")
        run = plan.tail(module, output).of(given, self.shapes, self.recorded)
        sources: list[Source] = self._reads(plan)
        if plan.is_pooled:
            (layout,), (grid,) = [each.layout for each in plan.features], grids
            positions, prefix = layout.split(captured[0], grid)
            embed = Embedding(layout, (1, 1) if plan.head.collapses else grid, prefix)
            sources.append(MeanSource(positions))
            return Accounting(lambda vectors: run(embed(vectors)), sources, widens=plan.head.widens, dtype=dtype)
        sources += [
            FeatureSource(f, each.layout, grid) for each, f, grid in zip(plan.features, captured, grids, strict=True)
        ]
        return Accounting(run, sources, widens=plan.head.widens, dtype=dtype)

    def pooled(self, plan: Plan, module: nn.Module, inputs: Tensor) -> MeanSource | WeightedSource:
        """Return what a probe pools: by the mean or, if the plan follows class tokens, by their last attention."""
        (place,) = plan.features
        features = _widened(self.features[place.point])
        grid = place.layout.grid_size(tuple(features.shape), (inputs.shape[2], inputs.shape[3]))
        positions = place.layout.split(features, grid)[0]
        if self.recorded is None or plan.tokens is None:
            return MeanSource(positions)
        self.recorded.complete(module, plan.tokens)
        last = max(i for i, read in enumerate(plan.tokens.reads) if read.grid_size == grid)
        weights = _widened(self.recorded.weights[last])[..., 0, plan.tokens.prefix :].mean(1)  # the class token's own
        return WeightedSource(positions, weights / weights.sum(1, keepdim=True))

    def _reads(self, plan: Plan) -> list[Source]:
        if plan.tokens is None or self.recorded is None:
            return []
        prefix = plan.tokens.prefix
        return [
            ReadSource(_widened(weights[..., prefix:]), _widened(values[..., prefix:, :]), read.grid_size)
            for read, weights, values in zip(
                plan.tokens.reads, self.recorded.weights, self.recorded.values, strict=True
            )
        ]


@contextmanager
def observing(model: nn.Module, plan: Plan) -> Iterator[Observation]:
    """Watch a forward pass within the block, without changing a bit of it.

    Raises
    ------
    HookError
        On leaving the block, if the forward pass did not go through one of the plan's points.
    """
    shapes: dict[str, Any] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: shapes.update({name: shapes_of(output)})

    with (
        capturing(model, [each.point for each in plan.features]) as features,
        hooked(model, [(name, "output", note(name)) for name in plan.stubs]),
        recording(model, plan.tokens) if plan.tokens else nullcontext() as recorded,
    ):
        yield Observation(features, shapes, recorded)


def _widened(value: Tensor) -> Tensor:
    value = value.clone() if value.is_inference() else value  # the caller's pass may have run in inference mode
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
