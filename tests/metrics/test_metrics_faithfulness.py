"""Average drop and its kin against explicit loops in float64, hand-computed cases, and the known traps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from camhook import metrics
from camhook.errors import CamhookError, ImageError

Array = npt.NDArray[np.float64]
SIZE = (5, 8)
WEIGHT = torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model(batch: Tensor) -> Tensor:
    return torch.tanh(torch.einsum("bchw,kchw->bk", batch, WEIGHT) / 3) * 3


def explain(batch: Tensor, target: Tensor) -> Tensor:
    return (batch * WEIGHT[target]).sum(1) + 0.1 * batch[:, 0] ** 2


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


TARGET = [0, 3, 1, 2]


def maps() -> Tensor:
    return explain(images(), torch.tensor(TARGET))


def softmax(picture: Array) -> Array:
    logits = model(torch.from_numpy(picture)[None])[0].numpy()
    shares: Array = np.exp(logits) / np.exp(logits).sum()
    return shares


def shown(picture: Array, values: Array, ground: float = 0.0) -> Array:
    """Multiply pixel by pixel."""
    out: Array = picture.copy()
    peak = max(values.max(), 0)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            opacity = max(values[y, x], 0) / peak if peak > 0 else 0
            out[:, y, x] = ground + opacity * (picture[:, y, x] - ground)
    return out


def pearson(a: Array, b: Array) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def positive(values: Array) -> Array:
    scaled: Array = np.maximum(values, 0) / max(values.max(), 1e-300)
    return scaled


@pytest.mark.parametrize("ground", [0.0, 0.7])
def test_drop_increase_and_gain_are_the_formulas(ground: float) -> None:
    signed = maps() * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    drop = metrics.average_drop(signed, images(), TARGET, model, baseline=ground)
    rise = metrics.increase_in_confidence(signed, images(), TARGET, model, baseline=ground)
    gain = metrics.average_gain(signed, images(), TARGET, model, baseline=ground)
    for i, (picture, values, target) in enumerate(zip(images().numpy(), signed.numpy(), TARGET, strict=True)):
        before, after = softmax(picture)[target], softmax(shown(picture, values, ground))[target]
        assert drop[i] == pytest.approx(max(0, before - after) / before, abs=1e-13)
        assert rise[i] == (after > before)
        assert gain[i] == pytest.approx(max(0, after - before) / (1 - before), abs=1e-13)
    assert 0 < rise.sum() < 4
    assert 0 < (drop > 0).sum() < 4  # both branches are met


def test_coherency_complexity_and_adcc_are_the_formulas() -> None:
    alike = metrics.coherency(maps(), images(), TARGET, explain)
    shows = metrics.complexity(maps())
    drop = metrics.average_drop(maps(), images(), TARGET, model)
    together = metrics.adcc(maps(), images(), TARGET, model, explain)
    for i, (picture, values, target) in enumerate(zip(images().numpy(), maps().numpy(), TARGET, strict=True)):
        again = explain(torch.from_numpy(shown(picture, values))[None], torch.tensor([target]))[0].numpy()
        y = (1 + pearson(positive(values), positive(again))) / 2
        c = sum(positive(values)[h, w] for h in range(SIZE[0]) for w in range(SIZE[1])) / (SIZE[0] * SIZE[1])
        assert alike[i] == pytest.approx(y, abs=1e-12)
        assert shows[i] == pytest.approx(c, abs=1e-14)
        assert together[i] == pytest.approx(3 / (1 / y + 1 / (1 - c) + 1 / (1 - float(drop[i]))), abs=1e-12)


def test_a_map_that_shows_all_drops_nothing_and_scores_no_adcc() -> None:
    everything = torch.full((4, *SIZE), 2.5)
    assert metrics.average_drop(everything, images(), TARGET, model).tolist() == [0] * 4
    assert metrics.increase_in_confidence(everything, images(), TARGET, model).tolist() == [0] * 4
    assert metrics.average_gain(everything, images(), TARGET, model).tolist() == [0] * 4
    assert metrics.complexity(everything).tolist() == [1] * 4
    assert metrics.coherency(everything, images(), TARGET, explain).tolist() == [0] * 4  # constant: undefined
    assert metrics.adcc(everything, images(), TARGET, model, explain).tolist() == [0] * 4


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_map_without_positive_evidence_shows_the_baseline_alone(value: float) -> None:
    nothing = torch.full((4, *SIZE), value) - torch.rand(4, *SIZE) * abs(value)
    blank = torch.full((4, 3, *SIZE), 0.4, dtype=torch.float64)
    drop = metrics.average_drop(nothing, images(), TARGET, model, baseline=0.4)
    before, after = (model(batch).softmax(1)[range(4), TARGET] for batch in (images(), blank))
    torch.testing.assert_close(drop, ((before - after) / before).clamp(min=0))
    assert metrics.complexity(nothing).tolist() == [0] * 4
    assert metrics.adcc(nothing, images(), TARGET, model, explain).tolist() == [0] * 4


def test_the_mask_is_min_max_on_maps_from_zero() -> None:
    values = maps().clamp(min=0)
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    torch.testing.assert_close(metrics.complexity(values), ((values - low) / (high - low)).mean((1, 2)))


def test_improbable_targets_stay_exact() -> None:
    """At 1e-400 a probability is 0 in float64, and its share that is lost 0 / 0, unless logarithms are kept."""

    def extreme(batch: Tensor) -> Tensor:
        score = batch.mean((1, 2, 3))
        return torch.stack([1000 - 1000 * score, torch.full_like(score, 1000)], dim=1)

    picture, half = torch.ones(1, 1, 2, 2), torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    assert metrics.average_drop(half, picture, 0, extreme).tolist() == [0]
    assert metrics.increase_in_confidence(half, picture, 0, extreme).tolist() == [1]
    assert metrics.average_drop(half, picture, 1, extreme).tolist() == [0]
    assert metrics.average_gain(half, picture, 1, extreme).tolist() == [0]  # nothing was missing from 1
    falls = metrics.average_drop(half, picture, 0, lambda x: extreme(2 - x))
    assert 1 - 1e-12 < falls.item() <= 1


CALLS: list[tuple[str, Callable[..., Tensor]]] = [
    ("drop", lambda m, x, t, **o: metrics.average_drop(m, x, t, model, **o)),
    ("increase", lambda m, x, t, **o: metrics.increase_in_confidence(m, x, t, model, **o)),
    ("gain", lambda m, x, t, **o: metrics.average_gain(m, x, t, model, **o)),
    ("coherency", lambda m, x, t, **o: metrics.coherency(m, x, t, explain, **o)),
    ("adcc", lambda m, x, t, **o: metrics.adcc(m, x, t, model, explain, **o)),
    ("completeness", lambda m, x, t, **o: metrics.completeness(m, x, t, model, **o)),
]


@pytest.mark.parametrize("metric", [call for _, call in CALLS], ids=[name for name, _ in CALLS])
def test_one_image_scores_as_among_many(metric: Callable[..., Tensor]) -> None:
    together = metric(maps(), images(), TARGET)
    assert together.shape == (4,)
    assert together.dtype == torch.float64
    alone = [metric(maps()[i : i + 1], images()[i : i + 1], TARGET[i]) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(metric(maps(), images(), TARGET, batch_size=3), together, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("metric", [call for _, call in CALLS], ids=[name for name, _ in CALLS])
def test_target_need_not_be_the_prediction(metric: Callable[..., Tensor]) -> None:
    predicted = model(images()).argmax(1)
    one, other = (metric(maps(), images(), (predicted + shift) % 4) for shift in (0, 1))
    assert not torch.allclose(one, other) or metric is CALLS[1][1]


def test_completeness_adds_up() -> None:
    scores = model(images())[range(4), TARGET]
    offset = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
    exact = maps() + (scores - offset - maps().mean((1, 2)))[:, None, None]
    assert (metrics.completeness(exact, images(), TARGET, model, offset=offset) < 1e-12).all()
    off = metrics.completeness(exact, images(), TARGET, model, offset=offset + torch.tensor([0.0, 1.0, -2.0, 0.0]))
    torch.testing.assert_close(off, torch.tensor([0.0, 1.0, 2.0, 0.0], dtype=torch.float64))
    summed = metrics.completeness(exact / 40, images(), TARGET, model, offset=offset, total="sum")
    assert (summed < 1e-12).all()
    small = (scores - offset)[:, None, None].expand(4, 2, 3)  # maps have their own size
    assert (metrics.completeness(small, images(), TARGET, model, offset=offset) < 1e-12).all()
    with pytest.raises(ImageError, match="3 images for 4 maps"):
        metrics.completeness(exact, images(3), TARGET, model)
    with pytest.raises(CamhookError, match="total='max'"):
        metrics.completeness(exact, images(), TARGET, model, total="max")  # type: ignore[arg-type]
    with pytest.raises(CamhookError, match="3 offsets for 4 maps"):
        metrics.completeness(exact, images(), TARGET, model, offset=offset[:3])


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(CamhookError, match=r"explain\(\) gave maps \(4, 2, 2\).*\(4, 5, 8\)"):
        metrics.coherency(maps(), images(), TARGET, lambda batch, target: torch.ones(len(batch), 2, 2))


def test_explanations_may_need_gradients() -> None:
    def gradient(batch: Tensor, target: Tensor) -> Tensor:
        batch = batch.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(batch)[range(len(batch)), target].sum(), batch)
        return (found * batch).sum(1)

    values = gradient(images(), torch.tensor(TARGET))
    assert metrics.coherency(values, images(), TARGET, gradient).shape == (4,)
    assert metrics.sensitivity_max(images(), TARGET, gradient).shape == (4,)
