"""`Capture`: a forward pass that the caller runs, explained afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from camhook.engine.capture import CapturedPass
from camhook.engine.plan import Plan
from camhook.engine.reader import ModelReader
from camhook.errors import HookError, UnsupportedModelError
from camhook.results.result import CAMResult

__all__ = ["Capture", "plan_to_capture"]


class Capture:
    """A forward pass captured by `CAM.capture`; its result is there once the model has run."""

    def __init__(self, passed: CapturedPass, explain: Callable[..., CAMResult]) -> None:
        self._passed, self._explain = passed, explain

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
        if not self._passed.is_complete:
            raise HookError("There is no forward pass to explain yet: run the model in the block, then leave it.")
        return self._explain(self._passed, target, topk, contrast)


def plan_to_capture(reader: ModelReader) -> Plan:
    """Return the plan by which a caller's own forward pass is captured.

    Raises
    ------
    UnsupportedModelError
        If hooks cannot see the pass, or the map needs more than one pass, or the model has no head.
    """
    if reader.found_in:
        raise UnsupportedModelError(
            f"capture() cannot watch a model inside {reader.found_in}: hooks set on it now do not fire there. Call "
            "cam(images), which runs the module itself, or wrap and run the module itself."
        )
    plan = reader.plan
    reader.check_head(plan)
    if plan.has_bypass:
        raise UnsupportedModelError(
            f"capture() gives maps from one pass; a skip connection bypasses {plan.target_layer}, so that this map "
            "costs a second. Call cam(images)."
        )
    return plan
