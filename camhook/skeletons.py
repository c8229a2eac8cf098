"""A model's structure without its values, and random values for as much of it as a question needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Skeleton", "StandIn"]


class Skeleton:
    """A copy of a model on the meta device, in float64 and eval mode, without the user's hooks.

    It holds no values and shares nothing with the live model that could change it.

    Attributes
    ----------
    module : nn.Module
        The copy.
    live : dict
        The live tensor behind each meta tensor, by the latter's id.
    """

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, Any] = {}
        self.live: dict[int, Tensor] = {}
        for module in model.modules():
            for name, value in module.__dict__.items():
                if name.endswith("_hooks") and isinstance(value, dict):
                    memo[id(value)] = type(value)()
            for value in tree_leaves(vars(module)):  # parameters, buffers, and what the model caches on its own
                if isinstance(value, Tensor) and id(value) not in memo:
                    memo[id(value)] = meta = _emptied(value)
                    self.live[id(meta)] = value
        self.module = copy.deepcopy(model, memo)
        for module in self.module.modules():
            module.training = False


def _emptied(value: Tensor) -> Tensor:
    dtype = torch.float64 if value.is_floating_point() else value.dtype
    meta = torch.empty(value.shape, dtype=dtype, device="meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(value, nn.Parameter) else meta


class StandIn(TorchFunctionMode):
    """Gives real numbers to whatever of a skeleton meets a real tensor, in float64.

    What a tail does is a matter of its structure, and a fresh model may hold zeros in the very place that matters. So
    parameters are drawn at random, once; buffers (running statistics, masks) keep the live model's values where it has
    any; other tensors, made on the meta device along the way, are drawn alike in every run.

    Attributes
    ----------
    met_weights : bool
        Whether a parameter with two or more axes was among them.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__()
        self._live = skeleton.live
        self._values: dict[int, Tensor] = {}
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        self.met_weights = False

    def __enter__(self) -> StandIn:
        self._made = {}
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(not t.is_meta for t in tensors) and any(t.is_meta or _is_narrow(t) for t in tensors):
            args, kwargs = tree_map(self._real, (args, kwargs))
        return func(*args, **kwargs)

    def _real(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_meta and id(value) in self._live:
            if id(value) not in self._values:
                self._values[id(value)] = self._draw(value, seed=len(self._values))
            value = self._values[id(value)]
        elif value.is_meta:
            # The pair keeps the meta tensor alive, so that its id is not given to another within this run.
            drawn = self._draw(value, seed=-1 - len(self._made))
            value = self._made.setdefault(id(value), (value, drawn))[1]
        return value.double() if _is_narrow(value) else value

    def _draw(self, meta: Tensor, *, seed: int) -> Tensor:
        live = self._live.get(id(meta))
        is_parameter = isinstance(meta, nn.Parameter)
        self.met_weights |= is_parameter and meta.ndim > 1
        if live is not None and not is_parameter and not live.is_meta:
            return live.detach().cpu()
        if not meta.is_floating_point():
            return torch.zeros(meta.shape, dtype=meta.dtype)
        generator = torch.Generator().manual_seed(seed % 2**31)
        values = torch.randn(meta.shape, generator=generator, dtype=torch.float64)
        if live is not None and not is_parameter:
            return values.abs() + 0.5  # a buffer whose value is not known: running variances have to be positive
        return values / math.sqrt(meta[0].numel()) if meta.ndim > 1 else values


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64
