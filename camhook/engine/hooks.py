"""Forward hooks that exist only inside a ``with`` block and see only the calls of the thread that set them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from camhook.engine.points import FeaturePoint
from camhook.errors import HookError

__all__ = ["capturing", "evaluating", "hooked", "replacing"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode within the block, and restore each training flag afterwards.

    The flags are set directly: `Module.train` may be overridden with effects that calling it again would not undo.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def capturing(model: nn.Module, points: Sequence[FeaturePoint]) -> Iterator[dict[FeaturePoint, Tensor]]:
    """Collect the tensors at these points while the model runs, without a copy.

    Raises
    ------
    HookError
        On leaving the block, if the forward pass did not go through one of the points.
    """
    captured: dict[FeaturePoint, Tensor] = {}

    def keep(point: FeaturePoint) -> Callable[[Any], None]:
        def visit(value: Any) -> None:
            tensor = _single_tensor(value)
            if tensor is None:
                raise HookError(
                    f"{point}: a tensor was expected there and {type(value).__name__} was found. "
                    "Wrap the model again, or choose another target_layer."
                )
            captured[point] = tensor.detach().clone() if point.overwritten else tensor.detach()

        return visit

    with _visiting(model, {point: keep(point) for point in points}):
        yield captured
    missing = [str(point) for point in points if point not in captured]
    if missing:
        raise HookError(
            f"The forward pass did not go through {', '.join(missing)}, where the map is read. Was the model changed, "
            "compiled or scripted after wrapping? Wrap it again, or name another target_layer."
        )


@contextmanager
def replacing(model: nn.Module, point: FeaturePoint, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the tensor at a point by what `change` returns for it, within the block."""

    def visit(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)([change(value[0]), *value[1:]])
        return change(value)

    with _visiting(model, {point: visit}):
        yield


@contextmanager
def hooked(model: nn.Module, hooks: Iterable[tuple[str, str, Callable[..., Any]]]) -> Iterator[None]:
    """Register hooks on modules, given by name and ``"input"`` or ``"output"``, for the block, called in that order.

    A hook gets (module, args, kwargs) or (module, args, output). Calls of other threads are ignored.

    Raises
    ------
    HookError
        If the model has no such module.
    """
    owner = threading.get_ident()
    handles = []

    def ours(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: hook(*given) if threading.get_ident() == owner else None

    try:
        for name, side, hook in hooks:
            try:
                module = model.get_submodule(name)
            except AttributeError as error:
                raise HookError(
                    f"The model no longer has the module {name!r}, where the map is read. Wrap it again."
                ) from error
            if side == "input":
                handles.append(module.register_forward_pre_hook(ours(hook), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(ours(hook)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _visiting(model: nn.Module, visits: Mapping[FeaturePoint, Callable[[Any], Any]]) -> Iterator[None]:
    def at(point: FeaturePoint, visit: Callable[[Any], Any]) -> Callable[..., Any]:
        calls = 0

        def hook(module: nn.Module, args: Any, other: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != point.call + 1:
                return None
            if point.side == "output":
                return visit(other)
            changed = visit(args)
            return None if changed is None else (changed, other)

        return hook

    with hooked(model, [(point.module, point.side, at(point, visit)) for point, visit in visits.items()]):
        yield


def _single_tensor(value: Any) -> Tensor | None:
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, torch.Tensor) else None
