"""Half precision, autocast and channels_last: the map of a float64 model with the same weights, up to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import camhook
from camhook.fitting.probe import Probe

SIZE = (64, 64)
NUM_CLASSES = 7
TARGETS = [[0, 3, 6], [1, 3, 5]]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device")),
]
ROUNDINGS = 16
"""How many roundings of the type, relative to the largest value of a map, its values may be off."""


def flatten() -> nn.Module:
    """A network whose every position has weights of its own."""
    steps = nn.Sequential(
        nn.Conv2d(3, 16, 7, 8, padding=3), nn.ReLU(), nn.Conv2d(16, 24, 3, 4, padding=1), nn.Flatten()
    )
    return nn.Sequential(*steps, nn.Linear(24 * 4, 32), nn.ReLU(), nn.Linear(32, NUM_CLASSES))


def timms(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=NUM_CLASSES, **options)


# name: how the model is made, how it is wrapped, what head is found
KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "affine": (timms("test_resnet"), {}, "mean/linear"),
    "norm": (timms("test_convnext"), {}, "mean/norm-linear"),
    "mlp": (timms("mobilenetv3_small_050"), {}, "mean/mlp"),
    "class token": (timms("test_vit", img_size=64), {}, "attention/deep"),
    "attention pool": (
        timms("test_vit", img_size=64, global_pool="map", class_token=False),
        {},
        "attention/mlp",
    ),
    "flatten": (flatten, {}, "flatten/mlp"),
    "general": (timms("test_resnet"), {"target_layer": "layer3"}, "general/deep"),
}
WAYS = ["float32", "channels_last", "float16", "bfloat16", "autocast float16", "autocast bfloat16"]


def prepared(make: Callable[[], nn.Module], way: str, device: str) -> tuple[nn.Module, Tensor, torch.dtype]:
    """Return a model without zeros and a batch for it, ready for a way of running, and the coarsest type in use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 3, *SIZE, generator=generator)
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(way.split()[-1], torch.float32)
    if way == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    elif not way.startswith("autocast"):
        model, x = model.to(dtype), x.to(dtype)
    return model.to(device), x.to(device), dtype


def reference(model: nn.Module, x: Tensor, **options: Any) -> camhook.CAM:
    return camhook.wrap(copy.deepcopy(model).cpu().double(), input_size=SIZE, **options)


def deviation(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_those_of_double_precision(kind: str, way: str, device: str) -> None:
    make, options, head = KINDS[kind]
    model, x, dtype = prepared(make, way, device)
    expected = reference(model, x, **options)(x.cpu().double(), TARGETS)
    cam = camhook.wrap(model, input_size=SIZE, **options)
    with torch.autocast(device, dtype, enabled=way.startswith("autocast")):
        with torch.no_grad():
            logits = model(x)
        found = cam(x, TARGETS)
    assert found.head == head
    allowed = ROUNDINGS * torch.finfo(dtype).eps
    assert deviation(found.maps, expected.maps) < allowed
    assert float((found.offset.cpu() - expected.offset).abs().max() / expected.logits.abs().max()) < allowed
    assert found.exact.all()
    assert torch.equal(found.logits, logits.float())
    assert logits.dtype == dtype
    every = (found.maps, found.offset, found.logits, found.scores, found.completeness_error, found.tolerance)
    assert {each.dtype for each in every} == {torch.float32}
    if dtype != torch.float32:  # it did run in half precision
        assert deviation(found.maps, expected.maps) > 20 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["channels_last", "autocast float16", "autocast bfloat16"])
@pytest.mark.parametrize("kind", ["affine", "class token", "attention pool", "flatten"])
def test_capture_gives_the_same_and_leaves_the_pass_alone(kind: str, way: str, device: str) -> None:
    make, options, _ = KINDS[kind]
    model, x, dtype = prepared(make, way, device)
    cam = camhook.wrap(model, input_size=SIZE, **options)
    with torch.autocast(device, dtype, enabled=way.startswith("autocast")):
        expected = model(x)
        called = cam(x, TARGETS)
        with cam.capture() as captured:
            logits = model(x)
        inside = captured.result(TARGETS)
    outside = captured.result(TARGETS)
    assert torch.equal(logits, expected)
    assert logits.dtype == expected.dtype
    for result in (inside, outside):
        assert torch.equal(result.maps, called.maps)
        assert torch.equal(result.logits, called.logits)
        assert result.exact.all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pool", ["gap", "attention"])
def test_probe(pool: str, way: str, device: str) -> None:
    make, _, _ = KINDS["class token" if pool == "attention" else "affine"]
    model, x, dtype = prepared(make, way, device)
    fitted = reference(model, x)
    images = torch.randn(12, 3, *SIZE, generator=torch.Generator().manual_seed(2)).double()
    fitted.fit([(images, torch.arange(12) % 3)], pool=pool, num_classes=3, progress=False)
    cam = camhook.wrap(model, input_size=SIZE)
    assert isinstance(fitted.probe, Probe)
    cam._probe = fitted.probe  # it was fitted on the same weights in another type, which the setter cannot know
    expected = fitted(x.cpu().double(), "all", method="probe")
    with torch.autocast(device, dtype, enabled=way.startswith("autocast")):
        found = cam(x, "all", method="probe")
    assert found.maps.dtype == found.logits.dtype == torch.float32
    assert found.exact.all()
    assert deviation(found.maps, expected.maps) < ROUNDINGS * torch.finfo(dtype).eps
