"""Inputs of a tail: each a sum over positions plus a baseline; from multipliers to maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from camhook.decompose.maps import class_maps

__all__ = ["AttentionInput", "FeatureMapInput", "MeanInput", "PositionAxes", "TailInput", "WeightedMeanInput"]


class PositionAxes(Protocol):
    """How the positions of a feature tensor are laid out; `camhook.adapters.Layout` is one."""

    def split(self, features: Tensor, grid_size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Return the positions (B, C, h, w) and the prefix tokens (B, P, C) or None."""
        ...

    def join(self, positions: Tensor, prefix: Tensor | None) -> Tensor:
        """Undo `split`."""
        ...


class TailInput(Protocol):
    """A tensor that a tail reads.

    Attributes
    ----------
    value, baseline : Tensor
        The tensor as it is, and without the contribution of any position.
    grid_size : tuple of int
        Grid (h, w) of its positions.
    """

    value: Tensor
    baseline: Tensor
    grid_size: tuple[int, int]

    def maps(self, multipliers: Tensor) -> Tensor:
        """Turn multipliers (B, T, *value.shape[1:]) into maps (B, T, h, w), whose mean is the positions' part."""
        ...

    def contributions(self, start: int, stop: int) -> Tensor:
        """Return what each of these positions contributes, times the number of positions, (stop - start, B, ...)."""
        ...


@dataclass
class MeanInput:
    """The mean over positions (B, C, h, w): all that a head with global average pooling reads of them."""

    positions: Tensor

    def __post_init__(self) -> None:
        self.value = self.positions.mean((2, 3))
        self.baseline = torch.zeros_like(self.value)
        self.grid_size = (self.positions.shape[2], self.positions.shape[3])

    def maps(self, multipliers: Tensor) -> Tensor:
        """Return the class activation maps with the multipliers as weights."""
        return class_maps(multipliers, self.positions)

    def contributions(self, start: int, stop: int) -> Tensor:
        """Return each position's feature vector, (stop - start, B, C)."""
        return self.positions.flatten(2)[..., start:stop].permute(2, 0, 1)


@dataclass
class WeightedMeanInput:
    """The mean over positions (B, C, h, w) weighted by (B, N), which add up to 1: attention as pooling weights."""

    positions: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        self.value = torch.einsum("bcn,bn->bc", self.positions.flatten(2), self.weights)
        self.baseline = torch.zeros_like(self.value)
        self.grid_size = (self.positions.shape[2], self.positions.shape[3])

    def maps(self, multipliers: Tensor) -> Tensor:
        """Return class activation maps times the weights, times the number of positions."""
        weights = self.weights.view(-1, 1, *self.grid_size) * self.weights.shape[1]
        return class_maps(multipliers, self.positions) * weights

    def contributions(self, start: int, stop: int) -> Tensor:
        """Return each position's weighted feature vector, (stop - start, B, C)."""
        weights = self.weights[:, None, start:stop] * self.weights.shape[1]
        return (self.positions.flatten(2)[..., start:stop] * weights).permute(2, 0, 1)


@dataclass
class FeatureMapInput:
    """The whole feature tensor, for a tail that treats positions differently; prefix tokens belong to the baseline."""

    features: Tensor
    axes: PositionAxes
    grid_size: tuple[int, int]

    def __post_init__(self) -> None:
        self.value = self.features
        positions, prefix = self.axes.split(self.features, self.grid_size)
        self.baseline = self.axes.join(torch.zeros_like(positions), prefix)

    def maps(self, multipliers: Tensor) -> Tensor:
        """Return the sum over channels of multiplier times feature, times the number of positions."""
        multipliers = self.axes.split(multipliers.flatten(0, 1), self.grid_size)[0].unflatten(0, multipliers.shape[:2])
        positions = self.axes.split(self.features, self.grid_size)[0]
        maps: Tensor = torch.einsum("btchw,bchw->bthw", multipliers, positions)
        return maps * (self.grid_size[0] * self.grid_size[1])

    def contributions(self, start: int, stop: int) -> Tensor:
        """Return feature tensors that hold one position each, (stop - start, B, ...)."""
        positions, prefix = self.axes.split(self.features, self.grid_size)
        count = self.grid_size[0] * self.grid_size[1]
        one_hot = torch.eye(count, dtype=positions.dtype, device=positions.device)[start:stop] * count
        each = torch.einsum("bcn,pn->pbcn", positions.flatten(2), one_hot).flatten(0, 1).unflatten(2, self.grid_size)
        if prefix is not None:
            prefix = prefix.new_zeros((each.shape[0], *prefix.shape[1:]))
        features: Tensor = self.axes.join(each, prefix).unflatten(0, (stop - start, positions.shape[0]))
        return features


@dataclass
class AttentionInput:
    """What class tokens read in one attention call: the sum over positions of weight times value.

    Parameters
    ----------
    weights
        Attention weights of the class tokens on the positions, (B, heads, tokens, N).
    values
        The values there, (B, heads, N, d).
    """

    weights: Tensor
    values: Tensor
    grid_size: tuple[int, int]

    def __post_init__(self) -> None:
        self.value = self.weights @ self.values
        self.baseline = torch.zeros_like(self.value)

    def maps(self, multipliers: Tensor) -> Tensor:
        """Return, per position, weights times the values' products with the multipliers (B, T, heads, tokens, d)."""
        products = torch.einsum("bthrd,bhnd->bthrn", multipliers, self.values)
        maps = torch.einsum("bthrn,bhrn->btn", products, self.weights)
        return maps.view(*maps.shape[:2], *self.grid_size) * (self.grid_size[0] * self.grid_size[1])

    def contributions(self, start: int, stop: int) -> Tensor:
        """Return each position's weighted value, (stop - start, B, heads, tokens, d)."""
        weights, values = self.weights[..., start:stop], self.values[..., start:stop, :]
        return torch.einsum("bhrn,bhnd->nbhrd", weights, values) * self.weights.shape[-1]
