"""Norms, attention weights and activations held still, so that what follows the features becomes an affine function.

Inside a tail, three kinds of step keep a score from being a sum over positions: the scale of a normalisation, the
weights of an attention, and an activation. `FrozenTail` notes their values for the images at hand and then runs the
tail again with those values held. Norm scales and attention weights stay what they were; an activation becomes its
secant between the rest and the full features, which is exactly the path integral of its slope when its input moves
along a straight line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["FrozenTail"]

_HALF = (torch.float16, torch.bfloat16)

# Steps whose whole result is held: attention weights, and the scales from which norms are composed by hand.
_HELD = {
    F.softmax,
    torch.softmax,
    Tensor.softmax,
    torch.rsqrt,
    Tensor.rsqrt,
    torch.norm,
    Tensor.norm,
    torch.linalg.norm,
    torch.linalg.vector_norm,
    torch.std,
    Tensor.std,
}

_ACTIVATIONS = {
    F.celu, F.elu, F.gelu, F.hardshrink, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.logsigmoid, F.mish,
    F.prelu, F.relu, F.relu6, F.rrelu, F.selu, F.sigmoid, F.silu, F.softplus, F.softshrink, F.softsign, F.tanh,
    F.tanhshrink, F.threshold, torch.celu, torch.clamp, torch.prelu, torch.relu, torch.selu, torch.sigmoid, torch.tanh,
    Tensor.clamp, Tensor.relu, Tensor.sigmoid, Tensor.tanh,
}  # fmt: skip


# The signatures below are those of torch's own functions, so that keyword arguments arrive where they should.
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
    return x.reshape(len(x), num_groups, -1, *x.shape[2:]).flatten(2)


def _normalize_scale(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, p, dim, keepdim=True)
    return length.clamp_min(eps).reciprocal()


def _normalize(x: Tensor, scale: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    return x * scale


# How a norm's scale is read off its input, and how the norm is applied with a given scale.
_NORMS: dict[Any, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    F.layer_norm: (_layer_norm_scale, _layer_norm),
    F.rms_norm: (_rms_norm_scale, _rms_norm),
    F.group_norm: (_group_norm_scale, _group_norm),
    F.normalize: (_normalize_scale, _normalize),
}


class _Step:
    """One norm or activation of the tail, in order of execution, and its values for the images at hand."""

    def __init__(self, held: Tensor) -> None:
        self.held = held  # a norm's scale, an attention's weights, an activation's input at the full features
        self.rest: Tensor | None = None  # an activation's input at the rest
        self.base: Tensor | None = None  # its value there
        self.slope: Tensor | None = None  # the secant from the rest to the full features
        self.seen: Tensor | None = None  # an activation's input when the tail was last looked at in between


class FrozenTail:
    """A tail with the statistics of the images at hand held still.

    Parameters
    ----------
    tail
        Function from features to logits, both batched along the first axis.
    full, rest
        The features as they are, and the same with the positions' part taken out.

    Attributes
    ----------
    logits, offset : Tensor
        The tail's value at the full features and, with norms and attention held, at the rest; shape (B, K).
    has_norms, has_activations : bool
        Whether the tail holds such steps.
    """

    def __init__(self, tail: Callable[[Tensor], Tensor], full: Tensor, rest: Tensor) -> None:
        self._tail = tail
        self._norms: list[_Step] = []
        self._activations: list[_Step] = []
        with torch.no_grad():
            self.logits = self._run(full, "record")
            self.offset = self._run(rest, "rest")
        self.has_norms = bool(self._norms)
        self.has_activations = bool(self._activations)

    def __call__(self, features: Tensor, *, secants: bool, repeats: int = 1) -> Tensor:
        """Run the tail with everything held; differentiable in `features`.

        Parameters
        ----------
        features
            As many as the images at hand times `repeats`, those of one image in a row.
        secants
            Replace activations by their secants, which makes the result affine in `features` where no activation feeds
            another; else let them act.
        """
        return self._run(features, "secant" if secants else "norms", repeats)

    def bends(self, features: Tensor, share: float) -> bool:
        """Tell whether some activation's input leaves the straight line, at `share` of the way from the rest."""
        with torch.no_grad():
            self._run(features, "look")
        for step in self._activations:
            assert step.rest is not None
            assert step.seen is not None
            straight = torch.lerp(step.rest, step.held, share)
            if (step.seen - straight).abs().max() > 1e-6 * (step.held.abs().max() + step.rest.abs().max()):
                return True
        return False

    def _run(self, features: Tensor, phase: str, repeats: int = 1) -> Tensor:
        # The tail may begin with an in-place step: it must meet neither a leaf nor the captured tensor itself.
        features = features * 1
        with torch.autocast(features.device.type, enabled=False), _Hold(self, phase, repeats, features):
            return self._tail(features)


class _Hold(TorchFunctionMode):
    """Meets every torch function within a tail: widens half precision, and records or holds norms and activations."""

    def __init__(self, owner: FrozenTail, phase: str, repeats: int, features: Tensor) -> None:
        super().__init__()
        self._phase, self._repeats, self._dtype = phase, repeats, features.dtype
        self._features = features
        self._begun = False  # steps before the features come into play are none of ours
        self._norms, self._activations = owner._norms, owner._activations
        self._next_norm = self._next_activation = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self._begun = self._begun or any(leaf is self._features for leaf in tree_leaves((args, kwargs)))
        if not self._begun or getattr(func, "__name__", "") == "__get__":  # .shape, .dtype: nothing to compute
            return func(*args, **kwargs)
        args, kwargs = tree_map(self._usable, (tuple(args), kwargs))
        if func in _NORMS:
            return self._norm(*_NORMS[func], args, kwargs)
        if func in _HELD:
            return self._norm(func, lambda x, held, *_, **__: held, args, kwargs)
        if func in _ACTIVATIONS and _has_floats(args, kwargs):
            return self._activation(func, args, kwargs)
        return func(*args, **kwargs)

    def _usable(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.dtype in _HALF and self._dtype not in _HALF:
            return value.to(self._dtype)
        return value.clone() if value.is_inference() else value  # autograd refuses to save inference tensors

    def _norm(self, scale_of: Callable[..., Tensor], apply: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        x, args, kwargs = _take_input(args, kwargs)
        if self._phase == "record":
            self._norms.append(_Step(scale_of(x, *args, **kwargs)))
        held = self._norms[self._next_norm].held
        self._next_norm += 1
        return apply(x, self._repeat(held), *args, **kwargs)

    def _activation(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        x, args, kwargs = _take_input(args, kwargs)

        def act(value: Tensor) -> Tensor:
            rest = tree_map(lambda v: v.to(value.dtype) if isinstance(v, Tensor) else v, (args, kwargs))
            result: Tensor = func(value.clone(), *rest[0], **rest[1])  # a copy, for it may act in place
            return result

        if self._phase == "record":
            self._activations.append(_Step(x))
            return act(x)
        step = self._activations[self._next_activation]
        self._next_activation += 1
        if self._phase == "look":
            step.seen = x
        if self._phase == "rest":
            step.rest, step.base = x, act(x)
            step.slope = _secant(act, x, step.held)
        if self._phase != "secant":
            return act(x)
        assert step.rest is not None
        assert step.base is not None
        assert step.slope is not None
        return self._repeat(step.base) + self._repeat(step.slope) * (x - self._repeat(step.rest))

    def _repeat(self, value: Tensor) -> Tensor:
        return value if self._repeats == 1 else value.repeat_interleave(self._repeats, 0)


def _secant(act: Callable[[Tensor], Tensor], rest: Tensor, full: Tensor) -> Tensor:
    """Return (act(full) - act(rest)) / (full - rest), and the slope half-way where the two all but coincide."""
    wide = torch.float32 if rest.device.type == "mps" else torch.float64
    start, end = rest.to(wide), full.to(wide)
    step = end - start
    near = step.abs() < 1e-5
    with torch.enable_grad():
        middle = (start + step / 2).requires_grad_()
        (slope,) = torch.autograd.grad(act(middle).sum(), middle)
    return torch.where(near, slope, (act(end) - act(start)) / torch.where(near, 1, step)).to(rest.dtype)


def _take_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    return kwargs.pop("input"), args, kwargs


def _has_floats(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    x = args[0] if args else kwargs.get("input")
    return isinstance(x, Tensor) and x.is_floating_point()
