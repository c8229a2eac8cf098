"""Plans of this process, by a model's structure: a second instance of an architecture is not searched again.

A plan is a matter of structure, so its key is one: every module's type with its methods, its plain attributes, the
shapes and dtypes of its tensors, and how these are shared. Buffers go in by value, since the search reads them; but
running statistics, of which only a share that is not finite could matter. Whatever is met that is not understood makes
a model one without a key, that is searched each time. Functions that a forward pass calls are taken as they are: one
that is exchanged within its own module, after a plan was made, is not noticed.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from camhook.engine.plan import Plan

__all__ = ["PlanCache", "Unknown", "structure_of"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, torch.layout)
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
_NOT_STRUCTURE = ("training", "_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


class Unknown(Exception):
    """Something about a model is not understood, so that it cannot be told from others."""


class PlanCache:
    """The last so many plans, by key. It holds no model and no tensor.

    Parameters
    ----------
    size
        How many; the one that was not used for longest goes first.
    """

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._plans)

    def get(self, key: Hashable, make: Callable[[], Plan]) -> Plan:
        """Return the plan of that key, made if there is none; an error is not kept."""
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        plan = make()  # without the lock: others need not wait for a search
        with self._lock:
            self._plans[key] = plan
            self._plans.move_to_end(key)
            while len(self._plans) > self._size:
                self._plans.popitem(last=False)
        return plan

    def clear(self) -> None:
        """Forget all plans."""
        with self._lock:
            self._plans.clear()


def structure_of(model: nn.Module) -> Hashable:
    """Return what two models have in common exactly if they are built alike, whatever their parameters' values.

    Raises
    ------
    Unknown
        If something about the model is not understood.
    """
    reader = _Reader()
    parts = tuple(reader.read(model))
    return parts, tuple(reader.types.items())


class _Reader:
    """Reads one model; numbers modules and tensors as they are met, so that sharing shows."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self.types: dict[type, Hashable] = {}

    def read(self, module: nn.Module) -> Iterator[Hashable]:
        """Yield what tells a module, and those within it, from others."""
        number = self._met.setdefault(id(module), len(self._met))
        if number != len(self._met) - 1:
            yield "again", number
            return
        yield self._type(type(module))
        for name, value in vars(module).items():
            if name in _NOT_STRUCTURE or name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                continue  # the search runs on a copy in eval mode without hooks
            yield name, self._of(value)
        for name, parameter in module._parameters.items():
            yield name, None if parameter is None else self._shape(parameter)
        running = isinstance(module, nn.modules.batchnorm._NormBase)
        for name, buffer in module._buffers.items():
            yield name, None if buffer is None else self._buffer(buffer, running and name in _RUNNING)
        for name, child in module._modules.items():
            yield name, None if child is None else tuple(self.read(child))

    def _shape(self, tensor: Tensor) -> Hashable:
        number = self._met.setdefault(id(tensor), len(self._met))
        if type(tensor) not in (Tensor, nn.Parameter):
            raise Unknown(f"a tensor of type {type(tensor).__name__}")
        return type(tensor), tuple(tensor.shape), tensor.dtype, tensor.is_meta, number

    def _buffer(self, tensor: Tensor, is_running: bool) -> Hashable:
        if tensor.is_meta or not tensor.numel():
            return self._shape(tensor)
        if is_running:
            return self._shape(tensor), bool(torch.isfinite(tensor).all())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return self._shape(tensor), hashlib.sha256(values.numpy().tobytes()).digest()

    def _type(self, kind: type) -> Hashable:
        if kind not in self.types:
            if _found(kind) is not kind:
                raise Unknown(f"the type {kind.__qualname__}, which is not one of a module")
            own = [each for each in kind.__mro__ if each not in (nn.Module, object)]
            # Methods as they are now: one may be exchanged on the class.
            self.types[kind] = tuple(
                (name, self._method(value)) for each in own for name, value in vars(each).items() if callable(value)
            )
        return kind

    def _method(self, value: Any) -> Hashable:
        if isinstance(value, FunctionType):
            if any(name != "__class__" for name in value.__code__.co_freevars):
                raise Unknown(f"the method {value.__qualname__}, which holds values of its own")
            return value
        return cast(Hashable, type(value))

    def _of(self, value: Any) -> Hashable:
        kind = type(value)
        if kind in _PLAIN:
            return kind, value if value == value else "nan"
        if isinstance(value, Tensor):
            return self._buffer(value, False)
        if kind in (list, tuple):
            return kind, tuple(map(self._of, value))
        if kind in (set, frozenset):
            return kind, frozenset(map(self._of, value))
        if kind in (dict, OrderedDict):
            return kind, tuple((self._of(key), self._of(each)) for key, each in value.items())
        if kind is partial:
            return kind, self._of(value.func), self._of(value.args), self._of(value.keywords)
        if isinstance(value, Enum) or (isinstance(value, type | FunctionType) and _found(value) is value):
            return value  # the thing itself, which lives as long as its module
        if isinstance(value, BuiltinFunctionType) and not isinstance(value.__self__, Tensor | nn.Module):
            return value
        raise Unknown(f"an attribute of type {kind.__qualname__}")


def _found(thing: Any) -> Any:
    """Return what a type's or function's module has by its name."""
    found: Any = sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found
