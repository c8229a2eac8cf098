"""What a tail is given of the picture, as a sum over positions; and what a slope of the tail says of each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from camhook.adapters.base import Layout
from camhook.decompose.maps import class_maps

__all__ = ["FeatureSource", "MeanSource", "ReadSource", "Source", "WeightedSource"]


class Source(Protocol):
    """One tensor that a tail is a function of.

    Attributes
    ----------
    full, rest : Tensor
        The tensor as it is, and without the positions' part; batched along the first axis.
    grid_size : tuple of int
        Grid (h, w) of its positions.
    """

    full: Tensor
    rest: Tensor
    grid_size: tuple[int, int]

    def maps(self, slopes: Tensor) -> Tensor:
        """Turn slopes (B, T, *full.shape[1:]) into maps (B, T, h, w), whose mean is the positions' part."""
        ...

    def alone(self, start: int, stop: int) -> Tensor:
        """Return what each of these positions adds, times the number of positions; those of one image in a row."""
        ...


@dataclass
class MeanSource:
    """The mean vector of the positions (B, C, h, w), which is all that a pooled head sees of them."""

    positions: Tensor

    def __post_init__(self) -> None:
        self.full = self.positions.mean((2, 3))
        self.rest = torch.zeros_like(self.full)
        self.grid_size = (self.positions.shape[2], self.positions.shape[3])

    def maps(self, slopes: Tensor) -> Tensor:
        """Return the class activation maps with these weights."""
        return class_maps(slopes, self.positions)

    def alone(self, start: int, stop: int) -> Tensor:
        """Return each position's own vector."""
        return self.positions.flatten(2)[..., start:stop].mT.flatten(0, 1)


@dataclass
class WeightedSource:
    """The mean vector of positions (B, C, h, w) weighted by (B, N), which add up to 1: attention as pooling weights."""

    positions: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        self.full = torch.einsum("bcn,bn->bc", self.positions.flatten(2), self.weights)
        self.rest = torch.zeros_like(self.full)
        self.grid_size = (self.positions.shape[2], self.positions.shape[3])

    def maps(self, slopes: Tensor) -> Tensor:
        """Return class activation maps times the weights, times the number of positions."""
        weights = self.weights.view(-1, 1, *self.grid_size) * self.weights.shape[1]
        return class_maps(slopes, self.positions) * weights

    def alone(self, start: int, stop: int) -> Tensor:
        """Return each position's own weighted vector."""
        weights = self.weights[:, None, start:stop] * self.weights.shape[1]
        return (self.positions.flatten(2)[..., start:stop] * weights).mT.flatten(0, 1)


@dataclass
class FeatureSource:
    """The whole features, for a tail that does not treat all positions alike; prefix tokens belong to the rest."""

    features: Tensor
    layout: Layout
    grid_size: tuple[int, int]

    def __post_init__(self) -> None:
        self.full = self.features
        positions, prefix = self.layout.split(self.features, self.grid_size)
        self.rest = self.layout.join(torch.zeros_like(positions), prefix)

    def maps(self, slopes: Tensor) -> Tensor:
        """Return the sum over channels of slope times feature, times the number of positions."""
        batch, targets = slopes.shape[:2]
        slopes = self.layout.split(slopes.flatten(0, 1), self.grid_size)[0].unflatten(0, (batch, targets))
        positions = self.layout.split(self.features, self.grid_size)[0]
        return torch.einsum("btchw,bchw->bthw", slopes, positions) * (self.grid_size[0] * self.grid_size[1])

    def alone(self, start: int, stop: int) -> Tensor:
        """Return features that hold one position each."""
        positions, prefix = self.layout.split(self.features, self.grid_size)
        count = self.grid_size[0] * self.grid_size[1]
        holds = torch.eye(count, dtype=positions.dtype, device=positions.device)[start:stop] * count
        each = torch.einsum("bcn,pn->bpcn", positions.flatten(2), holds).flatten(0, 1).unflatten(2, self.grid_size)
        return self.layout.join(each, None if prefix is None else prefix.repeat_interleave(stop - start, 0))


@dataclass
class ReadSource:
    """What class tokens read in one attention call: the sum over positions of weight times value.

    Parameters
    ----------
    weights
        Attention weights of the class tokens on the positions, (B, heads, rows, N).
    values
        The values there, (B, heads, N, d).
    """

    weights: Tensor
    values: Tensor
    grid_size: tuple[int, int]

    def __post_init__(self) -> None:
        self.full = self.weights @ self.values
        self.rest = torch.zeros_like(self.full)

    def maps(self, slopes: Tensor) -> Tensor:
        """Return, at each position, the weights times the values' products with the slopes (B, T, heads, rows, d)."""
        products = torch.einsum("bthrd,bhnd->bthrn", slopes, self.values)
        maps = torch.einsum("bthrn,bhrn->btn", products, self.weights)
        return maps.view(*maps.shape[:2], *self.grid_size) * (self.grid_size[0] * self.grid_size[1])

    def alone(self, start: int, stop: int) -> Tensor:
        """Return each position's weighted value."""
        weights, values = self.weights[..., start:stop], self.values[..., start:stop, :]
        return torch.einsum("bhrn,bhnd->bnhrd", weights, values).flatten(0, 1) * self.weights.shape[-1]
