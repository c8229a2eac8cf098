"""The metrics by name: complete, honest about what they need and which way is better."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camhook import metrics
from camhook.errors import CamhookError

SIZE = (8, 8)
WEIGHT = torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Linear(nn.Module):
    """Sees class 0 in the upper left quarter only."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())
        with torch.no_grad():
            self.weight[0, :, 4:], self.weight[0, :, :, 4:] = 0, 0

    def forward(self, batch: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", batch, self.weight)


MODEL = Linear().eval()


def explainer(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return (batch * model.weight[target]).sum(1).detach()  # type: ignore[index]


def given() -> dict[str, Any]:
    images = torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {
        "maps": explainer(MODEL, images, torch.zeros(5, dtype=torch.long)),
        "images": images,
        "target": 0,
        "model": MODEL,
        "explain": lambda batch, target: explainer(MODEL, batch, target),
        "explainer": explainer,
        "boxes": [[0, 0, 4, 4]] * 5,
        "masks": metrics.box_masks([[0, 0, 4, 4]] * 5, SIZE),
        "cells": [0] * 5,
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "completeness": {"total": "sum"},
    "insertion": {"baseline": 0.0},
}


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_each_runs_by_name(name: str) -> None:
    found = metrics.metric(name)
    values = found(given(), **OPTIONS.get(name, {}))
    assert values.shape == ((5,) if found.per_image else ())
    assert values.dtype == torch.float64
    assert values.isfinite().all()
    assert found.name == name
    assert found.definition.endswith(".")
    assert found.source


BLIND = {"complexity", "infidelity", "coherency"}  # how much is shown, up to any factor, a method with itself


@pytest.mark.parametrize(
    "name", [key for key, each in metrics.METRICS.items() if "maps" in each.needs and key not in BLIND]
)
def test_the_truth_beats_its_opposite_in_the_direction_stated(name: str) -> None:
    found, inputs = metrics.metric(name), given()
    truth = inputs["maps"] if "model" in found.needs else inputs["masks"].double()
    options = OPTIONS.get(name, {})
    good, bad = (found({**inputs, "maps": sign * truth}, **options).mean() for sign in (1, -1))
    assert good > bad if found.higher_is_better else good < bad


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_each_says_what_it_misses(name: str) -> None:
    found = metrics.metric(name)
    for need in found.needs:
        without = {key: value for key, value in given().items() if key not in need.split("|")}
        with pytest.raises(
            CamhookError, match=f"'{name}' needs {' or '.join(need.split('|'))}, found .*leave the metric out"
        ):
            found(without)
        with pytest.raises(CamhookError, match="needs"):
            found(dict.fromkeys(given()))


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_what_it_needs_are_its_arguments_and_the_rest_are_options(name: str) -> None:
    found = metrics.metric(name)
    parameters = inspect.signature(found.function).parameters
    required = {key for key, p in parameters.items() if p.default is p.empty}
    needs = {part for need in found.needs for part in need.split("|")}
    assert required <= needs <= set(parameters)
    assert all(parameters[key].kind == parameters[key].KEYWORD_ONLY for key in set(parameters) - needs)


def test_every_public_metric_is_registered() -> None:
    registered = {getattr(found.function, "func", found.function) for found in metrics.METRICS.values()}
    helpers = {"blurred", "box_masks", "cascading_randomisation", "gaussian_maps", "imputed", "metric", "mosaics",
               "perturbation_curve", "random_maps", "rank_correlation", "top_overlap"}  # fmt: skip
    public = {name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
    assert public - helpers == {function.__name__ for function in registered}


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(CamhookError, match=r"No metric is named 'Insertoin'. Did you mean insertion"):
        metrics.metric("Insertoin")
    with pytest.raises(CamhookError, match=r"Did you mean.* max_box_acc_v2"):
        metrics.metric("MaxBoxAcc V2")
    with pytest.raises(CamhookError, match=r"Did you mean.* grid_pointing_game"):
        metrics.metric("pointing")
    with pytest.raises(CamhookError, match="There are insertion, deletion"):
        metrics.metric("xyzzy")


def test_options_of_a_metric_pass_through() -> None:
    exact = metrics.metric("deletion")(given(), steps=64)
    assert torch.equal(
        exact, metrics.deletion(*(given()[key] for key in ("maps", "images", "target", "model")), steps=64)
    )
    with pytest.raises(TypeError, match="stepz"):
        metrics.metric("deletion")(given(), stepz=64)


def test_the_registry_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        metrics.METRICS["mine"] = metrics.METRICS["road"]  # type: ignore[index]
