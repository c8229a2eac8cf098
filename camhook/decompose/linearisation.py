"""Torch-function mode that linearises a tail while it runs, and computes the baseline of each tensor beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from camhook.decompose.arguments import tensors_of
from camhook.decompose.secants import Operand, elementwise, linearised_activation, linearised_product
from camhook.decompose.torch_functions import (
    ACTIVATIONS,
    CONVOLUTIONS,
    DIVISIONS,
    FROZEN,
    PRODUCTS,
    STATISTICS,
    attention_weights,
    conv_as_linear,
    mha_parts,
    take_input,
)

__all__ = ["Linearisation"]

_HALF = (torch.float16, torch.bfloat16)
_IN_PLACE = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "matmul")} | {"__setitem__"}
_NOT_AFFINE = {*ACTIVATIONS, *FROZEN, *STATISTICS, *PRODUCTS, *DIVISIONS, *CONVOLUTIONS}
_NOT_AFFINE |= {F.multi_head_attention_forward, F.glu, torch.einsum, torch.maximum}


class Linearisation(TorchFunctionMode):
    """Mode that computes, for each tensor that depends on the features, its baseline too, and linearises each call."""

    def __init__(self, dtype: torch.dtype, secant_dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype, self._secant_dtype = dtype, secant_dtype
        self._carried = WeakIdKeyDictionary()  # tensor -> its baseline, its degree
        self.kinds: set[str] = set()

    def carry(self, value: Tensor, baseline: Tensor, degree: int) -> Tensor:
        """Note the baseline and degree of a tensor, and return it."""
        self._carried[value] = baseline, degree
        return value

    def baseline_of(self, value: Tensor) -> tuple[Tensor, int]:
        """Return the baseline and degree of a tensor; of one that does not depend on the features, itself."""
        found: tuple[Tensor, int] = self._carried.get(value, (value, 0))
        return found

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        values, baselines, degree = self._read(args)
        kwargs, keywords = kwargs or {}, {}
        if kwargs:
            given, at_baseline, of_kwargs = self._read(kwargs.values())
            kwargs, keywords = dict(zip(kwargs, given, strict=True)), dict(zip(kwargs, at_baseline, strict=True))
            degree = max(degree, of_kwargs)
        if degree < 0 or (func in (Tensor.to, Tensor.type_as) and values[0] not in self._carried):
            return func(*values, **kwargs)
        if getattr(func, "__name__", "") == "__get__" and not isinstance(result := func(*values), Tensor):
            return result  # .shape and the like
        with torch.enable_grad():
            if func in _NOT_AFFINE:
                return self._linearised(func, tuple(values), kwargs)
            return self._apply(func, values, kwargs, baselines, keywords, degree)

    def _read(self, args: Iterable[Any]) -> tuple[list[Any], list[Any], int]:
        """Return arguments as they can be used, the same at the baseline, and the highest degree; -1: none depends."""
        values: list[Any] = []
        baselines: list[Any] = []
        highest = -1
        for each in args:
            if isinstance(each, Tensor):
                known = self._carried.get(each)
                if known is not None:
                    values.append(each)
                    baselines.append(known[0])
                    highest = max(highest, known[1])
                    continue
                if each.is_inference() or each.dtype in _HALF:
                    each = self._usable(each)
            elif isinstance(each, list | tuple) and each and not isinstance(each[0], int):
                inner, at_baseline, degree = self._read(each)
                if degree >= 0:
                    values.append(type(each)(inner))
                    baselines.append(type(each)(at_baseline))
                    highest = max(highest, degree)
                    continue
            values.append(each)
            baselines.append(each)
        return values, baselines, highest

    def _apply(
        self, func: Any, args: Sequence[Any], kwargs: Any, baselines: list[Any], keywords: Any, degree: int
    ) -> Any:
        """Call a function that is affine in what depends on the features, at the value and at the baseline."""
        name = getattr(func, "__name__", "")
        in_place = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE
        if in_place and args[0] not in self._carried:
            baselines[0] = args[0].detach().clone()
        result = func(*args, **kwargs)
        with torch.no_grad():
            baseline = func(*baselines, **keywords)
        if in_place:
            self._carried[args[0]] = baselines[0], degree
        elif isinstance(result, Tensor):
            if result.is_floating_point():  # indices and masks are frozen
                self._carried[result] = baseline, degree
        elif isinstance(result, list | tuple):
            for value, at in zip(tensors_of(result), tensors_of(baseline), strict=True):
                if value.is_floating_point():
                    self._carried[value] = at, degree
        return result

    def _affine(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        values, baselines, degree = self._read(args)
        _, at_baseline, of_kwargs = self._read(kwargs.values())
        keywords = dict(zip(kwargs, at_baseline, strict=True))
        return self._apply(func, values, kwargs, baselines, keywords, max(degree, of_kwargs, 0))

    def _linearised(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Freeze or linearise a function that is not affine."""
        if func in ACTIVATIONS:
            x, args, kwargs = take_input(args, kwargs)
            return self._activation(elementwise(func, args, kwargs), x)
        if func in FROZEN:
            self.kinds.add("attention" if "softmax" in func.__name__ else "norm")
            with torch.no_grad():
                return func(*args, **kwargs)
        if func in STATISTICS:
            return self._with_statistics(func, args, kwargs)
        if func is F.multi_head_attention_forward:
            return self._attention(args, kwargs)
        depend = [isinstance(each, Tensor) and each in self._carried for each in args]
        if func in PRODUCTS and all(depend[:2]):
            return self._product(PRODUCTS[func], *args[:2])
        if func is torch.einsum and sum(depend) == 2:
            return self._product(lambda a, b: torch.einsum(args[0], a, b), *args[1:3])
        if func is F.glu:
            x, args, kwargs = take_input(args, kwargs)
            values, gates = self._affine(Tensor.chunk, (x, 2, kwargs.get("dim", *args or (-1,))), {})
            return self._product(torch.mul, values, self._activation(torch.sigmoid, gates))
        if func is torch.maximum:
            excess = self._activation(torch.relu, self._affine(torch.sub, args[:2], {}))
            return self._affine(torch.add, (excess, args[1]), {})
        if func in DIVISIONS and len(args) > 1 and depend[1]:
            args = args[0], args[1].detach()
        if func in CONVOLUTIONS:
            func, args, kwargs = conv_as_linear(func, args, kwargs)
        result = self._affine(func, args, kwargs)
        if func in CONVOLUTIONS and max(args[1].shape[2:]) > 1 and result[0, 0].numel() > 1:
            self.kinds.add("conv")  # positions are mixed on the way
        return result

    def _activation(self, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self.kinds.add("secant")
        baseline, degree = self.baseline_of(x)
        return self.carry(*linearised_activation(act, Operand(x, baseline), self._secant_dtype), degree + 1)

    def _product(self, product: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
        self.kinds.add("secant")
        (a, degree_a), (b, degree_b) = self.baseline_of(first), self.baseline_of(second)
        linearised = linearised_product(product, Operand(first, a), Operand(second, b))
        return self.carry(*linearised, max(degree_a, degree_b) + 1)

    def _with_statistics(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Apply a normalisation, attention or maximum with its statistics frozen at the value."""
        read, apply = STATISTICS[func]
        x, others, kwargs = take_input(args, kwargs)
        if func in (torch.max, Tensor.max) and others and isinstance(others[0], Tensor):
            return self._linearised(torch.maximum, (x, *others), kwargs)
        name = func.__name__
        self.kinds.add("attention" if "attention" in name else "norm" if "norm" in name else "max")
        with torch.no_grad():
            statistics = read(x, *others, **kwargs)
        return self._affine(lambda x, *others, **kwargs: apply(x, statistics, *others, **kwargs), (x, *others), kwargs)

    def _attention(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        self.kinds.add("attention")
        with torch.no_grad():
            (query, key, _, mask), _ = mha_parts(*args, **kwargs)
            weights = attention_weights(query, key, None, mask)

        def attend(*args: Any, **kwargs: Any) -> Any:
            (_, _, value, _), finish = mha_parts(*args, **kwargs)
            return finish(weights @ value)[0]

        return self._affine(attend, args, kwargs), None

    def _usable(self, constant: Tensor) -> Tensor:
        if constant.is_meta or not constant.is_floating_point():
            return constant
        if constant.dtype in _HALF and self._dtype not in _HALF:
            return constant.to(self._dtype)
        return constant.clone() if constant.is_inference() else constant  # autograd refuses to save inference tensors
