"""Attention calls of any module or library, met one by one while a model runs."""

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

__all__ = ["AttentionCall", "AttentionCalls"]

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_KEEP = {F.dropout, Tensor.to, Tensor.type_as, Tensor.contiguous, Tensor.float}
_PRODUCTS = {name for name, computes in PRODUCTS.items() if computes is torch.matmul}
_MET = _SOFTMAX | _KEEP | _PRODUCTS
_MET |= {Tensor.transpose, torch.einsum, F.scaled_dot_product_attention, F.multi_head_attention_forward}


@dataclass(frozen=True)
class AttentionCall:
    """One attention call.

    Attributes
    ----------
    index
        Its number among the attention calls of the forward pass.
    queries
        How many queries there are.
    values : Tensor
        The values, (..., heads, keys, d).
    weights : callable
        From a number n to the attention weights of the first n queries, (..., heads, n, keys).
    is_module : bool
        It was made by `nn.MultiheadAttention`, whose fast path a torch-function mode disables.
    """

    index: int
    queries: int
    values: Tensor
    weights: Callable[[int], Tensor]
    is_module: bool = False


class AttentionCalls(TorchFunctionMode):
    """Mode that passes each attention call to `meet`, which may return what the call is to return instead, or None.

    Recognised are `F.scaled_dot_product_attention`, `F.multi_head_attention_forward`, the product of a softmax over
    keys with values, and factorised attention, whose softmax over keys is multiplied with the values first.
    """

    def __init__(self, meet: Callable[[AttentionCall], Tensor | None]) -> None:
        super().__init__()
        self._meet = meet
        self._count = 0
        self._softmax = WeakIdKeyDictionary()  # a softmax or its transpose -> index, the softmax, is it the transpose
        self._context = WeakIdKeyDictionary()  # softmax^T values -> index, softmax, values

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _MET:
            return func(*args, **kwargs)
        if func is torch.einsum:
            func, args = _as_product(func, args)
        if func is F.scaled_dot_product_attention:
            given: Any = self._meet(_from_sdpa(self._next(), *args, **kwargs))
            return func(*args, **kwargs) if given is None else given
        if func is F.multi_head_attention_forward:
            (query, key, value, mask), finish = mha_parts(*args, **kwargs)
            given = self._meet(_from_sdpa(self._next(), query, key, value, mask, is_module=True))
            return func(*args, **kwargs) if given is None else finish(given)
        if func in _PRODUCTS and args[0] in self._softmax:
            return self._weighted_sum(func, *args[:2])
        if func in _PRODUCTS and args[1] in self._context:
            index, softmax, values = self._context[args[1]]
            query = args[0]

            def weights(count: int) -> Tensor:
                attended: Tensor = query[..., :count, :] @ softmax.transpose(-2, -1)
                return attended

            given = self._meet(AttentionCall(index, query.shape[-2], values, weights))
            return func(*args, **kwargs) if given is None else given
        result = func(*args, **kwargs)
        if func in _SOFTMAX and result.ndim > 2:
            self._softmax[result] = self._next(), result, False
        elif args and isinstance(args[0], Tensor) and args[0] in self._softmax:
            index, softmax, transposed = self._softmax[args[0]]
            if func in _KEEP:
                self._softmax[result] = index, result, transposed
            elif func is Tensor.transpose and softmax.ndim == 4 and set(args[1:]) in ({-1, -2}, {2, 3}):
                self._softmax[result] = index, softmax, True
        return result

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _weighted_sum(self, func: Any, weights: Tensor, values: Tensor) -> Tensor:
        index, softmax, transposed = self._softmax[weights]
        if transposed:
            context: Tensor = func(weights, values)
            self._context[context] = index, softmax, values
            return context
        call = AttentionCall(index, weights.shape[-2], values, lambda count: weights[..., :count, :])
        given = self._meet(call)
        result: Tensor = func(weights, values) if given is None else given
        return result


def _as_product(func: Any, args: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Replace an `einsum` that is a product of stacked matrices by `matmul` (CvT multiplies its values that way)."""
    equation, *operands = args
    operands = operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    terms = re.split(",|->", equation.replace(" ", "")) if isinstance(equation, str) else []
    if len(operands) == 2 and len(terms) == 3 and "." not in equation:
        first, second, result = terms
        outer, i, j, d = first[:-2], first[-2:-1], first[-1:], second[-1:]
        if len(set(first + d)) == len(first) + 1 and second == outer + j + d and result == outer + i + d:
            return torch.matmul, operands
    return func, args


def _from_sdpa(
    index: int, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any,
    is_module: bool = False, **kwargs: Any,
) -> AttentionCall:  # fmt: skip
    def weights(count: int) -> Tensor:
        mask = attn_mask if attn_mask is None or attn_mask.shape[-2] == 1 else attn_mask[..., :count, :]
        return attention_weights(query[..., :count, :], key, None, mask, *rest, **kwargs)

    repeats = query.shape[-3] // value.shape[-3]  # grouped queries share keys and values
    values = value if repeats == 1 else value.repeat_interleave(repeats, -3)
    return AttentionCall(index, query.shape[-2], values, weights, is_module)
