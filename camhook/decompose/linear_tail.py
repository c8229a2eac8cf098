"""A tail with norms, attention weights and winners held still and activations straightened: an affine function.

Inside a tail, some steps keep a score from being a sum over positions. Four kinds are held at their values for the
images at hand: the scale of a normalisation, the weights of an attention, the winners of a maximum, a live denominator.
The other two are replaced by what is affine and agrees with them at the rest and at the full features: an activation
by its secant, a product of two live factors by its two halves, each factor times the mean of the other's two values.
So whatever the depth of the tail, its change from the rest to the full features is the sum, without remainder, of what
its inputs change times one slope each (the rescale rule of Shrikumar et al. 2017, arXiv 1704.02685; with one activation
it is the path integral of Sundararajan et al. 2017 in closed form).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from camhook.decompose.secants import Bend, acting, apart, side_by_side
from camhook.decompose.torch_functions import (
    ACTIVATIONS,
    DIVISIONS,
    HELD,
    PRODUCTS,
    STATISTICS,
    mapped,
    mha_parts,
    tensors_of,
)

__all__ = ["FrozenTail"]

Phase = Literal["full", "rest", "both", "held", "straight", "look"]
_HALF = (torch.float16, torch.bfloat16)


class FrozenTail:
    """A tail with the statistics of the images at hand held still.

    Parameters
    ----------
    tail
        Function from features to logits, all batched along the first axis.
    full, rest
        The features as they are, and the same with the positions' part taken out.
    at_once
        Run the tail on the two together, for which it has to take more features than there are images.

    Attributes
    ----------
    logits, offset : Tensor
        The tail's value at the full features and, with all statistics held, at the rest; shape (B, K).
    kinds : set of str
        What was held: ``"norm"``, ``"attention"``, ``"max"``, ``"bend"`` (an activation or a product), ``"conv"``.
    """

    def __init__(
        self, tail: Callable[..., Tensor], full: Sequence[Tensor], rest: Sequence[Tensor], *, at_once: bool = False
    ) -> None:
        self._tail = tail
        self._ends = list(zip(full, rest, strict=True))
        self.kinds: set[str] = set()
        self.statistics: list[Tensor] = []
        self.bends_met: list[Bend] = []
        self._given = [each.detach().requires_grad_() for each in full]
        self._straight: Tensor | None = None
        if at_once:
            with torch.enable_grad():
                both = [side_by_side(each, base) for each, base in zip(self._given, rest, strict=True)]
                self._straight, offset = apart(self._run(both, "both", 2))
            self.logits, self.offset = self._straight.detach(), offset.detach()
            return
        with torch.no_grad():
            self.logits = self._run(full, "full")
            self.offset = self._run(rest, "rest")

    def slopes(self, targets: Tensor) -> list[Tensor]:
        """Return how each wanted logit, targets (B, T), goes up with each of the features, (B, T, ...)."""
        with torch.enable_grad():
            straight = self(*self._given, straight=True) if self._straight is None else self._straight
            wanted = straight.gather(1, targets)
            count = wanted.shape[1]
            if count == 1 or isinstance(wanted, FakeTensor):  # what is being recorded cannot be batched
                each = [
                    torch.autograd.grad(one.sum(), self._given, retain_graph=True, materialize_grads=True)
                    for one in wanted.unbind(1)
                ]
                return [torch.stack(of_feature, 1) for of_feature in zip(*each, strict=True)]
            ones = torch.eye(count, dtype=wanted.dtype, device=wanted.device)[:, None].expand(-1, len(wanted), -1)
            batched = torch.autograd.grad(
                wanted, self._given, ones, retain_graph=True, is_grads_batched=True, materialize_grads=True
            )
        return [of_feature.transpose(0, 1) for of_feature in batched]

    def __call__(self, *features: Tensor, straight: bool, repeats: int = 1) -> Tensor:
        """Run the tail with everything held; differentiable in `features`.

        Parameters
        ----------
        features
            As many as the images at hand times `repeats`, those of one image in a row.
        straight
            Replace activations and products by what is affine; else let them act.
        """
        return self._run(features, "straight" if straight else "held", repeats)

    def is_bent(self, share: float) -> bool:
        """Tell whether some activation's input leaves the straight line, at `share` of the way from the rest."""
        with torch.no_grad():
            self._run([torch.lerp(rest, full, share) for full, rest in self._ends], "look")
        return any(bend.is_off(share) for bend in self.bends_met)

    def _run(self, features: Sequence[Tensor], phase: Phase, repeats: int = 1) -> Tensor:
        # The tail may begin with an in-place step: it must meet neither a leaf nor the captured tensor itself.
        features = [each * 1 for each in features]
        with torch.autocast(features[0].device.type, enabled=False), _Hold(self, phase, repeats, features):
            return self._tail(*features)


class _Hold(TorchFunctionMode):
    """Meets every torch function within a tail, tells what depends on the features, and holds what has to be held."""

    def __init__(self, owner: FrozenTail, phase: Phase, repeats: int, features: Sequence[Tensor]) -> None:
        super().__init__()
        self._owner, self._phase, self._repeats, self._dtype = owner, phase, repeats, features[0].dtype
        self._rows = features[0].shape[0]
        self._live = WeakIdKeyDictionary()
        self._mark(features)
        self._next_statistic = self._next_bend = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = tuple(args), dict(kwargs or {})
        tensors = tensors_of(args, kwargs)
        if not any(t in self._live for t in tensors):
            if any(t.dtype in _HALF and not t.is_meta for t in tensors):  # constants are widened too
                args, kwargs = mapped(self._usable, args, kwargs)
            return func(*args, **kwargs)
        if func in (Tensor.to, Tensor.type_as) and args[0] not in self._live:
            return func(*args, **kwargs)  # a constant, brought to the type of something live, stays one
        if getattr(func, "__name__", "") == "__get__":  # .shape and the like; .mT is alive too
            return self._mark(func(*args, **kwargs))
        return self._mark(self._step(func, args, kwargs))

    def _step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        live = [isinstance(a, Tensor) and a in self._live for a in args]
        args, kwargs = mapped(self._usable, args, kwargs)
        if func is F.multi_head_attention_forward:
            (q, k, v, mask), finish = mha_parts(*args, **kwargs)
            return finish(self._statistic(F.scaled_dot_product_attention, (q, k, v, mask), {}))
        if func is F.glu:
            x, args, kwargs = _take_input(args, kwargs)
            values, gates = x.chunk(2, kwargs.get("dim", *args or (-1,)))
            return self._bend(torch.mul, (values, self._bend(torch.sigmoid, (gates,))))
        if func in (torch.max, Tensor.max, torch.maximum) and len(args) > 1 and isinstance(args[1], Tensor):
            return self._bend(torch.relu, (args[0] - args[1],)) + args[1]
        if func in STATISTICS:
            return self._statistic(func, args, kwargs)
        if func in PRODUCTS and all(live[:2]):
            return self._bend(PRODUCTS[func], args[:2])
        if func is torch.einsum and sum(live) == 2:
            return self._bend(lambda a, b: torch.einsum(args[0], a, b), args[1:3])
        if func in DIVISIONS and all(live[1:2]) and len(live) > 1:
            return args[0] / self._held(lambda full: full(args[1]))
        if func in ACTIVATIONS:
            x, args, kwargs = _take_input(args, kwargs)
            return self._bend(acting(func, args, kwargs), (x,))
        if func is F.conv2d and (linear := _as_linear(*args, **kwargs)) is not None:
            return linear
        result = func(*args, **kwargs)
        if "conv" in getattr(func, "__name__", "") and max(args[1].shape[2:]) > 1 and result[0, 0].numel() > 1:
            self._owner.kinds.add("conv")  # positions go on, and are mixed
        return result

    def _statistic(self, func: Any, args: Any, kwargs: Any) -> Any:
        read, apply = STATISTICS[func]
        x, args, kwargs = _take_input(args, kwargs)
        self._owner.kinds.add(_kind(func))

        def statistic(full: Callable[[Any], Any]) -> Tensor:
            at_full = mapped(full, args, kwargs)
            return read(full(x), *at_full[0], **at_full[1])

        return apply(x, self._held(statistic), *args, **kwargs)

    def _held(self, read: Callable[[Callable[[Any], Any]], Tensor]) -> Tensor:
        """Return a statistic's value at the full features, `read` off what is given those; it has no slope."""
        if self._phase in ("full", "both"):
            with torch.no_grad():
                self._owner.statistics.append(read(self._at_full))
        held = self._owner.statistics[self._next_statistic]
        self._next_statistic += 1
        return self._repeat(held)

    def _bend(self, func: Callable[..., Tensor], operands: tuple[Tensor, ...]) -> Tensor:
        bends = self._owner.bends_met
        if self._phase == "both":
            self._owner.kinds.add("bend")
            full, rest = zip(*map(apart, operands), strict=True)
            with torch.no_grad():
                bend, rest = Bend(func, full), tuple(each.detach() for each in rest)
                bend.settle(rest, func(*rest))
            bends.append(bend)
            return side_by_side(bend.straight(full, lambda value: value), bend.base)
        if self._phase == "full":
            self._owner.kinds.add("bend")
            bends.append(Bend(func, operands))
            return func(*operands)
        bend = bends[self._next_bend]
        self._next_bend += 1
        if self._phase == "straight":
            return bend.straight(operands, self._repeat)
        if self._phase == "look":
            bend.seen = operands
        value = func(*operands)
        if self._phase == "rest":
            bend.settle(operands, value)
        return value

    def _at_full(self, value: Any) -> Any:
        """Return the full features' half of what has one row for each image and end."""
        if self._phase == "both" and isinstance(value, Tensor) and value.ndim and value.shape[0] == self._rows:
            return apart(value)[0]
        return value

    def _usable(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.dtype in _HALF and self._dtype not in _HALF:
            return value.to(self._dtype)
        return value.clone() if value.is_inference() else value  # autograd refuses to save inference tensors

    def _repeat(self, value: Tensor) -> Tensor:
        return value if self._repeats == 1 else value.repeat_interleave(self._repeats, 0)

    def _mark(self, result: Any) -> Any:
        for leaf in tensors_of((result,)):
            if leaf.is_floating_point():
                self._live[leaf] = None
        return result


def _kind(func: Any) -> str:
    if func in HELD:
        return "attention" if "softmax" in func.__name__ else "norm"
    if func is F.scaled_dot_product_attention:
        return "attention"
    return "norm" if "norm" in func.__name__ else "max"


def _as_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    """Take a convolution of one position by one as the linear layer that it is: far faster for few rows."""
    if x.shape[2:] != (1, 1) or weight.shape[2:] != (1, 1) or groups > 1 or padding not in (0, (0, 0), "valid", "same"):
        return None
    return F.linear(x.flatten(1), weight.flatten(1), bias)[..., None, None]


def _take_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    return kwargs.pop("input"), args, kwargs
