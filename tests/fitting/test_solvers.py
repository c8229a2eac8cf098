"""The solvers give scikit-learn's numbers, find a planted head again, and say what they cannot fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import PredefinedSplit
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from camhook.errors import CamhookError
from camhook.fitting.rows import Rows, sample_hash
from camhook.fitting.solvers import Solution, solve_logistic, solve_ridge
from camhook.fitting.state import FitState
from camhook.fitting.targets import balanced_weights

N, C, K, FOLDS = 400, 12, 4, 5
GRID = [10.0**power for power in range(-3, 6)]


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return correlated features of differing spread (N, C), noisy scores (N, K), labels (N,) and weights (N,)."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(C, C, generator=draw) * torch.logspace(-1, 1, C)
    features = torch.randn(N, C, generator=draw) @ mixing + 5
    scores = features @ torch.randn(C, K, generator=draw) + 20 * torch.randn(N, K, generator=draw)
    return features, scores, scores.argmax(1), torch.rand(N, generator=draw) + 0.1


def summed(features: Tensor, targets: Tensor, weights: Tensor | None = None, **settings: Any) -> FitState:
    kind = "labels" if targets.ndim == 1 else "logits"
    outputs = K if targets.ndim == 1 else targets.shape[1]
    options: dict[str, Any] = {"targets": kind, "folds": FOLDS, "holdout": 0} | settings
    state = FitState(features.shape[1], outputs, **options)
    for part in torch.arange(len(features)).split(33):
        state.update(Rows.of(part, features[part], targets[part], None if weights is None else weights[part]))
    return state


def assert_solution(found: Solution, weight: Any, bias: Any, **tolerance: Any) -> None:
    np.testing.assert_allclose(found.weight.numpy(), weight, **tolerance)
    np.testing.assert_allclose(found.bias.numpy(), bias, **tolerance)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 0.1, 100.0])
def test_ridge_is_ridge(penalty: float, standardize: bool, weighted: bool) -> None:
    features, scores, labels, weights = problem()
    given = weights if weighted else None
    for targets, dense in ((scores, scores), (labels, torch.nn.functional.one_hot(labels, K))):
        found = solve_ridge(summed(features, targets, given), penalty=penalty, standardize=standardize)
        reference, x, w = (
            Ridge(alpha=penalty),
            features.double().numpy(),
            None if given is None else given.double().numpy(),
        )
        scaler = StandardScaler().fit(x, sample_weight=w)
        x = scaler.transform(x) if standardize else x
        reference.fit(x, dense.double().numpy(), sample_weight=w)
        weight, bias = reference.coef_, reference.intercept_
        if standardize:
            weight = weight / scaler.scale_
            bias = bias - weight @ scaler.mean_
        assert_solution(found, weight, bias, rtol=1e-8, atol=1e-9)
        assert (found.penalty, found.curve, found.converged) == (penalty, (), True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_the_penalty_is_that_of_explicit_folds(standardize: bool, weighted: bool) -> None:
    features, scores, _, weights = problem()
    weights = weights if weighted else torch.ones(N)
    x, y, w = (value.double().numpy() for value in (features, scores, weights))
    fold = sample_hash(np.arange(N)) % np.uint64(FOLDS)
    curve = []
    for penalty in GRID:
        error = 0.0
        for number in range(FOLDS):
            t, v = fold != number, fold == number
            scaler = StandardScaler(with_std=standardize).fit(x[t], sample_weight=w[t])
            model = Ridge(alpha=penalty).fit(scaler.transform(x[t]), y[t], sample_weight=w[t])
            error += w[v] @ (model.predict(scaler.transform(x[v])) - y[v]) ** 2
        curve.append(np.mean(error) / w.sum())
    found = solve_ridge(summed(features, scores, weights), penalty=GRID, standardize=standardize)
    np.testing.assert_allclose([error for _, error in found.curve], curve, rtol=1e-9)
    assert found.penalty == GRID[int(np.argmin(curve))]
    assert 0 < np.argmin(curve) < len(GRID) - 1  # a choice, not an edge


@pytest.mark.parametrize("seed", range(5))
def test_the_penalty_is_that_of_ridgecv(seed: int) -> None:
    features, scores, _, _ = problem(seed)
    fold = (sample_hash(np.arange(N)) % np.uint64(FOLDS)).astype(int)
    reference = RidgeCV(GRID, cv=PredefinedSplit(fold), scoring="neg_mean_squared_error")
    reference.fit(features.double().numpy(), scores.double().numpy())
    found = solve_ridge(summed(features, scores), penalty=GRID)
    assert found.penalty == reference.alpha_
    assert_solution(found, reference.coef_, reference.intercept_, rtol=1e-8, atol=1e-9)


def test_a_planted_head_comes_back() -> None:
    draw = torch.Generator().manual_seed(0)
    features, weight = torch.randn(1000, 64, generator=draw).relu(), torch.randn(10, 64, generator=draw)
    bias = torch.randn(10, generator=draw)
    found = solve_ridge(summed(features, features @ weight.T + bias, holdout=0.1))
    assert (found.weight - weight).norm() / weight.norm() < 1e-5
    assert (found.bias - bias).norm() / bias.norm() < 1e-5


def test_the_default_grid_holds_the_minimum() -> None:
    features, scores, _, _ = problem()
    for scale in (1e-3, 1.0, 1e3):
        found = solve_ridge(summed(features * scale, scores))
        errors = [error for _, error in found.curve]
        assert len(errors) == 21
        assert 0 < int(np.argmin(errors)) < 20
        assert found.penalty == found.curve[int(np.argmin(errors))][0]


def test_fewer_images_than_features_is_well_posed() -> None:
    features, scores, _, _ = problem()
    few, many = torch.cat([features[:8]] * 4, 1), scores[:8]
    for penalty in (0.0, 1.0):
        found = solve_ridge(summed(few, many), penalty=penalty)
        reference = Ridge(alpha=max(penalty, 1e-9), solver="svd").fit(few.double().numpy(), many.double().numpy())
        assert_solution(found, reference.coef_, reference.intercept_, rtol=1e-5, atol=1e-5)
    assert solve_ridge(summed(few, many)).weight.isfinite().all()


@pytest.mark.parametrize("standardize", [False, True])
def test_constant_features_get_no_weight(standardize: bool) -> None:
    features, scores, labels, _ = problem()
    padded = torch.cat([features, torch.full((N, 1), 0.1), torch.zeros(N, 1)], 1)
    plain = solve_ridge(summed(features, scores), penalty=1.0, standardize=standardize)
    found = solve_ridge(summed(padded, scores), penalty=1.0, standardize=standardize)
    assert_solution(found, torch.nn.functional.pad(plain.weight, (0, 2)), plain.bias, rtol=1e-9, atol=1e-12)
    flat = solve_ridge(summed(torch.ones(N, 3), labels))
    assert not flat.weight.any()
    torch.testing.assert_close(flat.bias, labels.bincount(minlength=K) / N, check_dtype=False)
    logistic = solve_logistic(padded, labels, num_classes=K, standardize=standardize)
    assert logistic.converged
    assert logistic.weight[:, -2:].abs().max() < 1e-9


def test_ridge_says_what_it_cannot_fit() -> None:
    features, scores, _, weights = problem()
    with pytest.raises(CamhookError, match="Found 1 images"):
        solve_ridge(summed(features[:1], scores[:1]))
    with pytest.raises(CamhookError, match="Found 0 images"):
        solve_ridge(summed(features[:0], scores[:0]))
    with pytest.raises(CamhookError, match="with weight"):
        solve_ridge(summed(features, scores, 0 * weights))
    with pytest.raises(CamhookError, match="one class only"):
        solve_ridge(summed(features, torch.ones(N, dtype=torch.int64)))
    for wrong in (-1.0, [1.0, float("nan")], []):
        with pytest.raises(CamhookError, match=r"Found penalty=.* finite numbers 0 or more"):
            solve_ridge(summed(features, scores), penalty=wrong)
    fold = sample_hash(np.arange(N)) % np.uint64(FOLDS)
    one_fold = torch.from_numpy((fold == 2).astype(np.float32))
    with pytest.raises(CamhookError, match="in one fold"):
        solve_ridge(summed(features, scores, one_fold))
    assert solve_ridge(summed(features, scores, one_fold), penalty=1.0).weight.isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("mode", ["multinomial", "one-vs-rest"])
def test_logistic_is_logistic(mode: Any, standardize: bool, weighted: bool) -> None:
    features, _, labels, weights = problem()
    given = weights if weighted and mode == "multinomial" else None  # sklearn's one-vs-rest takes no weights
    penalty = 0.5
    targets = labels if mode == "multinomial" else torch.nn.functional.one_hot(labels, K)
    found = solve_logistic(features, targets, num_classes=K, penalty=penalty, weights=given, standardize=standardize)
    assert found.converged
    w = None if given is None else given.double().numpy()
    scaler = StandardScaler(with_std=standardize).fit(features.double().numpy(), sample_weight=w)
    x = scaler.transform(features.double().numpy())
    model = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10_000)
    if mode == "multinomial":
        model.fit(x, labels.numpy(), sample_weight=w)
        weight, bias = model.coef_, model.intercept_
    else:
        model = OneVsRestClassifier(model).fit(x, labels.numpy())
        weight = np.concatenate([each.coef_ for each in model.estimators_])
        bias = np.concatenate([each.intercept_ for each in model.estimators_])
    scale = scaler.scale_ if standardize else 1.0
    weight = weight / scale
    assert_solution(found, weight, bias - weight @ scaler.mean_, rtol=1e-3, atol=1e-3)
    scores = features.double() @ found.weight.T + found.bias
    assert scores.argmax(1).tolist() == model.predict(x).tolist()


def test_two_classes_are_the_binary_problem() -> None:
    features, _, labels, _ = problem()
    labels = (labels > 1).long()
    found = solve_logistic(features, labels, num_classes=2, penalty=1.0, standardize=False)
    reference = LogisticRegression(C=2.0, tol=1e-8, max_iter=10_000)  # half the weight on each of the two classes
    reference.fit(features.double().numpy(), labels.numpy())
    np.testing.assert_allclose(found.weight[1] - found.weight[0], reference.coef_[0], atol=1e-3)
    np.testing.assert_allclose(found.bias[1] - found.bias[0], reference.intercept_[0], atol=1e-3)


def test_several_labels_an_image() -> None:
    features, scores, _, _ = problem()
    targets = (scores > scores.median()).float()
    found = solve_logistic(features, targets, num_classes=K)
    reference = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(tol=1e-8, max_iter=10_000)))
    reference.fit(features.double().numpy(), targets.long().numpy())
    predicted = (features.double() @ found.weight.T + found.bias > 0).long()
    assert predicted.tolist() == reference.predict(features.double().numpy()).tolist()


def test_class_weights_are_those_of_sklearn() -> None:
    features, _, labels, _ = problem()
    labels[:200] = 0
    weights = balanced_weights(labels.bincount(minlength=K))[labels]
    found = solve_logistic(features, labels, num_classes=K, weights=weights, standardize=False)
    reference = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=10_000)
    reference.fit(features.double().numpy(), labels.numpy())
    assert_solution(found, reference.coef_, reference.intercept_, rtol=1e-3, atol=1e-3)


def test_the_logistic_penalty_is_that_of_explicit_folds() -> None:
    features, _, labels, weights = problem()
    fold = torch.from_numpy((sample_hash(np.arange(N)) % np.uint64(3)).astype(np.int64))
    grid, curve = [0.1, 1.0, 10.0, 100.0, 1000.0], []
    for penalty in grid:
        error = 0.0
        for number in range(3):
            t, v = fold != number, fold == number
            model = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10_000)
            model.fit(features[t].double().numpy(), labels[t].numpy(), sample_weight=weights[t].double().numpy())
            logs = torch.from_numpy(model.predict_log_proba(features[v].double().numpy()))
            error -= float(weights[v].double() @ logs.gather(1, labels[v, None])[:, 0])
        curve.append(error / float(weights.sum()))
    found = solve_logistic(
        features, labels, num_classes=K, penalty=grid, weights=weights, folds=fold, standardize=False
    )
    np.testing.assert_allclose([error for _, error in found.curve], curve, rtol=1e-4)
    assert found.penalty == grid[int(np.argmin(curve))]
    with pytest.raises(CamhookError, match="Found no folds for 2 penalties"):
        solve_logistic(features, labels, num_classes=K, penalty=[1.0, 2.0])


def test_a_memory_mapped_file_will_do(tmp_path: Path) -> None:
    features, _, labels, _ = problem()
    mapped = torch.from_file(str(tmp_path / "features"), shared=True, size=N * C, dtype=torch.float16).view(N, C)
    mapped.copy_(features)
    found = solve_logistic(mapped, labels, num_classes=K)
    expected = solve_logistic(features.half(), labels, num_classes=K)
    assert_solution(found, expected.weight, expected.bias, rtol=1e-5, atol=1e-6)


def test_rows_without_weight_may_hold_anything() -> None:
    features, _, labels, weights = problem()
    weights[:100] = 0
    expected = solve_logistic(features[100:], labels[100:], num_classes=K, weights=weights[100:])
    features[:100], labels[:100] = torch.nan, -1
    found = solve_logistic(features, labels, num_classes=K, weights=weights)
    assert_solution(found, expected.weight, expected.bias, rtol=1e-6, atol=1e-8)


def test_more_features_than_images_and_separable_classes() -> None:
    features, _, labels, _ = problem()
    wide = torch.cat([features, features.square(), features.roll(1, 0)], 1)[:20]
    found = solve_logistic(wide, labels[:20], num_classes=K)
    assert found.converged
    assert ((wide.double() @ found.weight.T + found.bias).argmax(1) == labels[:20]).all()


def test_many_classes_and_a_weak_penalty_converge() -> None:
    draw = torch.Generator().manual_seed(0)
    classes = 60
    mixing = torch.randn(40, 40, generator=draw) * torch.logspace(-1.5, 1, 40)
    features = torch.randn(600, 40, generator=draw) @ mixing
    labels = (features @ torch.randn(40, classes, generator=draw)).argmax(1)
    labels[:classes] = torch.arange(classes)
    found = solve_logistic(features, labels, num_classes=classes, tolerance=1e-8, max_iterations=300)
    assert found.converged
    x = StandardScaler().fit_transform(features.double().numpy())
    reference = LogisticRegression(tol=1e-8, max_iter=10_000).fit(x, labels.numpy())
    np.testing.assert_allclose(found.weight * features.double().std(0, correction=0), reference.coef_, atol=1e-3)


def test_too_few_iterations_are_said(caplog: pytest.LogCaptureFixture) -> None:
    features, _, labels, _ = problem()
    assert not solve_logistic(features, labels, num_classes=K, max_iterations=2).converged
    assert "L-BFGS stopped before its tolerance of 1e-07" in caplog.text


SMALL = torch.arange(6.0)[:, None]


@pytest.mark.parametrize(
    ("features", "targets", "options", "words"),
    [
        (SMALL, [0, 1, 2, 0, 1, 5], {}, "labels from 0 to 5, expected integers from 0 to 2"),
        (SMALL, [0, 1, -1, 0, 1, 2], {}, "from -1 to 2"),
        (SMALL, [0.0, 1, 2, 0, 1, 2], {}, "torch.float32"),
        (SMALL, [1, 1, 1, 1, 1, 1], {}, "one class only"),
        (SMALL, [0, 1, 0, 1, 1, 1], {}, "no images for class 2"),
        (SMALL / 0, [0, 1, 2, 0, 1, 2], {}, "NaN or infinite"),
        (SMALL, [0, 1, 2, 0, 1, 2], {"penalty": 0.0}, "expected finite numbers above 0"),
        (SMALL, [0, 1, 2, 0, 1, 2], {"weights": -torch.ones(6)}, "negative or not finite, expected 0 or more"),
        (SMALL, [[0, 1, 2]] * 6, {}, "other than 0 and 1"),
        (SMALL, [[0, 1, 1], [1, 0, 1]] * 3, {}, "Class 2 is in every image"),
    ],
)
def test_logistic_says_what_it_cannot_fit(features: Tensor, targets: Any, options: Any, words: str) -> None:
    with pytest.raises(CamhookError, match=words):
        solve_logistic(features, torch.tensor(targets), num_classes=3, **options)


def test_inside_inference_mode() -> None:
    features, scores, labels, _ = problem()
    with torch.inference_mode():
        ridge = solve_ridge(summed(features, scores))
        logistic = solve_logistic(features.clone(), labels, num_classes=K)
    assert_solution(ridge, *list(vars(solve_ridge(summed(features, scores))).values())[:2])
    assert_solution(logistic, *list(vars(solve_logistic(features, labels, num_classes=K)).values())[:2])
