"""Weighted, centred second moments of features and targets in float64: the sufficient statistics of least squares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from camhook.distributed import Ranks

__all__ = ["Moments"]


@dataclass
class Moments:
    """Weighted moments of features x (C) and targets y (K) about their means; float64.

    Attributes
    ----------
    count, class_counts : Tensor
        Number of images, and of those with a positive target (K,): int64, unweighted.
    weight : Tensor
        w = sum of w_i, of shape ().
    feature_mean, target_mean : Tensor
        (C,) and (K,).
    gram, cross, square : Tensor
        Sums of w_i (x_i - mean) (x_i - mean)^T, (C, C); of w_i (y_i - mean) (x_i - mean)^T, (K, C); and of
        w_i (y_i - mean)^2, (K,).

    Notes
    -----
    Two sets merge without cancellation: their moments add up, plus w_a w_b / (w_a + w_b) times the outer product of the
    differences of their means (Chan, Golub and LeVeque 1983, doi 10.1080/00031305.1983.10483115).
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
        c, k = num_features, num_targets
        shapes: tuple[tuple[int, ...], ...] = ((), (k,), (), (c,), (k,), (c, c), (k, c), (k,))
        kinds = [torch.int64] * 2 + [torch.float64] * 6
        return cls(*(torch.zeros(s, dtype=kind, device=device) for s, kind in zip(shapes, kinds, strict=True)))

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """Return the moments of all parts' images together, in new tensors."""
        first, *rest = parts
        total = cls(**{name: value.clone() for name, value in vars(first).items()})
        for part in rest:
            total.merge(part)
        return total

    def add(self, features: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Count images: features (n, C), targets (n, K), weights (n,); float64."""
        self.count += len(features)
        self.class_counts += (targets > 0).sum(0)
        weight = weights.sum()
        if not weight > 0:
            return
        feature_mean, target_mean = weights @ features / weight, weights @ targets / weight
        centred, residuals = features - feature_mean, targets - target_mean
        weighted = weights[:, None] * centred
        self.gram.addmm_(weighted.T, centred)
        self.cross.addmm_(residuals.T, weighted)
        self.square += weights @ residuals.square()
        self._merge_means(weight, feature_mean, target_mean)

    def merge(self, other: Moments) -> None:
        """Count another's images too."""
        self.count += other.count
        self.class_counts += other.class_counts
        if other.weight > 0:
            self.gram += other.gram
            self.cross += other.cross
            self.square += other.square
            self._merge_means(other.weight, other.feature_mean, other.target_mean)

    def all_reduce(self, ranks: Ranks) -> None:
        """Count the images of all ranks; every rank must call."""
        weight = ranks.sum_(self.weight.clone())
        share = self.weight / weight if weight > 0 else weight
        total = self.about(ranks.sum_(share * self.feature_mean), ranks.sum_(share * self.target_mean))
        for name in ("count", "class_counts", "gram", "cross", "square"):
            setattr(self, name, ranks.sum_(getattr(total, name)))
        self.weight, self.feature_mean, self.target_mean = weight, total.feature_mean, total.target_mean

    def about(self, feature_mean: Tensor, target_mean: Tensor) -> Moments:
        """Return the moments about other means than their own (``feature_mean`` and ``target_mean`` of the result)."""
        moved = Moments.merged([self])
        moved._add_outer(self.weight, self.feature_mean - feature_mean, self.target_mean - target_mean)
        moved.feature_mean, moved.target_mean = feature_mean, target_mean
        return moved

    def deviation(self) -> Tensor:
        """Return the features' standard deviations (C,), with 1 for constant features."""
        found = (self.gram.diagonal() / self.weight).sqrt()
        varies = found > 1e-12 * self.feature_mean.abs()  # rounding gives a constant feature a deviation too
        return torch.where(varies, found, 1.0)

    def _merge_means(self, weight: Tensor, feature_mean: Tensor, target_mean: Tensor) -> None:
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
