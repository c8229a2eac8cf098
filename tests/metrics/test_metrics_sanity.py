"""Infidelity, sensitivity, randomisation and agreement against Captum, SciPy, and explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import infidelity_perturb_func_decorator
from scipy.stats import spearmanr  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor, nn

from camhook import metrics
from camhook.errors import CamhookError, TargetError
from camhook.metrics.robustness import _squares
from camhook.metrics.sanity import layers_from_the_head

SIZE = (8, 12)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 5, 3), nn.Tanh())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).double().eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def maps(count: int = 3) -> Tensor:
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradient(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    batch = batch.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(model(batch).gather(1, target[:, None]).sum(), batch)
    return (found * batch.detach()).sum(1)


TARGET = [0, 3, 1]

# --- infidelity ------------------------------------------------------------------------------------------------------


def test_infidelity_is_the_formula() -> None:
    model, found = (
        network().requires_grad_(False),
        metrics.infidelity(maps(), images(), TARGET, network(), samples=16, baseline=0.5),
    )
    marked = _squares(16, SIZE, 0.25, torch.Generator().manual_seed(0)).numpy()
    for i, target in enumerate(TARGET):
        told, lost = [], []
        for square in marked:
            picture = images()[i].numpy().copy()
            before = float(model(torch.from_numpy(picture)[None])[0, target])
            picture[:, square] = 0.5
            lost.append(before - float(model(torch.from_numpy(picture)[None])[0, target]))
            told.append(sum(maps()[i].numpy()[y, x] for y, x in np.argwhere(square)))
        a, b = np.array(told), np.array(lost)
        beta = (a * b).mean() / (a * a).mean()
        assert found[i].item() == pytest.approx(((beta * a - b) ** 2).mean(), rel=1e-9)


def test_infidelity_is_captums_with_its_own_decorator() -> None:
    """Captum, told pictures only, finds the perturbation as (x - x') / (x - baseline): the marks again."""
    model, picture = network(), images(1)
    generator = torch.Generator().manual_seed(0)

    @infidelity_perturb_func_decorator(True)  # type: ignore[untyped-decorator]
    def remove(batch: Tensor, baselines: Tensor) -> Tensor:
        marked = _squares(len(batch), SIZE, 0.25, generator)[:, None]
        return torch.where(marked, baselines, batch)

    attributions = (maps(1)[:, None] / 3).expand(1, 3, *SIZE)
    expected = captum_infidelity(
        model, remove, picture, attributions, baselines=0.5, target=2, n_perturb_samples=16, normalize=True
    )
    found = metrics.infidelity(maps(1), picture, 2, model, samples=16, baseline=0.5)
    torch.testing.assert_close(found, expected.double(), rtol=1e-9, atol=0)


def test_exact_contributions_have_no_infidelity_and_scale_and_sign_do_not_count() -> None:
    weight = torch.randn(3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def model(batch: Tensor) -> Tensor:
        score = (batch * weight).sum((1, 2, 3))
        return torch.stack([score, -score], dim=1)

    exact, options = (images() * weight).sum(1), {"samples": 20}
    perfect = metrics.infidelity(exact, images(), 0, model, **options)
    empty = metrics.infidelity(torch.zeros(3, *SIZE), images(), 0, model, **options)
    random = metrics.infidelity(maps(), images(), 0, model, **options)
    assert (perfect < 1e-10 * empty).all()
    assert (perfect < random).all()
    assert (random <= empty).all()  # the best factor includes 0
    for scale in (-1.0, 100.0):
        scaled = metrics.infidelity(maps() * scale, images(), 0, model, **options)
        torch.testing.assert_close(scaled, random)


@pytest.mark.parametrize("side", [0.05, 0.25, 1.0])
def test_squares_are_squares_inside(side: float) -> None:
    marked = _squares(200, SIZE, side, torch.Generator().manual_seed(0))
    length = max(round(side * 8), 1)
    assert (marked.sum((1, 2)) == length**2).all()
    assert (marked.any(2).sum(1) == length).all()
    assert marked.any(0).all() or side == 0.05  # every place may go
    assert torch.equal(_squares(3, SIZE, side, torch.Generator().manual_seed(0)), marked[:3])


# --- sensitivity -----------------------------------------------------------------------------------------------------


def test_sensitivity_is_the_formula() -> None:
    model = network()
    found = metrics.sensitivity_max(images(), TARGET, lambda x, t: gradient(model, x, t), radius=0.1, samples=7)
    generator = torch.Generator().manual_seed(0)
    noise = [0.1 * (2 * torch.rand(1, 3, *SIZE, generator=generator, dtype=torch.float64) - 1) for _ in range(7)]
    for i, target in enumerate(TARGET):
        wanted = torch.tensor([target])
        before = gradient(model, images()[i : i + 1], wanted)
        moves = [(gradient(model, images()[i : i + 1] + each, wanted) - before).norm() for each in noise]
        assert found[i].item() == pytest.approx((max(moves) / before.norm()).item(), rel=1e-9)


def test_sensitivity_of_captums_saliency() -> None:
    saliency = Saliency(network())

    def explain(batch: Tensor, target: Tensor) -> Tensor:
        found: Tensor = saliency.attribute(batch.clone().requires_grad_(), target=target).sum(1)
        return found

    found = metrics.sensitivity_max(images(), TARGET, explain)
    assert (found > 0).all()


def test_identical_maps_have_no_sensitivity() -> None:
    assert metrics.sensitivity_max(images(), 0, lambda x, t: maps()[:1].expand(len(x), -1, -1)).tolist() == [0] * 3
    assert metrics.sensitivity_max(images(), 0, lambda x, t: torch.zeros(len(x), *SIZE)).tolist() == [0] * 3
    assert metrics.sensitivity_max(images(), 0, lambda x, t: x.sum(1), radius=0).tolist() == [0] * 3


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_and_company_change_nothing(batch_size: int) -> None:
    model = network()
    together = metrics.infidelity(maps(), images(), TARGET, model, samples=10)
    parts = [
        metrics.infidelity(maps()[i : i + 1], images()[i : i + 1], TARGET[i], model, samples=10, batch_size=batch_size)
        for i in range(3)
    ]
    torch.testing.assert_close(torch.cat(parts), together)

    def explain(batch: Tensor, target: Tensor) -> Tensor:
        assert len(batch) <= batch_size
        return gradient(model, batch, target)

    alone = [metrics.sensitivity_max(images()[i : i + 1], TARGET[i], explain, batch_size=batch_size) for i in range(3)]
    together = metrics.sensitivity_max(images(), TARGET, lambda x, t: gradient(model, x, t))
    torch.testing.assert_close(torch.cat(alone), together)


def test_the_random_state_is_left_alone() -> None:
    model, state = network(), torch.get_rng_state()
    metrics.infidelity(maps(), images(), 0, model, samples=3)
    metrics.sensitivity_max(images(), 0, lambda x, t: x.sum(1))
    metrics.randomisation(images(), 0, model, gradient)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_sampling() -> None:
    with pytest.raises(CamhookError, match="samples=0"):
        metrics.infidelity(maps(), images(), 0, network(), samples=0)
    with pytest.raises(CamhookError, match=r"side=1.5"):
        metrics.infidelity(maps(), images(), 0, network(), side=1.5)
    with pytest.raises(CamhookError, match=r"radius=-1"):
        metrics.sensitivity_max(images(), 0, lambda x, t: x.sum(1), radius=-1)
    with pytest.raises(TargetError, match="for 3 images"):
        metrics.sensitivity_max(images(), [0, 1], lambda x, t: x.sum(1))
    with pytest.raises(CamhookError, match=r"explain\(\) gave 1 maps"):
        metrics.sensitivity_max(images(), 0, lambda x, t: torch.ones(1, *SIZE))


# --- randomisation ---------------------------------------------------------------------------------------------------


def test_layers_go_from_the_head_down() -> None:
    found = metrics.cascading_randomisation(images(), TARGET, network(), gradient)
    assert found.layers == (("7",), ("3",), ("1",), ("0",))
    assert found.correlation.shape == (3, 4)


def test_each_stage_keeps_what_was_randomised_before() -> None:
    model = network()
    original = next(model.parameters()).detach().clone()
    seen: list[list[bool]] = []

    def explainer(candidate: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        same = [torch.equal(a, b) for a, b in zip(candidate.parameters(), model.parameters(), strict=True)]
        seen.append([same[index] for index in (0, 4, 6)])  # the weights of 0, 3 and 7
        return batch[:, 0]

    metrics.cascading_randomisation(images(), TARGET, model, explainer, stages=[["7"], ["3"], ["0", "1"]])
    assert seen == [[True] * 3, [True, True, False], [True, False, False], [False] * 3]
    assert torch.equal(next(model.parameters()), original)


def test_correlation_is_spearmans_of_absolute_maps() -> None:
    calls = []

    def explainer(candidate: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        calls.append(gradient(candidate, batch, target))
        return calls[-1]

    found = metrics.cascading_randomisation(images(), TARGET, network(), explainer, stages=2)
    assert found.layers == (("7", "3"), ("1", "0"))
    for stage in range(2):
        for i in range(3):
            expected = spearmanr(calls[0][i].abs().flatten(), calls[1 + stage][i].abs().flatten()).statistic
            assert found.correlation[i, stage].item() == pytest.approx(expected)
    mean = metrics.randomisation(images(), TARGET, network(), gradient, stages=2)
    torch.testing.assert_close(mean, found.correlation.mean(1))


def test_gradients_notice_and_edge_detectors_do_not() -> None:
    edges = metrics.randomisation(images(), TARGET, network(), lambda model, batch, target: batch.sum(1))
    assert edges.tolist() == [1, 1, 1]
    assert (metrics.randomisation(images(), TARGET, network(), gradient) < 0.9).all()


class Odd(nn.Module):
    """Layers out of order, attention whose output layer is never called, a parameter of its own, and a spare head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.spare = nn.Linear(6, 4)

    def forward(self, batch: Tensor) -> Tensor:
        tokens = self.stem(batch).flatten(2).mT + self.token
        logits: Tensor = self.head(self.attention(tokens, tokens, tokens)[0].mean(1))
        return logits


def test_layers_are_ordered_as_they_run() -> None:
    model = Odd().double().eval()
    assert layers_from_the_head(model, images(1)) == ["head", "attention.out_proj", "attention", "stem", "spare", ""]
    found = metrics.cascading_randomisation(images(1), 0, model, lambda m, x, t: gradient(m, x, t), stages=99)
    assert found.correlation.isfinite().all()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_parameters_without_a_reset_start_anew() -> None:
    model = Odd().double().eval()
    nn.init.normal_(model.token, 3, 0.1)
    seen = []

    def explainer(candidate: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        seen.append(candidate.token.detach().clone())  # type: ignore[operator]
        return batch[:, 0]

    metrics.cascading_randomisation(images(1), 0, model, explainer, stages=1)
    assert not torch.equal(seen[0], seen[1])
    assert seen[1].mean().item() == pytest.approx(3, abs=0.5)


def test_bad_randomisation() -> None:
    with pytest.raises(CamhookError, match=r"model.eval\(\)"):
        metrics.randomisation(images(), 0, network().train(), gradient)
    with pytest.raises(CamhookError, match=r"'layer4'.*a name such as 0, 1"):
        metrics.cascading_randomisation(images(), 0, network(), gradient, stages=[["layer4"]])
    with pytest.raises(CamhookError, match="without parameters"):
        metrics.randomisation(images(), 0, nn.Flatten().eval(), lambda model, batch, target: batch[:, 0])


# --- agreement -------------------------------------------------------------------------------------------------------


def test_rank_correlation_is_scipys_with_ties() -> None:
    first, second = maps().round(), (maps() + torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(4))).round()
    found = metrics.rank_correlation(first, second)
    for i in range(3):
        assert found[i].item() == pytest.approx(spearmanr(first[i].flatten(), second[i].flatten()).statistic)
    assert metrics.rank_correlation(first, first.exp()).tolist() == pytest.approx([1] * 3)
    flat = torch.ones(3, *SIZE)
    assert metrics.rank_correlation(flat, flat * 2).tolist() == [1] * 3
    assert metrics.rank_correlation(flat, first).tolist() == [0] * 3


def test_top_overlap_is_the_iou_of_the_strongest_fifth() -> None:
    first, second = maps(), maps().flip(0)
    found = metrics.top_overlap(first, second)
    for i in range(3):
        top, other = (set(m[i].flatten().argsort(descending=True)[:19].tolist()) for m in (first, second))
        assert found[i].item() == pytest.approx(len(top & other) / len(top | other))
    assert metrics.top_overlap(first, first).tolist() == [1] * 3
    with pytest.raises(CamhookError, match="share=0"):
        metrics.top_overlap(first, second, share=0)
    with pytest.raises(CamhookError, match=r"\(3, 8, 12\) and \(2, 8, 12\)"):
        metrics.rank_correlation(first, second[:2])
