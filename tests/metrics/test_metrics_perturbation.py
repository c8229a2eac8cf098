"""Insertion, deletion and ROAD against explicit loops in float64, hand-computed cases, and the known traps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camhook import metrics
from camhook.errors import CamhookError, DependencyError, ImageError, TargetError

SIZE = (6, 9)  # not square


class Tiny(nn.Module):
    """Two positions wide, not linear, and in need of every pixel."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.kernel = nn.Parameter(torch.randn(5, channels, 2, 2, generator=generator, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(classes, 5, generator=generator, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images, self.kernel).relu().mean((2, 3)) @ self.head.T


MODEL = Tiny().eval()


def images(count: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def maps(count: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def probability(picture: np.ndarray, target: int) -> float:
    logits = MODEL(torch.from_numpy(picture)[None])[0].detach().numpy()
    return float(np.exp(logits[target]) / np.exp(logits).sum())


def area(start: np.ndarray, end: np.ndarray, values: np.ndarray, target: int, steps: int) -> float:
    """Walk from start to end pixel by pixel, and add trapezoids."""
    height, width = values.shape
    order = sorted((-values[y, x], y, x) for y in range(height) for x in range(width))
    now, done, total, last = start.copy(), 0, 0.0, probability(start, target)
    for step in range(1, steps + 1):
        while done < round(step * height * width / steps):
            _, y, x = order[done]
            now[:, y, x] = end[:, y, x]
            done += 1
        score = probability(now, target)
        total += (last + score) / 2 / steps
        last = score
    return total


def blur(picture: np.ndarray) -> np.ndarray:
    """Sum 11 x 11 weights, mirrored at the edges, without the edge pixel twice."""
    out = np.zeros_like(picture)
    height, width = picture.shape[1:]

    def mirror(i: int, n: int) -> int:
        while not 0 <= i < n:
            i = -i if i < 0 else 2 * (n - 1) - i
        return i

    weight = {(dy, dx): np.exp(-(dy**2 + dx**2) / 50) for dy in range(-5, 6) for dx in range(-5, 6)}
    for y in range(height):
        for x in range(width):
            for (dy, dx), w in weight.items():
                out[:, y, x] += w / sum(weight.values()) * picture[:, mirror(y + dy, height), mirror(x + dx, width)]
    return out


# --- deletion and insertion ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 18, 54])
def test_deletion_is_the_area_of_the_definition(steps: int) -> None:
    target = [0, 3, 1]
    found = metrics.deletion(maps(), images(), target, MODEL, steps=steps, baseline=0.3)
    ground = np.full((3, *SIZE), 0.3)
    pictures = zip(images().numpy(), maps().numpy(), target, strict=True)
    expected = [area(picture, ground, values, wanted, steps) for picture, values, wanted in pictures]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.dtype == torch.float64
    assert found.shape == (3,)


def test_insertion_starts_from_the_blurred_image() -> None:
    found = metrics.insertion(maps(), images(), 2, MODEL, steps=9)
    pictures = zip(images().numpy(), maps().numpy(), strict=True)
    expected = [area(blur(picture), picture, values, 2, 9) for picture, values in pictures]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_default_steps_are_224_of_224_pixels() -> None:
    seen = []

    def model(batch: Tensor) -> Tensor:
        seen.append(batch[:, 0].flatten(1).sum(1))
        return torch.zeros(len(batch), 2)

    picture = torch.ones(1, 1, 224, 224)
    found = metrics.deletion(metrics.random_maps(1, (224, 224)), picture, 0, model)
    assert torch.cat(seen).tolist() == [224 * (224 - step) for step in range(225)]
    assert found.tolist() == [0.5]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_blur_is_a_sum_over_eleven_by_eleven(channels: int) -> None:
    picture = torch.randn(2, channels, 5, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    expected = np.stack([blur(each) for each in picture.numpy()])
    np.testing.assert_allclose(metrics.blurred(picture), expected, rtol=1e-12, atol=1e-14)
    half = metrics.blurred(picture.bfloat16())
    assert half.dtype == torch.bfloat16


def test_curve_runs_from_the_start_to_the_end() -> None:
    start, end = images(), images() * 0.5
    curve = metrics.perturbation_curve(maps(), start, end, 1, MODEL, steps=6)
    assert curve.shape == (3, 7)
    for i in range(3):
        assert curve[i, 0] == pytest.approx(probability(start[i].numpy(), 1))
        assert curve[i, -1] == pytest.approx(probability(end[i].numpy(), 1))


def test_more_steps_than_pixels_are_single_pixels() -> None:
    few = metrics.deletion(maps(), images(), 1, MODEL, steps=54)
    assert torch.equal(metrics.deletion(maps(), images(), 1, MODEL, steps=10_000), few)


def test_baselines_broadcast() -> None:
    colour = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)[:, None, None]
    as_colour = metrics.deletion(maps(), images(), 1, MODEL, steps=6, baseline=colour)
    as_pictures = metrics.deletion(maps(), images(), 1, MODEL, steps=6, baseline=colour.expand(3, 3, *SIZE))
    assert torch.equal(as_colour, as_pictures)
    with pytest.raises(ImageError, match=r"baseline of shape \(7,\).*colour \(C, 1, 1\)"):
        metrics.deletion(maps(), images(), 1, MODEL, baseline=torch.zeros(7))


def test_better_maps_score_better() -> None:
    """On a linear model, the contributions themselves are the best order there is."""
    weight = torch.randn(3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(6))

    def model(batch: Tensor) -> Tensor:
        score = (batch * weight).sum((1, 2, 3)) / 4
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    truth = (images() * weight).sum(1)
    noise = metrics.random_maps(3, SIZE)
    for metric, best in ((metrics.insertion, 1), (metrics.deletion, -1), (metrics.road, 1)):
        options: dict[str, Any] = {} if metric is metrics.road else {"steps": 18}
        score, chance, worst = (metric(m, images(), 0, model, **options) for m in (truth, noise, -truth))
        if metric is metrics.road:  # imputation brings back some of what it removes
            score, chance, worst = score.mean(), chance.mean(), worst.mean()
        assert (best * score > best * chance).all()
        assert (best * chance > best * worst).all()


# --- ROAD ------------------------------------------------------------------------------------------------------------


def test_imputation_solves_the_equations_of_the_definition() -> None:
    """Iterate the definition, each removed pixel the mean of its neighbours, until nothing moves."""
    picture = images(2)
    removed = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(8)) < 0.7
    found = metrics.imputed(picture, removed, noise=0).numpy()
    for i in range(2):
        now = picture[i].numpy().copy()
        now[:, removed[i].numpy()] = 0
        for _ in range(3000):
            for y, x in np.argwhere(removed[i].numpy()):
                total, weights = np.zeros(3), 0.0
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if (dy or dx) and 0 <= y + dy < SIZE[0] and 0 <= x + dx < SIZE[1]:
                            weight = 1 / 12 if dy and dx else 1 / 6
                            total, weights = total + weight * now[:, y + dy, x + dx], weights + weight
                now[:, y, x] = total / weights
            if np.abs(now - found[i]).max() < 1e-12:
                break
        np.testing.assert_allclose(found[i], now, atol=1e-11)
    kept = ~removed[:, None].expand(picture.shape)
    assert torch.equal(torch.from_numpy(found)[kept], picture[kept])


def test_imputation_continues_a_ramp() -> None:
    ramp = torch.arange(7.0).expand(1, 2, 5, 7)
    removed = torch.zeros(1, 5, 7, dtype=torch.bool)
    removed[:, :, 2:5] = True
    torch.testing.assert_close(metrics.imputed(ramp, removed, noise=0), ramp.contiguous())


def test_noise_has_the_size_asked_for_and_is_the_same_for_each_image() -> None:
    flat = torch.zeros(2, 3, 60, 60)
    removed = torch.ones(2, 60, 60, dtype=torch.bool)
    removed[:, 0, 0] = False
    filled = metrics.imputed(flat, removed, noise=0.01)
    assert filled.std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(filled[0], filled[1])
    assert (filled[:, :, 0, 0] == 0).all()
    assert not torch.equal(metrics.imputed(flat, removed, seed=1), filled)


@pytest.mark.parametrize("order", ["lerf", "morf", "combined"])
def test_road_is_the_mean_over_percentages(order: Any) -> None:
    target, grain = [1, 0, 3], torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = []
    for picture, values, wanted in zip(images(), maps(), target, strict=True):
        means = {}
        for name, sign in (("lerf", 1), ("morf", -1)):
            scores = []
            for percentage in range(10, 100, 10):
                places = (sign * values).flatten().argsort()[: round(percentage * 54 / 100)]
                removed = torch.zeros(54, dtype=torch.bool)
                removed[places] = True
                removed = removed.view(1, *SIZE)
                filled = metrics.imputed(picture[None], removed, noise=0)[0] + 0.01 * grain * removed
                scores.append(probability(filled.numpy(), wanted))
            means[name] = sum(scores) / len(scores)
        means["combined"] = (means["lerf"] - means["morf"]) / 2
        expected.append(means[order])
    found = metrics.road(maps(), images(), target, MODEL, order=order)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_without_scipy_road_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(DependencyError, match="pip install scipy"):
        metrics.road(maps(), images(), 0, MODEL)


# --- traps -----------------------------------------------------------------------------------------------------------

ALL = [
    pytest.param(lambda m, x, t, **o: metrics.deletion(m, x, t, MODEL, steps=6, **o), id="deletion"),
    pytest.param(lambda m, x, t, **o: metrics.insertion(m, x, t, MODEL, steps=6, **o), id="insertion"),
    pytest.param(lambda m, x, t, **o: metrics.road(m, x, t, MODEL, percentages=[20, 70], **o), id="road"),
]


@pytest.mark.parametrize("metric", ALL)
def test_one_image_scores_as_among_many(metric: Callable[..., Tensor]) -> None:
    values = maps(5)
    values[2] = 1.0  # ties, too
    together = metric(values, images(5), [0, 1, 2, 3, 0])
    alone = [metric(values[i : i + 1], images(5)[i : i + 1], [0, 1, 2, 3, 0][i]) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
    torch.testing.assert_close(metric(values, images(5), [0, 1, 2, 3, 0], batch_size=2), together, rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", ALL)
def test_only_the_order_counts_also_below_zero(metric: Callable[..., Tensor]) -> None:
    assert torch.equal(metric(maps() - 1e3, images(), 1), metric(maps(), images(), 1))
    assert torch.equal(metric(maps().exp(), images(), 1), metric(maps(), images(), 1))


@pytest.mark.parametrize("metric", [*ALL[:2], partial(metrics.road, model=MODEL, order="morf")])
def test_a_constant_map_is_a_random_order_not_the_raster(metric: Callable[..., Tensor]) -> None:
    raster = -torch.arange(54.0).view(1, *SIZE).expand(3, -1, -1)
    found = metric(torch.zeros(3, *SIZE), images(), 1, seed=7)
    assert not torch.isclose(found, metric(raster, images(), 1, seed=7)).any()
    assert not torch.isclose(found, metric(torch.zeros(3, *SIZE), images(), 1, seed=8)).any()


def test_either_end_of_a_constant_map_is_the_same_for_road() -> None:
    assert metrics.road(torch.zeros(3, *SIZE), images(), 1, MODEL).tolist() == [0, 0, 0]


def test_ties_go_in_the_seeds_order() -> None:
    order = torch.randperm(54, generator=torch.Generator().manual_seed(7))
    values = torch.empty(54)
    values[order] = -torch.arange(54.0)
    as_order, constant = values.view(1, *SIZE).expand(3, -1, -1), torch.zeros(3, *SIZE)
    found = metrics.deletion(constant, images(), 1, MODEL, seed=7, steps=6)
    assert torch.equal(found, metrics.deletion(as_order, images(), 1, MODEL, steps=6))


@pytest.mark.parametrize("metric", ALL)
def test_target_need_not_be_the_prediction(metric: Callable[..., Tensor]) -> None:
    predicted = MODEL(images()).argmax(1)
    other = (predicted + 1) % 4
    assert not torch.allclose(metric(maps(), images(), other), metric(maps(), images(), predicted))


@pytest.mark.parametrize("metric", ALL)
def test_nothing_is_changed(metric: Callable[..., Tensor]) -> None:
    pictures, values, state = images().requires_grad_(), maps(), torch.get_rng_state()
    found = metric(values, pictures, 1)
    assert torch.equal(pictures, images())
    assert torch.equal(values, maps())
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.requires_grad
    assert all(p.grad is None for p in MODEL.parameters())


def test_memory_holds_no_more_than_a_batch() -> None:
    sizes = []

    def model(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        logits: Tensor = MODEL(batch)
        return logits

    metrics.deletion(maps(), images(), 1, model, steps=20, batch_size=8)
    assert sizes == [8] * 7 + [7]


def test_arrays_do_as_well() -> None:
    found = metrics.deletion(maps().numpy(), images(), np.array([1, 2, 0]), MODEL, steps=6)
    assert torch.equal(found, metrics.deletion(maps(), images(), [1, 2, 0], MODEL, steps=6))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"maps": maps()[0]}, CamhookError, r"shape \(6, 9\).*\(B, H, W\).*maps\[None\]"),
        ({"maps": maps()[:, None]}, CamhookError, r"maps\[:, 0\]"),
        ({"maps": maps().fill_(float("nan"))}, CamhookError, "NaN.*finite"),
        ({"maps": maps()[:2]}, ImageError, "3 images .* for 2 maps"),
        ({"maps": maps(3, (9, 6))}, ImageError, r"\(6, 9\) for 3 maps of \(9, 6\).*Upsample"),
        ({"images": images()[0]}, ImageError, r"images\[None\]"),
        ({"images": images().to(torch.uint8)}, ImageError, "uint8.*Preprocess first"),
        ({"target": [1, 2]}, TargetError, r"shape \(2,\) for 3 images"),
        ({"target": 4}, TargetError, "classes 0 to 3"),
        ({"target": -1}, TargetError, "classes 0 to 3"),
        ({"target": 1.0}, TargetError, "pass integers"),
        ({"model": Tiny()}, CamhookError, r"model.eval\(\)"),
        ({"model": lambda x: x.mean((1, 2, 3))}, CamhookError, r"\(3,\).*logits \(N, K\)"),
        ({"model": lambda x: x.mean((2, 3))[:, :1]}, CamhookError, r"pair \[0, x\]"),
        ({"model": lambda x: (x, x)}, CamhookError, "tuple.*logits"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"maps": maps(), "images": images(), "target": 1, "model": MODEL, **change}
    for metric in (metrics.deletion, metrics.insertion, metrics.road, metrics.average_drop, metrics.infidelity):
        with pytest.raises(error, match=message):
            metric(**given, batch_size=3)  # type: ignore[arg-type]


def test_bad_options() -> None:
    arguments = (maps(), images(), 1, MODEL)
    with pytest.raises(CamhookError, match="steps=0"):
        metrics.deletion(*arguments, steps=0)
    with pytest.raises(CamhookError, match="batch_size=0"):
        metrics.insertion(*arguments, batch_size=0)
    with pytest.raises(CamhookError, match=r"order='both'.*'combined', 'lerf' or 'morf'"):
        metrics.road(*arguments, order="both")  # type: ignore[arg-type]
    for bad in ([], [0, 50], [100]):
        with pytest.raises(CamhookError, match="percentages"):
            metrics.road(*arguments, percentages=bad)
    with pytest.raises(CamhookError, match="every pixel removed"):
        metrics.imputed(images(), torch.ones(3, *SIZE, dtype=torch.bool))
    with pytest.raises(CamhookError, match="bool \\(B, H, W\\)"):
        metrics.imputed(images(), torch.ones(3, *SIZE))
