"""Attention calls, met one by one while a network runs, whatever module or library makes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from camhook.decompose.torch_functions import PRODUCTS, attention_weights, mha_parts

__all__ = ["Attentions", "Read"]

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_KEEP = {F.dropout, Tensor.to, Tensor.type_as, Tensor.contiguous, Tensor.float}


@dataclass(frozen=True)
class Read:
    """One attention call: so many queries read their values.

    Attributes
    ----------
    index
        Which attention call of the forward pass it is.
    queries
        How many rows read.
    values : Tensor
        What is read, (..., heads, keys, d).
    weights : callable
        Gives, for the first so many queries, with what weights they read, (..., heads, rows, keys).
    is_module : bool
        It was made by `nn.MultiheadAttention`, whose fast path a mode switches off.
    """

    index: int
    queries: int
    values: Tensor
    weights: Callable[[int], Tensor]
    is_module: bool = False


class Attentions(TorchFunctionMode):
    """Shows each attention call to `meet`, which may return what the call is to give instead, or None.

    Met are `F.scaled_dot_product_attention`, `F.multi_head_attention_forward`, the product of a softmax over keys
    with values, and factorised attention, whose softmax over keys is multiplied with the values first.
    """

    def __init__(self, meet: Callable[[Read], Tensor | None]) -> None:
        super().__init__()
        self._meet = meet
        self._count = 0
        self._softmax = WeakIdKeyDictionary()  # a softmax or its transpose -> index, the softmax
        self._context = WeakIdKeyDictionary()  # softmax^T values -> index, softmax, values

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.einsum:
            func, args = _as_product(func, args)
        if func is F.scaled_dot_product_attention:
            read = _sdpa(self._next(), *args, **kwargs)
            given = self._meet(read)
            return func(*args, **kwargs) if given is None else given
        if func is F.multi_head_attention_forward:
            (query, key, value, mask), _ = mha_parts(*args, **kwargs)
            given = self._meet(_sdpa(self._next(), query, key, value, mask, is_module=True))
            return func(*args, **kwargs) if given is None else mha_parts(*args, **kwargs)[1](given)
        if PRODUCTS.get(func) is torch.matmul and args[0] in self._softmax:
            return self._product(func, *args[:2])
        if PRODUCTS.get(func) is torch.matmul and args[1] in self._context:
            index, softmax, values = self._context[args[1]]
            query = args[0]
            given = self._meet(
                Read(index, query.shape[-2], values, lambda rows: query[..., :rows, :] @ softmax.transpose(-2, -1))
            )
            return func(*args, **kwargs) if given is None else given
        result = func(*args, **kwargs)
        if func in _SOFTMAX and result.ndim > 2:
            self._softmax[result] = self._next(), result, False
        elif args and isinstance(args[0], Tensor) and args[0] in self._softmax:
            index, softmax, turned = self._softmax[args[0]]
            if func in _KEEP:
                self._softmax[result] = index, result, turned
            elif func is Tensor.transpose and softmax.ndim == 4 and set(args[1:]) in ({-1, -2}, {2, 3}):
                self._softmax[result] = index, softmax, True
        return result

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _product(self, func: Any, weights: Tensor, values: Tensor) -> Tensor:
        index, softmax, turned = self._softmax[weights]
        if turned:
            context: Tensor = func(weights, values)
            self._context[context] = index, softmax, values
            return context
        given = self._meet(Read(index, weights.shape[-2], values, lambda rows: weights[..., :rows, :]))
        result: Tensor = func(weights, values) if given is None else given
        return result


def _as_product(func: Any, args: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Write an `einsum` that is a plain product of stacked matrices as one (CvT reads its values that way)."""
    equation, *operands = args
    operands = operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    terms = re.split(",|->", equation.replace(" ", "")) if isinstance(equation, str) else []
    if len(operands) == 2 and len(terms) == 3 and "." not in equation:
        first, second, result = terms
        outer, i, j, d = first[:-2], first[-2:-1], first[-1:], second[-1:]
        if len(set(first + d)) == len(first) + 1 and second == outer + j + d and result == outer + i + d:
            return torch.matmul, operands
    return func, args


def _sdpa(
    index: int, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any,
    is_module: bool = False, **kwargs: Any,
) -> Read:  # fmt: skip
    def weights(rows: int) -> Tensor:
        mask = attn_mask if attn_mask is None or attn_mask.shape[-2] == 1 else attn_mask[..., :rows, :]
        return attention_weights(query[..., :rows, :], key, None, mask, *rest, **kwargs)

    repeats = query.shape[-3] // value.shape[-3]  # grouped queries share keys and values
    values = value if repeats == 1 else value.repeat_interleave(repeats, -3)
    return Read(index, query.shape[-2], values, weights, is_module)
