"""`CAM.capture`: maps from the caller's own forward pass, which is not changed by a bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import camhook
from camhook.errors import HookError, UnsupportedModelError

SMALL = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
MODELS: dict[str, Callable[[], Any]] = {
    "resnet": lambda: timm.create_model("test_resnet", num_classes=10),
    "mlp-head": lambda: timm.create_model("test_mambaout", num_classes=10),
    "class-token": lambda: timm.create_model("test_vit", num_classes=10, img_size=64),
    "attention-modules": lambda: torchvision.models.VisionTransformer(**SMALL, num_classes=10),
    "flatten": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)
    ),
}
over_models = pytest.mark.parametrize("name", MODELS)


@cache
def made(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def wrapped(name: str) -> tuple[Any, camhook.CAM, Tensor]:
    model = made(name)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return model.eval(), camhook.wrap(model, input_size=(64, 64)), images


@over_models
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_logits_are_the_same_bit_for_bit(name: str, mode: Callable[[], AbstractContextManager[None]]) -> None:
    model, cam, images = wrapped(name)
    with mode():
        expected = model(images)
        with cam.capture() as captured:
            logits = model(images)
    assert torch.equal(logits, expected)
    result = captured.result([1, 2])
    assert result.exact.all()
    torch.testing.assert_close(result.maps, cam(images, [1, 2]).maps)
    assert torch.equal(result.logits, logits.detach())


def test_in_a_validation_loop() -> None:
    model, cam, _ = wrapped("class-token")
    batches = [torch.randn(size, 3, 64, 64, generator=torch.Generator().manual_seed(size)) for size in (4, 4, 3)]
    with torch.no_grad():
        plain = [model(batch) for batch in batches]
        for batch, expected in zip(batches, plain, strict=True):
            with cam.capture() as captured:
                logits = model(batch)
            assert torch.equal(logits, expected)
            assert captured.result(logits.argmax(1)).exact.all()


@over_models
def test_training_goes_on_as_before(name: str) -> None:
    model, cam, images = wrapped(name)
    gradients = []
    for watch in (False, True):
        model.train().zero_grad()
        torch.manual_seed(3)
        if watch:
            with cam.capture() as captured:
                logits = model(images)
            captured.result(topk=2)
        else:
            logits = model(images)
        logits.square().sum().backward()
        gradients.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_under_autocast() -> None:
    model, cam, images = wrapped("class-token")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(images)
        with cam.capture() as captured:
            logits = model(images)
    assert torch.equal(logits, expected)
    assert captured.result().exact.all()


def test_a_block_holds_one_pass() -> None:
    model, cam, images = wrapped("resnet")
    with pytest.raises(HookError, match="the model ran twice: open a block for each"), cam.capture():
        [model(images) for _ in range(2)]
    with pytest.raises(HookError, match="did not run in the block"), cam.capture():
        pass
    with cam.capture() as captured:
        model(images)
        with pytest.raises(HookError, match="run the model in the block, then leave it"):
            captured.result()
    with pytest.raises(ZeroDivisionError), cam.capture():
        raise ZeroDivisionError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_another_model_may_run_in_the_block() -> None:
    model, cam, images = wrapped("class-token")
    other = timm.create_model("test_vit", img_size=64, num_classes=10).eval()
    with torch.no_grad(), cam.capture() as captured:
        other(images)
        model(images)
        other(images)
    torch.testing.assert_close(captured.result([1, 2]).maps, cam(images, [1, 2]).maps)


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    model, cam, images = wrapped("class-token")
    handle = model.blocks[3].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), cam.capture():
        model(images)
    handle.remove()
    assert torch.overrides._get_current_function_mode_stack() == []
    assert cam(images).exact.all()


def test_class_tokens_of_another_size() -> None:
    model = timm.create_model("test_vit", img_size=64, dynamic_img_size=True).eval()
    cam = camhook.wrap(model)
    with pytest.raises(HookError, match=r"made ready for images of \(64, 64\).*\(64, 96\)"), cam.capture():
        model(torch.zeros(1, 3, 64, 96))
    result = cam(torch.zeros(1, 3, 64, 96))  # a call of its own plans anew
    assert result.maps.shape[2:] == (4, 6)
    assert result.exact.all()


@pytest.mark.parametrize("around", [nn.DataParallel, torch.compile])
def test_models_in_wrappers_are_run_themselves_and_not_captured(around: Callable[[Any], Any]) -> None:
    model, plain, images = wrapped("class-token")
    cam = camhook.wrap(around(model), input_size=(64, 64))
    assert cam.model is model
    assert torch.equal(cam(images).maps, plain(images).maps)
    with (
        pytest.raises(UnsupportedModelError, match=r"cannot watch a model inside .* Call cam\(images\)"),
        cam.capture(),
    ):
        pass


def test_scripted_models_are_refused() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        traced = torch.jit.trace(made("flatten").eval(), torch.zeros(1, 3, 64, 64))
    with pytest.raises(UnsupportedModelError, match="scripted or traced: hooks see nothing"):
        camhook.wrap(traced)


class RoundTheLayer(nn.Module):
    """A skip connection bypasses the layer that is named."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        logits: Tensor = self.fc((x + self.block(x).relu()).mean((2, 3)))
        return logits


def test_a_map_that_costs_a_second_pass_is_not_captured() -> None:
    torch.manual_seed(0)
    model = RoundTheLayer()
    cam, images = camhook.wrap(model, input_size=(64, 64), target_layer="block"), torch.randn(2, 3, 64, 64)
    assert cam.describe().forward_passes == 2
    assert cam(images).exact.all()
    with pytest.raises(
        UnsupportedModelError, match="a skip connection bypasses block, so that this map costs a second"
    ):
        cam.capture().__enter__()
