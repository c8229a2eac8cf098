"""Solvers for the weights of a probe: ridge regression from moments, logistic regression by scikit-learn."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.errors import CamhookError
from camhook.fitting.moments import Moments
from camhook.fitting.rows import Rows, TargetKind, check_counts, class_counts
from camhook.fitting.state import FitState

__all__ = ["Solution", "solve_logistic", "solve_ridge"]

Array = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Solution:
    """A linear head: logits = weight @ features + bias.

    Attributes
    ----------
    weight, bias : Tensor
        (K, C) and (K,), float64, on the CPU, for features as they come (not standardised).
    penalty, curve
        The one used, and (penalty, cross-validated error) of all if several were given, in ascending order: the mean
        squared error over images and targets (ridge), the mean log loss over images (logistic).
    converged : bool
        Whether the solver reached its tolerance; a closed form always does.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    curve: tuple[tuple[float, float], ...] = ()
    converged: bool = True


def solve_ridge(
    state: FitState, *, penalty: float | Sequence[float] | None = None, standardize: bool = False
) -> Solution:
    """Solve min over W, b of sum_i w_i ||y_i - W x_i - b||^2 + penalty ||W||^2 from moments.

    With several penalties each fold is predicted from the others, and the penalty of the least squared error over all
    folds is used (of equals the larger); one eigendecomposition per fold serves them all. The bias is not penalised; a
    penalty of 0 gives the least-norm solution; targets of labels are 0 and 1.

    Parameters
    ----------
    penalty : float or several, optional
        ``alpha`` of scikit-learn's ``Ridge``. Default: 1e-8 to 1e2 times the mean eigenvalue of the Gram matrix, two
        per decade.
    standardize : bool
        Penalise ``W * std`` instead of W, as if features had a standard deviation of 1; constant features get 0.

    Raises
    ------
    CamhookError
        If there are fewer than two images, a class without images, a penalty below 0, or too few folds to choose by.

    Examples
    --------
    >>> from camhook.fitting.rows import Rows
    >>> state = FitState(num_features=1, num_targets=1, targets="logits", holdout=0)
    >>> state.update(Rows.of([0, 1, 2], torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]])))
    >>> solution = solve_ridge(state, penalty=0.0)
    >>> solution.weight.tolist(), solution.bias.tolist()
    ([[2.0]], [1.0])
    """
    state.check_classes()
    folds = [fold for fold in state.folds if fold.weight > 0]
    total = Moments.merged(folds or state.folds)
    if total.count < 2 or not folds:
        raise CamhookError(f"Found {int(total.count)} images to fit on (with weight), expected 2 or more; add images.")
    penalties = _penalties(_default_grid(total, standardize) if penalty is None else penalty, least=0.0)
    curve: list[tuple[float, float]] = []
    if len(penalties) > 1:
        if len(folds) < 2:
            found = f"all {int(total.count)} images in one fold"
            raise CamhookError(f"Found {found}: no penalty can be chosen; add images, or pass one penalty.")
        errors = sum(
            _fold_errors(Moments.merged(other for other in folds if other is not fold), fold, penalties, standardize)
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
    penalty: float | Sequence[float] = 1.0,
    weights: Tensor | None = None,
    folds: Tensor | None = None,
    standardize: bool = True,
    tolerance: float = 1e-7,
    max_iterations: int = 10_000,
) -> Solution:
    """Solve min over W, b of sum_i w_i loss(W x_i + b, y_i) + penalty / 2 ||W||^2 by scikit-learn's LogisticRegression.

    The loss is -log softmax of the true class (multinomial) or, for several labels per image, the sum over classes of
    the binary log loss (one-vs-rest). The bias is not penalised. A float64 copy of the features is made.

    Parameters
    ----------
    features : Tensor (N, C)
    targets : Tensor
        Labels (N,) int64, or 0 or 1 for each class (N, K).
    num_classes : int
        K.
    penalty : float or several
        1 / C of ``LogisticRegression``, above 0. Of several the one of least log loss over `folds`.
    weights, folds : Tensor (N,), optional
        Rows of weight 0 are left out, whatever they hold. The fold (int64) of each row is for several penalties.
    standardize : bool
        Penalise as if features had a standard deviation of 1; the result is for features as they come.
    tolerance, max_iterations : float, int
        ``tol`` and ``max_iter`` of ``LogisticRegression``.

    Raises
    ------
    CamhookError
        If shapes or values do not fit, a class is in no row with weight or in all, or there is one class only.

    Examples
    --------
    >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> solution = solve_logistic(features, torch.tensor([0, 0, 1, 1]), num_classes=2)
    >>> (features.double() @ solution.weight.T + solution.bias).argmax(1).tolist()
    [0, 0, 1, 1]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rows = Rows.of(range(len(features)), features, targets, weights)
    kind: TargetKind = "labels" if targets.ndim == 1 else "multilabel"
    used = rows.weights != 0
    rows = rows.take(used.cpu()).check(num_features=features.shape[1], num_targets=num_classes, targets=kind)
    counts = class_counts(rows.targets, num_classes)
    check_counts(counts, single=kind == "labels")
    if (everywhere := counts == len(rows)).any():
        raise CamhookError(f"Class {int(everywhere.nonzero()[0])} is in every image; add others, or leave it out.")
    x: Array = rows.features.cpu().double().numpy()
    w: Array = rows.weights.cpu().double().numpy()
    mean = w @ x / w.sum()
    x -= mean
    deviation = np.sqrt(np.einsum("n,nc,nc->c", w, x, x) / w.sum())
    varies = deviation > 1e-12 * np.abs(mean)  # rounding gives a constant feature a deviation too
    scale = np.where(varies, deviation, 1.0) if standardize else np.ones_like(mean)
    x /= scale
    y = rows.targets.cpu().long().numpy()
    columns = [y] if kind == "labels" else list(y.T)
    models = [LogisticRegression(tol=tolerance, max_iter=max_iterations, warm_start=True) for _ in columns]
    # A binary model's weights are the difference between two classes, each of which would have half the penalty.
    binary = kind == "labels" and num_classes == 2

    def minimize(penalty: float, weights: Array) -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            for model, column in zip(models, columns, strict=True):
                model.set_params(C=(2 if binary else 1) / penalty).fit(x, column, sample_weight=weights)
        return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)

    penalties = _penalties(penalty, least=math.ulp(0.0))
    curve: list[tuple[float, float]] = []
    if len(penalties) > 1:
        if folds is None or folds.shape != used.shape or len(folds.unique()) < 2:
            found = "no folds" if folds is None else f"folds of shape {tuple(folds.shape)}"
            raise CamhookError(f"Found {found} for {len(penalties)} penalties; pass two folds or more, or one penalty.")
        errors, fold = np.zeros(len(penalties)), folds.cpu()[used.cpu()].numpy()
        for number in np.unique(fold):
            outside = w * (fold == number)
            for place in reversed(range(len(penalties))):  # from the strongest on, each the start of the next
                minimize(penalties[place], w - outside)
                for model, column in zip(models, columns, strict=True):
                    errors[place] -= outside @ model.predict_log_proba(x)[np.arange(len(x)), column] / w.sum()
        curve = list(zip(penalties, errors.tolist(), strict=True))
    best = _best(curve) if curve else penalties[0]
    converged = minimize(best, w)
    if not converged:
        _log.warning("L-BFGS stopped before its tolerance of %g; raise max_iterations or the penalty.", tolerance)
    weight = np.concatenate([model.coef_ for model in models])
    bias = np.concatenate([model.intercept_ for model in models])
    if binary:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale
    bias = bias - weight @ mean
    if kind == "labels":  # softmax ignores a constant; take the one for which biases sum to zero
        bias = bias - bias.mean()
    return Solution(torch.from_numpy(weight), torch.from_numpy(bias), best, tuple(curve), converged)


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
