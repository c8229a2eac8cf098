"""Centred second moments of features and targets in float64: all that least squares needs of its data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Moments"]


@dataclass
class Moments:
    """Weighted moments of features x (C) and targets y (K), about their means; float64.

    Attributes
    ----------
    count, class_counts
        Images, and those with a positive target (K,): int64, unweighted.
    weight
        w = sum of w_i, of shape ().
    feature_mean, target_mean
        (C,) and (K,).
    gram
        (C, C): sum of w_i (x_i - mean) (x_i - mean)^T.
    cross
        (K, C): sum of w_i (y_i - mean) (x_i - mean)^T.
    square
        (K,): sum of w_i (y_i - mean)^2.

    Notes
    -----
    Two sets join without cancellation: the moments add, plus w_a w_b / (w_a + w_b) times the product of the steps
    between their means (Chan, Golub and LeVeque 1983, doi 10.1080/00031305.1983.10483115).
    """

    count: Tensor
    class_counts: Tensor
    weight: Tensor
    feature_mean: Tensor
    target_mean: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def empty(cls, num_features: int, num_targets: int, device: torch.device | str = "cpu") -> Moments:
        """Return the moments of no images."""

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        c, k = num_features, num_targets
        counts = zeros(dtype=torch.int64), zeros(k, dtype=torch.int64)
        return cls(*counts, zeros(), zeros(c), zeros(k), zeros(c, c), zeros(k, c), zeros(k))

    @classmethod
    def pooled(cls, parts: Iterable[Moments]) -> Moments:
        """Return the moments of all the parts' images together, in new tensors."""
        first, *rest = parts
        total = cls(**{name: value.clone() for name, value in vars(first).items()})
        for part in rest:
            total.merge(part)
        return total

    def add(self, features: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Count images: features (n, C), targets (n,) int64 labels or (n, K), weights (n,); float64."""
        self.count += len(features)
        single = targets.ndim == 1
        self.class_counts += targets.bincount(minlength=len(self.square)) if single else (targets > 0).sum(0)
        weight = weights.sum()
        if not weight > 0:
            return
        feature_mean = weights @ features / weight
        centred = features - feature_mean
        weighted = weights[:, None] * centred
        self.gram.addmm_(weighted.T, centred)
        if single:  # the rows of a one-hot matrix; its mean drops out, as the weighted rows sum to zero
            target_mean = torch.zeros_like(self.square).index_add_(0, targets, weights) / weight
            self.cross.index_add_(0, targets, weighted)
            self.square += weight * target_mean * (1 - target_mean)
        else:
            target_mean = weights @ targets / weight
            residues = targets - target_mean
            self.cross.addmm_(residues.T, weighted)
            self.square += weights @ residues.square()
        self._join(weight, feature_mean, target_mean)

    def merge(self, other: Moments) -> None:
        """Count another's images too."""
        self.count += other.count
        self.class_counts += other.class_counts
        if other.weight > 0:
            self.gram += other.gram
            self.cross += other.cross
            self.square += other.square
            self._join(other.weight, other.feature_mean, other.target_mean)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Count the images of all ranks; every rank must call."""

        def summed(value: Tensor) -> Tensor:
            value = value.clone()
            dist.all_reduce(value, group=group)
            return value

        weight = summed(self.weight)
        share = self.weight / weight if weight > 0 else weight
        total = self.about(summed(share * self.feature_mean), summed(share * self.target_mean))
        for name in ("count", "class_counts", "gram", "cross", "square"):
            dist.all_reduce(vars(total)[name], group=group)
        vars(self).update(vars(total), weight=weight)

    def about(self, feature_mean: Tensor, target_mean: Tensor) -> Moments:
        """Return the moments about other means than their own (which ``feature_mean``, ``target_mean`` then are)."""
        moved = Moments.pooled([self])
        x, y = self.feature_mean - feature_mean, self.target_mean - target_mean
        moved._add_outer(self.weight, x, y)
        moved.feature_mean, moved.target_mean = feature_mean, target_mean
        return moved

    def deviation(self) -> Tensor:
        """Return the features' standard deviations (C,), and 1 for constant ones."""
        found = (self.gram.diagonal() / self.weight).sqrt()
        varies = found > 1e-12 * self.feature_mean.abs()  # rounding gives a constant feature a deviation too
        return torch.where(varies, found, 1.0)

    def _join(self, weight: Tensor, feature_mean: Tensor, target_mean: Tensor) -> None:
        share = weight / (self.weight + weight)
        x, y = feature_mean - self.feature_mean, target_mean - self.target_mean
        self._add_outer(self.weight * share, x, y)
        self.feature_mean += share * x
        self.target_mean += share * y
        self.weight += weight

    def _add_outer(self, weight: Tensor, x: Tensor, y: Tensor) -> None:
        self.gram.addr_(weight * x, x)
        self.cross.addr_(weight * y, x)
        self.square += weight * y.square()
