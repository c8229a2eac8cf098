"""Torch functions that are not affine, and how each is frozen: statistics read at one input, applied at another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "ACTIVATIONS",
    "CONVOLUTIONS",
    "DIVISIONS",
    "FROZEN",
    "PRODUCTS",
    "STATISTICS",
    "attention_weights",
    "conv_as_linear",
    "mha_parts",
    "take_input",
]

FROZEN = {
    F.softmax, torch.softmax, Tensor.softmax, torch.rsqrt, Tensor.rsqrt, torch.reciprocal, Tensor.reciprocal,
    torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm, torch.std, Tensor.std,
}  # fmt: skip
"""Functions whose whole result is frozen: attention weights, and the scales from which norms are composed by hand."""

ACTIVATIONS = {
    F.celu, F.elu, F.gelu, F.hardshrink, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.logsigmoid, F.mish,
    F.prelu, F.relu, F.relu6, F.rrelu, F.selu, F.sigmoid, F.silu, F.softplus, F.softshrink, F.softsign, F.tanh,
    F.tanhshrink, F.threshold, torch.abs, torch.celu, torch.clamp, torch.exp, torch.log, torch.log1p, torch.pow,
    torch.prelu, torch.relu, torch.selu, torch.sigmoid, torch.sqrt, torch.square, torch.tanh, Tensor.abs, Tensor.clamp,
    Tensor.clamp_, Tensor.clamp_min, Tensor.exp, Tensor.log, Tensor.log1p, Tensor.pow, Tensor.__pow__, Tensor.relu,
    Tensor.relu_, Tensor.sigmoid, Tensor.sigmoid_, Tensor.sqrt, Tensor.square, Tensor.tanh, Tensor.tanh_,
}  # fmt: skip

PRODUCTS = {
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__), torch.mul),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), torch.matmul),
}
"""Products of two tensors, under all their names, and what each computes."""

CONVOLUTIONS = {
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
}  # fmt: skip

DIVISIONS = {torch.div, Tensor.div, Tensor.div_, Tensor.__truediv__, torch.true_divide, Tensor.true_divide}


# The signatures below are those of torch's own functions, so that keyword arguments match.
def _layer_norm_scale(
    x: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    return (x.var(_last(normalized_shape), unbiased=False, keepdim=True) + eps).rsqrt()


def _layer_norm(
    x: Tensor,
    scale: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    x = (x - x.mean(_last(normalized_shape), keepdim=True)) * scale
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _rms_norm_scale(x: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return (x.square().mean(_last(normalized_shape), keepdim=True) + eps).rsqrt()


def _rms_norm(
    x: Tensor, scale: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    return x * scale if weight is None else x * scale * weight


def _last(normalized_shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(-len(normalized_shape), 0))


def _group_norm_scale(x: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    return (_groups(x, num_groups).var(-1, unbiased=False, keepdim=True) + eps).rsqrt()


def _group_norm(
    x: Tensor,
    scale: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    groups = _groups(x, num_groups)
    x = ((groups - groups.mean(-1, keepdim=True)) * scale).reshape(x.shape)
    per_channel = (-1, *[1] * (x.ndim - 2))
    x = x if weight is None else x * weight.view(per_channel)
    return x if bias is None else x + bias.view(per_channel)


def _groups(x: Tensor, num_groups: int) -> Tensor:
    return x.reshape(x.shape[0], num_groups, -1, *x.shape[2:]).flatten(2)


def _normalize_scale(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, p, dim, keepdim=True)
    return length.clamp_min(eps).reciprocal()


def _normalize(x: Tensor, scale: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    return x * scale


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Any = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights (..., heads, queries, keys) of scaled dot product attention."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)


def _attend(query: Tensor, weights: Tensor, key: Any, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return weights @ value.repeat_interleave(weights.shape[-3] // value.shape[-3], -3)


def _max_index(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    return x.argmax(dim, keepdim=True)


def _max(x: Tensor, index: Tensor, dim: int, keepdim: bool = False) -> Any:
    values, where = (t if keepdim else t.squeeze(dim) for t in (x.gather(dim, index), index))
    return torch.return_types.max((values, where))


def _amax_index(x: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    return _joined(x, dim).argmax(-1, keepdim=True)


def _amax(x: Tensor, index: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    values = _joined(x, dim).gather(-1, index).squeeze(-1)
    for d in sorted(_axes(x, dim)) if keepdim else ():
        values = values.unsqueeze(d)
    return values


def _axes(x: Tensor, dim: int | Sequence[int]) -> list[int]:
    return [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)] or list(range(x.ndim))


def _joined(x: Tensor, dim: int | Sequence[int]) -> Tensor:
    axes = _axes(x, dim)
    return x.movedim(axes, list(range(x.ndim - len(axes), x.ndim))).flatten(x.ndim - len(axes))


def _pool_index(pool: Callable[..., Any]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: pool(x, *args, **kwargs | {"return_indices": True})[1]


def _pool(x: Tensor, index: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.flatten(-2).gather(-1, index.flatten(-2)).view(index.shape)


STATISTICS: dict[Any, tuple[Callable[..., Tensor], Callable[..., Any]]] = {
    F.layer_norm: (_layer_norm_scale, _layer_norm),
    F.rms_norm: (_rms_norm_scale, _rms_norm),
    F.group_norm: (_group_norm_scale, _group_norm),
    F.normalize: (_normalize_scale, _normalize),
    F.scaled_dot_product_attention: (attention_weights, _attend),
    F.max_pool2d: (_pool_index(F.max_pool2d), _pool),
    F.adaptive_max_pool2d: (_pool_index(F.adaptive_max_pool2d), _pool),
    torch.amax: (_amax_index, _amax),
    Tensor.amax: (_amax_index, _amax),
    torch.max: (_max_index, _max),
    Tensor.max: (_max_index, _max),
}
"""For each normalisation, attention and maximum: how its statistics are read, and how it is applied with given ones."""


def mha_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    **_: Any,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], Callable[[Tensor], tuple[Tensor, None]]]:
    """Split a call of `F.multi_head_attention_forward` into what precedes and what follows the attention weights.

    Returns
    -------
    tuple of Tensor
        Queries, keys, values, each (B, heads, length, d), and the mask.
    callable
        From the weighted values (B, heads, queries, d) to what the call returns.
    """
    separate = (q_proj_weight, k_proj_weight, v_proj_weight)
    weights: Any = separate if use_separate_proj_weight or in_proj_weight is None else in_proj_weight.chunk(3)
    biases: Any = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)

    def heads(x: Tensor, weight: Any, bias: Any) -> Tensor:  # (length, B, E) -> (B, heads, length, d)
        each: Tensor = F.linear(x, weight, bias).unflatten(-1, (num_heads, -1))
        return each.permute(1, 2, 0, 3)

    q, k, v = map(heads, (query, key, value), weights, biases)
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.unflatten(0, (-1, num_heads))
    if key_padding_mask is not None:
        hidden = key_padding_mask[:, None, None]
        hidden = torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, float("-inf"))
        attn_mask = hidden if attn_mask is None else hidden + attn_mask

    def finish(weighted: Tensor) -> tuple[Tensor, None]:
        return F.linear(weighted.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias), None

    return (q, k, v, attn_mask), finish


def conv_as_linear(func: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, tuple[Any, ...], Any]:
    """Replace a 1x1 convolution of one position by the linear layer that it is: far faster for small batches."""
    x, weight = args[:2]
    others = dict(zip(("bias", "stride", "padding", "dilation", "groups"), args[2:], strict=False)) | dict(kwargs)
    plain = others.get("padding", 0) in (0, (0, 0), "valid", "same") and others.get("groups", 1) == 1
    if func is not F.conv2d or x.shape[2:] != (1, 1) or weight.shape[2:] != (1, 1) or not plain:
        return func, args, kwargs
    return _linear, (x, weight, others.get("bias")), {}


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.flatten(1), weight.flatten(1), bias)[..., None, None]


def take_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Return a function's first argument, however it was passed, and the others."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["input"], args, {name: value for name, value in kwargs.items() if name != "input"}
