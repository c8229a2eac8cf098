"""Capture of one forward pass of the live model: features, shapes of finished modules, what class tokens read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camhook.decompose.decomposition import Decomposition
from camhook.decompose.maps import RELATIVE_TOLERANCE
from camhook.decompose.tail_inputs import FeatureMapInput, MeanInput, TailInput, WeightedMeanInput
from camhook.engine.head import BroadcastFeatures
from camhook.engine.hooks import capturing, hooked
from camhook.engine.plan import Plan
from camhook.engine.points import FeaturePoint, shapes_of
from camhook.engine.tail import Output
from camhook.engine.token_capture import TokenCapture, capture_tokens
from camhook.errors import HookError

__all__ = ["CapturedPass", "ForwardCapture", "capture_forward", "capture_pass"]


@dataclass
class ForwardCapture:
    """What one forward pass showed.

    Attributes
    ----------
    features
        The tensors at the feature points.
    shapes
        What the modules before them returned, as shapes.
    tokens
        What class tokens read, if the plan follows them.
    """

    features: dict[FeaturePoint, Tensor]
    shapes: dict[str, Any]
    tokens: TokenCapture | None

    def decompose(
        self,
        plan: Plan,
        module: nn.Module,
        inputs: Tensor,
        output: Output,
        *,
        secant_dtype: torch.dtype | None = None,
    ) -> Decomposition:
        """Decompose the logits of these inputs, with the tail of a copy of the model that shares its tensors.

        Raises
        ------
        HookError
            If the forward pass did not take the path that the plan expects.
        """
        assert plan.head is not None
        if self.tokens is not None:
            self.tokens.complete(module)
        kept = [*self.features.values(), *(self.tokens.values if self.tokens else ())]
        dtype = max([each.dtype for each in kept], key=RELATIVE_TOLERANCE.__getitem__)
        given = inputs if plan.has_bypass else inputs.to("meta")
        run = plan.tail(module, output).run_on(given, self.shapes, self.tokens)
        reads: list[TailInput] = list(self.tokens.inputs()) if self.tokens else []
        if plan.is_pooled:
            positions, prefix, grid_size = self._split(plan, inputs)
            size = (1, 1) if plan.head.accepts_1x1 else grid_size
            broadcast = BroadcastFeatures(plan.features[0].layout, size, prefix)
            return Decomposition(
                lambda mean: run(broadcast(mean)), [MeanInput(positions)], dtype=dtype, secant_dtype=secant_dtype
            )
        size = (inputs.shape[2], inputs.shape[3])
        for each in plan.features:
            features = _widened(self.features[each.point])
            reads.append(FeatureMapInput(features, each.layout, each.layout.grid_size(tuple(features.shape), size)))
        return Decomposition(run, reads, dtype=dtype, secant_dtype=secant_dtype)

    def pooled(self, plan: Plan, module: nn.Module, inputs: Tensor) -> MeanInput | WeightedMeanInput:
        """Return what a probe pools: by the mean or, if the plan follows class tokens, by their last attention."""
        positions, _, grid_size = self._split(plan, inputs)
        if self.tokens is None:
            return MeanInput(positions)
        self.tokens.complete(module)
        return WeightedMeanInput(positions, self.tokens.pooling_weights(grid_size))

    def _split(self, plan: Plan, inputs: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """Return the positions (B, C, h, w), the prefix tokens and the grid of the plan's only features."""
        (each,) = plan.features
        features = _widened(self.features[each.point])
        grid_size = each.layout.grid_size(tuple(features.shape), (inputs.shape[2], inputs.shape[3]))
        return *each.layout.split(features, grid_size), grid_size


@contextmanager
def capture_forward(model: nn.Module, plan: Plan) -> Iterator[ForwardCapture]:
    """Capture a forward pass within the block, without changing a bit of it.

    Raises
    ------
    HookError
        On leaving the block, if the forward pass did not go through one of the plan's points.
    """
    shapes: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: shapes.update({name: shapes_of(output)})

    with (
        capturing(model, [each.point for each in plan.features]) as features,
        hooked(model, [(name, "output", keep(name)) for name in plan.skipped_modules]),
        capture_tokens(model, plan.tokens) if plan.tokens else nullcontext() as tokens,
    ):
        yield ForwardCapture(features, shapes, tokens)


@dataclass
class CapturedPass:
    """A forward pass that the caller ran: its plan, its images, what the model returned, and what was captured."""

    plan: Plan
    forward: ForwardCapture
    images: list[Tensor] = field(default_factory=list)
    returned: list[Any] = field(default_factory=list)
    is_complete: bool = False


@contextmanager
def capture_pass(model: nn.Module, plan: Plan) -> Iterator[CapturedPass]:
    """Capture one forward pass that the caller runs within the block.

    Raises
    ------
    HookError
        If the model runs twice in the block or on an unexpected size; on leaving the block, if it did not run.
    """

    def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
        if passed.images:
            raise HookError("capture() holds one forward pass, and the model ran twice: open a block for each pass.")
        images = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim == 4]
        if not images:
            raise HookError("capture() found no (B, C, H, W) tensor among what the model was called with.")
        size = (images[0].shape[2], images[0].shape[3])
        if plan.tokens is not None and size != plan.input_size:
            raise HookError(
                f"capture() was made ready for images of {plan.input_size} and the model was given {size}. Pass "
                "input_size= to wrap."
            )
        passed.images.append(images[0].detach())

    def end(_: nn.Module, args: Any, returned: Any) -> None:
        passed.returned.append(returned)

    with (
        capture_forward(model, plan) as forward,
        hooked(model, [("", "input", begin), ("", "output", end)]),
    ):
        passed = CapturedPass(plan, forward)
        yield passed
        if not passed.returned:
            raise HookError(
                "capture(): the wrapped module did not run in the block. Was a compiled, scripted or other copy of it "
                "run?"
            )
    passed.is_complete = True


def _widened(value: Tensor) -> Tensor:
    value = value.clone() if value.is_inference() else value  # the caller's pass may have run in inference mode
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
