"""The weights of a probe: ridge regression from moments alone, logistic regression from pooled features."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camhook.errors import CamhookError
from camhook.fitting.logistic import Logistic, Mode
from camhook.fitting.moments import Moments
from camhook.fitting.statistics import Statistics

__all__ = ["Solution", "balanced_weights", "solve_logistic", "solve_ridge"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Solution:
    """A linear head: scores = weight @ features + bias.

    Attributes
    ----------
    weight, bias
        (K, C) and (K,), float64, on the CPU, for features as they come (not standardised).
    penalty
        The one taken.
    curve
        (penalty, cross-validated error) for each that was tried, from small to large; empty where one was given. The
        error is the mean over images and targets of the squared error (ridge), over images of the log loss (logistic).
    converged
        Whether the solver came to its tolerance; a closed form always does.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    curve: tuple[tuple[float, float], ...] = ()
    converged: bool = True


def solve_ridge(
    statistics: Statistics, *, penalty: float | Sequence[float] | None = None, standardize: bool = False
) -> Solution:
    """Solve min over W, b of sum_i w_i ||y_i - W x_i - b||^2 + penalty ||W||^2 from the moments.

    With several penalties each fold is predicted from the others, and the penalty of the least squared error over all
    folds is taken (of equals the larger). One eigendecomposition a fold serves every penalty. The bias is not
    penalised; a penalty of 0 gives the solution of least norm; targets of labels are 0 and 1.

    Parameters
    ----------
    statistics : Statistics
    penalty : float or several, optional
        As ``alpha`` in scikit-learn's ``Ridge``. Default: 1e-8 to 1e2 times the mean eigenvalue of the Gram matrix, two
        a decade.
    standardize : bool
        Penalise ``W * std`` in place of W, as if features had a standard deviation of 1; constant features get 0.

    Raises
    ------
    CamhookError
        Fewer than two images, a class without images, a penalty below 0, or folds too few to choose a penalty by.

    Examples
    --------
    >>> statistics = Statistics(num_features=1, num_targets=1, targets="logits", holdout=0)
    >>> statistics.update([0, 1, 2], torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]]))
    >>> solution = solve_ridge(statistics, penalty=0.0)
    >>> solution.weight.tolist(), solution.bias.tolist()
    ([[2.0]], [1.0])
    """
    statistics.check_classes()
    folds = [fold for fold in statistics.folds if fold.weight > 0]
    total = Moments.pooled(folds or statistics.folds)
    if total.count < 2 or not folds:
        raise CamhookError(f"Found {int(total.count)} images to fit on (with weight), expected 2 or more; add images.")
    penalties = _penalties(_default_grid(total, standardize) if penalty is None else penalty, least=0.0)
    curve: list[tuple[float, float]] = []
    if len(penalties) > 1:
        if len(folds) < 2:
            found = f"all {int(total.count)} images in one fold"
            raise CamhookError(f"Found {found}: no penalty can be chosen; add images, or pass one penalty.")
        errors = sum(
            _fold_errors(Moments.pooled(other for other in folds if other is not fold), fold, penalties, standardize)
            for fold in folds
        )
        mean_errors = errors / (total.weight.cpu() * len(total.square))
        curve = list(zip(penalties, mean_errors.tolist(), strict=True))
    best = _best(curve) if curve else penalties[0]
    values, basis, scale = _eigen(total, standardize)
    shrunk = _shrink(values, best)[:, None] * (basis.T @ (total.cross / scale).T)
    weight = (basis @ shrunk).T / scale
    bias = total.target_mean - weight @ total.feature_mean
    return Solution(weight.cpu(), bias.cpu(), best, tuple(curve))


def solve_logistic(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    mode: Mode = "multinomial",
    penalty: float | Sequence[float] = 1.0,
    weights: Tensor | None = None,
    folds: Tensor | None = None,
    standardize: bool = True,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    rows: int = 8192,
    device: torch.device | str = "cpu",
) -> Solution:
    """Solve min over W, b of sum_i w_i loss(W x_i + b, y_i) + penalty / 2 ||W||^2 by L-BFGS.

    The loss is -log softmax of the true class, or for one-vs-rest the sum over classes of the binary log loss. The bias
    is not penalised. Features are read a block of rows at a time, so they may be a memory-mapped file.

    Parameters
    ----------
    features : Tensor (N, C)
    targets : Tensor
        Labels (N,) int64 or, for one-vs-rest, 0 or 1 for each class (N, K).
    num_classes : int
        K.
    mode : "multinomial" or "one-vs-rest"
    penalty : float or several
        As 1 / C in scikit-learn's ``LogisticRegression``, above 0. Of several the one of least log loss over `folds`.
    weights : Tensor (N,), optional
        0 leaves a row out, whatever it holds.
    folds : Tensor (N,) int64, optional
        Which part a row is in, where several penalties are given.
    standardize : bool
        Penalise as if features had a standard deviation of 1; the result is for features as they come.
    tolerance : float
        On the largest entry of the gradient of the mean loss, for features made uncorrelated and of one spread.
    max_iterations, rows : int
        Of L-BFGS; rows in a block.
    device : str or torch.device
        Where a block is computed, in float64.

    Raises
    ------
    CamhookError
        Shapes or values do not fit, a class has no rows with weight, or there is one class only.

    Examples
    --------
    >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> solution = solve_logistic(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
    >>> (features.double() @ solution.weight.T + solution.bias).argmax(1).tolist()
    [0, 0, 1, 1]
    """
    problem = Logistic(features, targets, num_classes, mode, weights, standardize, rows, device)
    penalties = _penalties(penalty, least=math.ulp(0.0))
    curve: list[tuple[float, float]] = []
    if len(penalties) > 1:
        if folds is None or folds.shape != problem.weights.shape or len(folds.unique()) < 2:
            found = "no folds" if folds is None else f"folds of shape {tuple(folds.shape)}"
            raise CamhookError(
                f"Found {found} for {len(penalties)} penalties; pass folds (N,) of two parts, or one penalty."
            )
        curve = [(each, 0.0) for each in penalties]
        for fold in folds.unique():
            inside, outside = (problem.weights * part for part in (folds != fold, folds == fold))
            start = None
            for number in reversed(range(len(penalties))):  # from the strongest on, each the start of the next
                start, _ = problem.minimize(inside, penalties[number], tolerance, max_iterations, start)
                loss = problem.loss(start, outside)[0] / problem.weights.sum()
                curve[number] = (penalties[number], curve[number][1] + float(loss))
    best = _best(curve) if curve else penalties[0]
    head, converged = problem.minimize(problem.weights, best, tolerance, max_iterations)
    if not converged:
        _log.warning("L-BFGS stopped before its tolerance of %g; raise max_iterations or the penalty.", tolerance)
    weight = head[:, :-1] / problem.scale
    bias = head[:, -1] - weight @ problem.mean
    if mode == "multinomial":  # softmax does not see a constant; take the one that sums to zero
        bias = bias - bias.mean()
    return Solution(weight.cpu(), bias.cpu(), best, tuple(curve), converged)


def balanced_weights(class_counts: Tensor) -> Tensor:
    """Return a weight (K,) for each class, N / (K n_k), so that all weigh the same; 0 for a class without images.

    Examples
    --------
    >>> balanced_weights(torch.tensor([1, 3])).tolist()
    [2.0, 0.6666666666666666]
    """
    counts = class_counts.double()
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp(min=1)), 0.0)


def _penalties(penalty: float | Sequence[float], least: float) -> list[float]:
    penalties = sorted({float(each) for each in ([penalty] if isinstance(penalty, int | float) else penalty)})
    if not penalties or not all(math.isfinite(each) and each >= least for each in penalties):
        rule = "0 or more" if least == 0 else "above 0"
        raise CamhookError(f"Found penalty={penalty!r}, expected finite numbers {rule}; pass one or several.")
    return penalties


def _best(curve: Sequence[tuple[float, float]]) -> float:
    return min(reversed(curve), key=lambda point: point[1])[0]


def _default_grid(total: Moments, standardize: bool) -> list[float]:
    typical = float(total.weight if standardize else total.gram.trace() / len(total.gram)) or 1.0
    return [typical * 10 ** (power / 2) for power in range(-16, 5)]


def _eigen(moments: Moments, standardize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the eigenvalues (C,) and vectors (C, C) of the Gram matrix of scaled features, and their scale (C,)."""
    scale = moments.deviation() if standardize else torch.ones_like(moments.feature_mean)
    values, basis = torch.linalg.eigh(moments.gram / scale[:, None] / scale)
    return values, basis, scale


def _shrink(values: Tensor, penalty: float) -> Tensor:
    """Return 1 / (value + penalty), and 0 where that is nothing but rounding."""
    values = values.clamp(min=0) + penalty
    return torch.where(values > len(values) * torch.finfo(values.dtype).eps * values.max(), 1 / values, 0.0)


def _fold_errors(training: Moments, fold: Moments, penalties: Sequence[float], standardize: bool) -> Tensor:
    """Return the fold's squared error, summed over images and targets, for each penalty.

    With G the fold's Gram matrix, X its cross moments and S its squares, all about the training means, the error of W
    is S - 2 tr(W X^T) + tr(W G W^T). In the eigenbasis W = P diag(s), and only s depends on the penalty.
    """
    values, basis, scale = _eigen(training, standardize)
    fold = fold.about(training.feature_mean, training.target_mean)
    weights = (training.cross / scale) @ basis
    linear = (weights * ((fold.cross / scale) @ basis)).sum(0)
    quadratic = (basis.T @ (fold.gram / scale[:, None] / scale) @ basis) * (weights.T @ weights)
    shrunk = torch.stack([_shrink(values, penalty) for penalty in penalties])
    errors = fold.square.sum() - 2 * shrunk @ linear + (shrunk @ quadratic * shrunk).sum(1)
    return errors.clamp(min=0).cpu()
