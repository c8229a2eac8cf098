"""How alike two maps are: over ranks, and over the places they call strongest."""

from __future__ import annotations

import torch
from torch import Tensor

from camhook.errors import CamhookError
from camhook.metrics.inputs import Maps, as_maps
from camhook.metrics.perturbation import ranks

__all__ = ["rank_correlation", "top_overlap"]


def rank_correlation(maps: Maps, others: Maps) -> Tensor:
    """Spearman's rank correlation over positions, (B,), ties at their mean rank.

    Two constant maps agree (1); of one constant map and one that is not, neither tells of the other (0).

    Raises
    ------
    CamhookError
        The shapes differ.

    Examples
    --------
    >>> rank_correlation([[[1.0, 2.0, 9.0]]], [[[-1.0, -2.0, -3.0]]])
    tensor([-1.], dtype=torch.float64)
    """
    first, second = (torch.stack([_mean_ranks(m) for m in values.flatten(1)]) for values in _pair(maps, others))
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    energy, energy_other = first.square().sum(1), second.square().sum(1)
    defined = (energy > 0) & (energy_other > 0)
    both_constant = (energy == 0) & (energy_other == 0)
    correlation = (first * second).sum(1) / torch.where(defined, energy * energy_other, 1).sqrt()
    return torch.where(both_constant, 1.0, correlation)


def top_overlap(maps: Maps, others: Maps, *, share: float = 0.2) -> Tensor:
    """Intersection over union of the strongest ``share`` of the positions of each map, (B,); ties in a random order.

    Raises
    ------
    CamhookError
        The shapes differ, or the share is not in (0, 1].

    Examples
    --------
    >>> top_overlap([[[4.0, 3.0, 2.0, 1.0]]], [[[4.0, 1.0, 3.0, 2.0]]], share=0.5)
    tensor([0.3333], dtype=torch.float64)
    """
    if not 0 < share <= 1:
        raise CamhookError(f"Found share={share}, expected a share of the positions; pass above 0 and up to 1.")
    first, second = _pair(maps, others)
    count = max(round(share * first[0].numel()), 1)
    top, other = ((ranks(values) < count).flatten(1) for values in (first, second))
    return (top & other).sum(1).double() / (top | other).sum(1)


def _pair(maps: Maps, others: Maps) -> tuple[Tensor, Tensor]:
    first, second = as_maps(maps), as_maps(others)
    if first.shape != second.shape:
        found = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise CamhookError(f"Found maps of shapes {found}, expected the same; upsample both to one size.")
    return first, second


def _mean_ranks(values: Tensor) -> Tensor:
    """Rank a vector, (n,), from 0; equal values share the mean of their places."""
    _, where, count = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = (count.cumsum(0) - (count + 1) / 2).double()[where]
    return ranks
