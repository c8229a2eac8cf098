"""Agreement of two maps: Spearman's rank correlation, and overlap of the highest positions."""

from __future__ import annotations

import torch
from torch import Tensor

from camhook.errors import CamhookError
from camhook.metrics.arguments import as_maps
from camhook.metrics.perturbation import ranks
from camhook.metrics.types import Maps

__all__ = ["rank_correlation", "top_overlap"]


def rank_correlation(maps: Maps, others: Maps) -> Tensor:
    """Compute Spearman's rank correlation of maps (B, H, W) over positions, with average ranks for ties.

    Returns (B,), float64, -1 to 1; it is 1 for two constant maps, and 0 for a constant one and one that is not.

    Raises
    ------
    CamhookError
        The shapes differ.

    Examples
    --------
    >>> rank_correlation([[[1.0, 2.0, 9.0]]], [[[-1.0, -2.0, -3.0]]])
    tensor([-1.], dtype=torch.float64)
    """
    first, second = (torch.stack([_average_ranks(m) for m in values.flatten(1)]) for values in _pair(maps, others))
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    energy, energy_other = first.square().sum(1), second.square().sum(1)
    defined = (energy > 0) & (energy_other > 0)
    both_constant = (energy == 0) & (energy_other == 0)
    correlation = (first * second).sum(1) / torch.where(defined, energy * energy_other, 1).sqrt()
    return torch.where(both_constant, 1.0, correlation)


def top_overlap(maps: Maps, others: Maps, *, share: float = 0.2) -> Tensor:
    """Compute the intersection over union of the highest ``share`` of the positions of maps (B, H, W).

    Returns (B,), float64, 0 to 1. Ties are ranked in random order.

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


def _average_ranks(values: Tensor) -> Tensor:
    """Rank a vector, (n,), from 0; equal values share the mean of their ranks."""
    _, where, count = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = (count.cumsum(0) - (count + 1) / 2).double()[where]
    return ranks
