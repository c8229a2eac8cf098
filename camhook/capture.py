"""A forward pass that the caller runs, watched and explained afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camhook.engine.capture import Observation, observing
from camhook.engine.hooks import hooked
from camhook.engine.plan import Plan
from camhook.errors import HookError
from camhook.results.result import CAMResult

__all__ = ["Capture", "Pass", "watching"]


@dataclass(frozen=True)
class Pass:
    """One forward pass: what the model was given, what it returned, and what was observed in between."""

    inputs: Tensor
    output: Any
    observation: Observation


class Capture:
    """What `CAM.capture` watches; its result is there once the model has run."""

    def __init__(self, finish: Callable[..., CAMResult]) -> None:
        self._finish = finish
        self._passed: tuple[Plan, Pass] | None = None

    def result(
        self, target: Any = None, *, topk: int | None = None, contrast: str | Sequence[int | str] | None = None
    ) -> CAMResult:
        """Explain the pass; targets as in calling the CAM.

        Raises
        ------
        HookError
            If the block has not been left yet.
        TargetError, CompletenessError
            As in calling the CAM.
        """
        if self._passed is None:
            raise HookError("There is no forward pass to explain yet: run the model in the block, then leave it.")
        return self._finish(*self._passed, target, topk, contrast)


@contextmanager
def watching(model: nn.Module, plan: Plan, finish: Callable[..., CAMResult]) -> Iterator[Capture]:
    """Watch one forward pass of the model within the block."""
    captured = Capture(finish)
    inputs: list[Tensor] = []
    outputs: list[Any] = []

    def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
        if inputs:
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
        inputs.append(images[0].detach())

    def end(_: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output)

    with observing(model, plan) as observation, hooked(model, [("", "input", begin), ("", "output", end)]):
        yield captured
        if not outputs:
            raise HookError(
                "capture(): the wrapped module did not run in the block. Was a compiled, scripted or other copy of it "
                "run?"
            )
    captured._passed = plan, Pass(inputs[0], outputs[0], observation)
