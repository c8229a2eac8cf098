"""Activations and products, made affine between the rest and the full features, which the two ends then share.

An activation becomes its secant, a product of two live factors its two halves, each factor times the mean of the
other's two values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from camhook.decompose.torch_functions import mapped

__all__ = ["Bend", "acting", "apart", "side_by_side", "single_precision"]

_SINGLE = ContextVar("single", default=False)


@contextmanager
def single_precision() -> Iterator[None]:
    """Take secants in the features' own precision within the block, for what has few steps in double precision."""
    token = _SINGLE.set(True)
    try:
        yield
    finally:
        _SINGLE.reset(token)


class Bend:
    """One activation or product of the tail: its operands at the full features and at the rest."""

    def __init__(self, func: Callable[..., Tensor], full: tuple[Tensor, ...]) -> None:
        self.func, self.full = func, full
        self.rest: tuple[Tensor, ...] = ()
        self.seen: tuple[Tensor, ...] = ()
        self.base: Tensor
        self.slopes: tuple[Tensor, ...] = ()

    def settle(self, rest: tuple[Tensor, ...], base: Tensor) -> None:
        """Note the operands and the value at the rest, which fixes the affine step between the two."""
        self.rest, self.base = rest, base
        if len(rest) == 1:
            self.slopes = (_secant(self.func, rest[0], self.full[0]),)
        else:
            self.slopes = tuple((a + b) / 2 for a, b in zip(rest, self.full, strict=True))

    def straight(self, operands: tuple[Tensor, ...], repeat: Callable[[Tensor], Tensor]) -> Tensor:
        """Take the affine step for other operands; `repeat` gives what is kept as many rows as these have."""
        rest, slopes = tuple(map(repeat, self.rest)), tuple(map(repeat, self.slopes))
        if len(rest) == 1:
            return repeat(self.base) + slopes[0] * (operands[0] - rest[0])
        first, second = operands[0] - rest[0], operands[1] - rest[1]
        return repeat(self.base) + self.func(first, slopes[1]) + self.func(slopes[0], second)

    def is_off(self, share: float) -> bool:
        """Tell whether an operand seen in between has left the straight line at `share` of the way."""
        return any(
            bool((seen - torch.lerp(rest, full, share)).abs().max() > 1e-6 * (full.abs().max() + rest.abs().max()))
            for seen, rest, full in zip(self.seen, self.rest, self.full, strict=True)
        )


def side_by_side(full: Tensor, rest: Tensor) -> Tensor:
    """Put the two ends of each image in a row, (2 * B, ...)."""
    return torch.stack((full, rest), 1).flatten(0, 1)


def apart(both: Tensor) -> tuple[Tensor, Tensor]:
    """Return the full and the rest of `side_by_side`."""
    full, rest = both.unflatten(0, (-1, 2)).unbind(1)
    return full, rest


def acting(func: Any, args: Any, kwargs: Any) -> Callable[[Tensor], Tensor]:
    """Return an activation with its other arguments, as a function of one tensor that it leaves alone."""

    def act(x: Tensor) -> Tensor:
        rest = mapped(lambda v: v.to(x.dtype) if isinstance(v, Tensor) else v, args, kwargs)
        result: Tensor = func(x.clone(), *rest[0], **rest[1])  # a copy, for it may act in place
        return result

    return act


def _secant(act: Callable[[Tensor], Tensor], rest: Tensor, full: Tensor) -> Tensor:
    """Return (act(full) - act(rest)) / (full - rest), and the slope half-way where the two all but coincide."""
    is_single = rest.device.type == "mps" or _SINGLE.get()
    wide, short, small = (torch.float32, 1e-2, 1e-3) if is_single else (torch.float64, 1e-5, 1e-8)
    start, end = rest.to(wide), full.to(wide)
    first, last = act(start), act(end)
    step, rise, size = end - start, last - first, last.abs() + first.abs()
    near = (step.abs() < short) & (rise.abs() <= small * size)  # too little to be told from rounding
    with torch.enable_grad():
        middle = (start + step / 2).requires_grad_()
        (slope,) = torch.autograd.grad(act(middle).sum(), middle)
    return torch.where(near, slope, rise / torch.where(near, 1, step)).to(rest.dtype)
