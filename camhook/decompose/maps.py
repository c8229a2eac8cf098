"""Arithmetic on class activation maps: completeness error, tolerance, contrast, joining of grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["RELATIVE_TOLERANCE", "class_maps", "completeness_error", "contrasted", "joined", "rivals", "tolerance"]

RELATIVE_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a map may miss the logit, relative to its image's largest absolute logit, by the dtype the model ran in."""


def class_maps(weights: Tensor, positions: Tensor) -> Tensor:
    r"""Class activation maps :math:`M_c(p) = \sum_k w_{ck} A_k(p)` (Zhou et al. 2016, equation 2).

    Parameters
    ----------
    weights
        Effective weights, shape (B, T, C).
    positions
        Features, shape (B, C, h, w).

    Returns
    -------
    Tensor
        Maps (B, T, h, w); the mean of one over positions is what positions add to the logit.

    Examples
    --------
    >>> class_maps(torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[[1.0, 3.0]], [[4.0, 1.0]]]]))
    tensor([[[[-2.,  5.]]]])
    """
    return torch.bmm(weights, positions.flatten(2)).view(*weights.shape[:2], *positions.shape[2:])


def completeness_error(maps: Tensor, offset: Tensor, score: Tensor) -> Tensor:
    """Return how far each map's mean plus its offset misses the model's own score, (B, T), in logits."""
    return (maps.mean((2, 3)) + offset - score).abs()


def tolerance(logits: Tensor, *dtypes: torch.dtype) -> Tensor:
    """Return the largest error, (B,), that rounding in the coarsest of these dtypes explains."""
    return max(map(RELATIVE_TOLERANCE.__getitem__, dtypes)) * logits.abs().amax(1)


def rivals(logits: Tensor, target: Tensor, count: int = 10) -> Tensor:
    """Return, for each target (B, T), the other classes with the highest logits, (B, T, count)."""
    count = min(count, logits.shape[1] - 1)
    others = logits[:, None, :].expand(-1, target.shape[1], -1).scatter(2, target[..., None], float("-inf"))
    return others.topk(count, dim=2).indices


def contrasted(values: Tensor, others: Tensor) -> Tensor:
    """Subtract from each class's value (B, T, ...) the mean over those it is contrasted with (B, T, R, ...)."""
    return values - others.mean(2)


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Add up maps (B, T, h, w) of several grids over the same picture, on the finest of them.

    A coarse cell's value, an evidence per area, is given to the fine cells by the area that they share with it, which
    keeps the mean where interpolation does not.

    Examples
    --------
    >>> joined([torch.tensor([[[[3.0, 6.0]]]]), torch.ones(1, 1, 1, 3)])
    tensor([[[[4.0000, 5.5000, 7.0000]]]])
    """
    if len(maps) == 1:
        return maps[0]
    height = max(m.shape[2] for m in maps)
    width = max(m.shape[3] for m in maps)
    total = maps[0].new_zeros(())
    for m in maps:
        rows, columns = (_overlap(old, new).to(m) for old, new in zip(m.shape[2:], (height, width), strict=True))
        total = total + (m if m.shape[2:] == (height, width) else rows @ m @ columns.T)
    return total


def _overlap(old: int, new: int) -> Tensor:
    """Return which share of each of `new` cells of one axis lies in each of `old` cells, (new, old)."""
    ends = (
        torch.arange(1, new + 1, dtype=torch.float64)[:, None] / new,
        torch.arange(1, old + 1, dtype=torch.float64) / old,
    )
    starts = ends[0] - 1 / new, ends[1] - 1 / old
    return (torch.minimum(*ends) - torch.maximum(*starts)).clamp_min(0) * new
