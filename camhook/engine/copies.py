"""Structural copies of a model: on the meta device, or sharing its tensors; random parameters for numerical checks."""

from __future__ import annotations

import copy
import math
import operator
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from camhook.decompose.arguments import Dependents, mapped, tensors_of

__all__ = ["MetaCopy", "RandomParameters", "SharedCopy"]


def _copied(model: nn.Module, of_tensor: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a model in eval mode and without the user's hooks; `of_tensor` gives the copy of each tensor."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name.endswith("_hooks") and isinstance(value, dict):
                memo[id(value)] = type(value)()
        for value in tree_leaves(vars(module)):  # parameters, buffers, and what the model caches on its own
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = of_tensor(value)
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        module.training = False
    return copied


class SharedCopy:
    """A structural copy of a model that shares its tensors and nothing else; copied again when the model has changed.

    Tails run on it: the user's hooks do not fire, and no flag of the live model has to be set. Each thread has its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._local = threading.local()

    def module(self) -> nn.Module:
        """Return the calling thread's copy, up to date."""
        dicts, known = getattr(self._local, "parts", ([], []))
        parts = _values(dicts)  # looked at in every call, so this has to be fast
        if not parts or len(parts) != len(known) or not all(map(operator.is_, parts, known)):
            dicts = [d for m in self._model.modules() for d in (vars(m), m._modules, m._parameters, m._buffers)]
            self._local.copy, self._local.parts = _copied(self._model, lambda tensor: tensor), (dicts, _values(dicts))
        copied: nn.Module = self._local.copy
        return copied


def _values(dicts: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return all that a copy of these modules' dictionaries shares or repeats, to be compared by identity."""
    return [value for each in dicts for value in each.values()]


class MetaCopy:
    """A structural copy of a model on the meta device, in float64 and eval mode, without the user's hooks.

    It holds no values and shares nothing with the live model that could change it.

    Attributes
    ----------
    module : nn.Module
        The copy.
    live : dict
        The live tensor behind each meta tensor, by the latter's id.
    """

    def __init__(self, model: nn.Module) -> None:
        self.live: dict[int, Tensor] = {}

        def empty(value: Tensor) -> Tensor:
            meta = _emptied(value)
            self.live[id(meta)] = value
            return meta

        self.module = _copied(model, empty)


def _emptied(value: Tensor) -> Tensor:
    dtype = torch.float64 if value.is_floating_point() else value.dtype
    meta = torch.empty(value.shape, dtype=dtype, device="meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(value, nn.Parameter) else meta


class RandomParameters(TorchFunctionMode):
    """Mode that gives real numbers, in float64, to whatever of a `MetaCopy` meets a real tensor.

    What a tail does is a matter of its structure, and a fresh model may hold zeros in the very place that matters. So
    parameters are drawn at random, once; buffers (running statistics, masks) keep the live model's values where it has
    any; other tensors, made on the meta device along the way, are drawn alike in every run.

    Parameters
    ----------
    inputs
        The meta tensor that the model was traced with.

    Attributes
    ----------
    has_bypass : bool
        Whether, in the last run, a skip connection bypassed the features: a tensor computed from the model's inputs,
        but not from the features, entered the tail.
    """

    def __init__(self, copy: MetaCopy, inputs: Tensor) -> None:
        super().__init__()
        self._live = copy.live
        self._drawn: dict[int, Tensor] = {}
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        self._of_inputs = Dependents([inputs])
        self._of_features = Dependents()
        self.has_bypass = False

    def given(self, *features: Tensor) -> RandomParameters:
        """Take these as the features, from which on numbers are real, in the next run."""
        self._of_features = Dependents(features)
        return self

    def __enter__(self) -> RandomParameters:
        self._made = {}
        self.has_bypass = False
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_of(args, kwargs)
        in_tail = self._of_features.among(tensors) is not None
        if in_tail and any(t.is_meta or _is_narrow(t) for t in tensors):
            args, kwargs = mapped(self._real, args, kwargs)
        elif not in_tail and any(t.is_meta for t in tensors):
            # What is computed from constants before the features (indices of position biases) stays a shape.
            args, kwargs = mapped(lambda t: t.to("meta") if isinstance(t, Tensor) else t, args, kwargs)
        result = func(*args, **kwargs)
        if in_tail:
            self._of_features.add(result)
        if self._of_inputs.among(tensors) is not None:
            self._of_inputs.add([leaf for leaf in tensors_of((result,)) if leaf.is_meta])
        return result

    def _real(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_meta and id(value) in self._live:
            if id(value) not in self._drawn:
                self._drawn[id(value)] = self._draw(value, seed=len(self._drawn))
            value = self._drawn[id(value)]
        elif value.is_meta:
            # The pair keeps the meta tensor alive, so that its id is not given to another within this run.
            drawn = self._draw(value, seed=-1 - len(self._made))
            self.has_bypass |= value.numel() > 0 and value in self._of_inputs
            value = self._made.setdefault(id(value), (value, drawn))[1]
        return value.double() if _is_narrow(value) else value

    def _draw(self, meta: Tensor, *, seed: int) -> Tensor:
        live = self._live.get(id(meta))
        is_parameter = isinstance(meta, nn.Parameter)
        if live is not None and not is_parameter and not live.is_meta:
            return live.detach().cpu()
        if not meta.is_floating_point():
            return torch.zeros(meta.shape, dtype=meta.dtype)
        generator = torch.Generator().manual_seed(seed % 2**31)
        values = torch.randn(meta.shape, generator=generator)  # drawn in single precision: twice as fast
        if live is not None and not is_parameter:
            return (
                values.abs().double() + 0.5
            )  # a buffer whose value is not known: running variances have to be positive
        return (values.div_(math.sqrt(meta[0].numel())) if is_parameter and meta.ndim > 1 else values).double()


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64
