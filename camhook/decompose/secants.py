"""Secants: activations and products of two inputs made affine between the baseline and the value.

An activation is replaced by its secant between the two (the rescale rule of DeepLIFT, Shrikumar et al. 2017, arXiv
1704.02685), a product of two inputs by its two halves: each factor times the mean of the other's two values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from camhook.decompose.arguments import mapped

__all__ = ["Operand", "elementwise", "linearised_activation", "linearised_product", "secant"]


class Operand(NamedTuple):
    """An input of an activation or product, at the value and at the baseline."""

    value: Tensor
    baseline: Tensor


def linearised_activation(act: Callable[[Tensor], Tensor], x: Operand, dtype: torch.dtype) -> Operand:
    """Return an activation replaced by its secant: exact at both ends, affine in ``x.value``.

    Parameters
    ----------
    act
        Elementwise function that leaves its argument unchanged.
    dtype
        Precision in which the secant is computed.
    """
    with torch.no_grad():
        baseline = act(x.baseline)
        multiplier = secant(act, x.baseline, x.value.detach(), dtype)
    return Operand(baseline + multiplier * (x.value - x.baseline), baseline)


def linearised_product(product: Callable[[Tensor, Tensor], Tensor], first: Operand, second: Operand) -> Operand:
    """Return a product of two factors replaced by its two halves: exact at both ends, affine in both values."""
    with torch.no_grad():
        baseline = product(first.baseline, second.baseline)
        means = [(each.baseline + each.value.detach()) / 2 for each in (first, second)]
    halves = product(first.value - first.baseline, means[1]) + product(means[0], second.value - second.baseline)
    return Operand(baseline + halves, baseline)


def elementwise(
    func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Return an activation with its other arguments bound, as a function of one tensor that it leaves unchanged."""

    def act(x: Tensor) -> Tensor:
        others = mapped(lambda v: v.to(x.dtype) if isinstance(v, Tensor) else v, args, kwargs)
        result: Tensor = func(x.clone(), *others[0], **others[1])  # a copy, for it may act in place
        return result

    return act


def secant(act: Callable[[Tensor], Tensor], baseline: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (act(value) - act(baseline)) / (value - baseline), or the slope half-way where the two all but coincide.

    Examples
    --------
    >>> secant(torch.relu, torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 2.0]), torch.float64)
    tensor([0.7500, 1.0000])
    """
    short, small = (1e-5, 1e-8) if dtype == torch.float64 else (1e-2, 1e-3)
    start, end = baseline.to(dtype), value.to(dtype)
    first, last = act(start), act(end)
    step, rise, size = end - start, last - first, last.abs() + first.abs()
    near = (step.abs() < short) & (rise.abs() <= small * size)  # too close to be told from rounding
    with torch.enable_grad():
        middle = (start + step / 2).requires_grad_()
        (slope,) = torch.autograd.grad(act(middle).sum(), middle)
    return torch.where(near, slope, rise / torch.where(near, 1, step)).to(baseline.dtype)
