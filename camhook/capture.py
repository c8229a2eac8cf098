"""`Capture`: a forward pass that the caller runs, explained afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from camhook.engine.capture import CapturedPass
from camhook.errors import HookError
from camhook.results.result import CAMResult

__all__ = ["Capture"]


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
