"""What a call costs beside the model's own forward pass: no waiting for the device, no copies, no graph."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import camhook
from camhook.engine.inputs import check_tensor

SIZE = (64, 64)


def flatten() -> nn.Module:
    steps = nn.Sequential(nn.Conv2d(3, 16, 7, 8, padding=3), nn.ReLU(), nn.Conv2d(16, 24, 3, 4, padding=1))
    return nn.Sequential(*steps, nn.Flatten(), nn.Linear(24 * 4, 32), nn.ReLU(), nn.Linear(32, 40))


def timms(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=40, **options)


KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "affine": (timms("test_resnet"), {}),
    "norm": (timms("test_convnext"), {}),
    "mlp": (timms("mobilenetv3_small_050"), {}),
    "class token": (timms("test_vit", img_size=64), {}),
    "attention pool": (timms("test_vit", img_size=64, global_pool="map", class_token=False), {}),
    "flatten": (flatten, {}),
    "general": (timms("test_resnet"), {"target_layer": "layer3"}),
}
CALLS: dict[str, dict[str, Any]] = {
    "predicted": {},
    "all": {"target": "all"},
    "topk": {"topk": 3},
    "rivals": {"contrast": "rivals"},
}


def wrapped(kind: str) -> tuple[Any, camhook.CAM, Tensor]:
    make, options = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return model, camhook.wrap(model, input_size=SIZE, **options), x


class Waits(TorchDispatchMode):
    """Counts the steps for which a device would have to be waited for."""

    NAMES = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        by_mask = name.startswith("index") and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)
            for each in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if name in self.NAMES or by_mask or "_assert_async" in name:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_waits_for_nothing_but_the_look_at_a_cpu_tensor(kind: str, call: str) -> None:
    model, cam, x = wrapped(kind)
    cam(x, **CALLS[call])
    with Waits() as own, torch.no_grad():
        model(x)
    assert own.found == []
    with Waits() as waits:
        result = cam(x, **CALLS[call])
    assert waits.found == ["_local_scalar_dense"]  # is the tensor finite? asked on the CPU only
    with Waits() as waits, cam.capture() as captured:
        model(x)
    with waits:
        captured.result(**CALLS[call])
    assert waits.found == []
    with waits:
        bool(result.exact.all())
    assert waits.found  # the mode does see such a step


def unknown_gradients(outputs: Tensor, inputs: Any, **options: Any) -> tuple[Tensor, ...]:
    return tuple(map(torch.empty_like, [inputs] if isinstance(inputs, Tensor) else inputs))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_on_another_device_neither_waits_nor_mixes_devices(
    kind: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors that have a device and no values, whatever needs a value raises, and so do two devices in one step."""
    model, cam, _ = wrapped(kind)
    # The backward pass itself would look for a real device; the test above watches it.
    monkeypatch.setattr(torch.autograd, "grad", unknown_gradients)
    with FakeTensorMode():
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    module._parameters[name] = nn.Parameter(torch.empty(value.shape, device="cuda"))
            for name, value in module._buffers.items():
                if value is not None:
                    module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
        x = torch.empty(2, 3, *SIZE, device="cuda")
        there = camhook.CAM(cam.reader.like(model))
        with pytest.raises(Exception, match=r"item|scalar"):
            bool(x.sum() > 0)
        result = there(x, **CALLS[call])
        with there.capture() as captured:
            model(x)
        again = captured.result(**CALLS[call])
    for each in (result, again):
        assert {t.device.type for t in (each.maps, each.offset, each.target, each.logits, each.exact)} == {"cuda"}


def test_whether_a_tensor_is_finite_is_not_asked_on_another_device() -> None:
    check_tensor(torch.empty(1, 3, 8, 8, device="meta"), 3, torch.empty(0, device="meta"))  # a look would raise


def test_a_picture_that_is_not_finite_and_was_not_looked_at_shows_in_the_error() -> None:
    model, cam, x = wrapped("affine")
    x[0, 0, 5, 5] = float("nan")
    with torch.no_grad(), cam.capture() as captured:
        model(x)
    result = captured.result()
    assert result.exact.tolist() == [[False], [True]]
    assert result.completeness_error.isnan().tolist() == [[True], [False]]


@pytest.mark.parametrize("kind", ["affine", "norm", "flatten", "general"])
def test_features_are_the_models_own_tensor(kind: str) -> None:
    model, cam, x = wrapped(kind)
    (features,) = cam.reader.plan_for(SIZE).features
    assert not features.point.overwritten
    seen: list[int] = []
    model.get_submodule(features.point.module).register_forward_hook(lambda *given: seen.append(given[2].data_ptr()))
    with torch.no_grad(), cam.capture() as captured:
        model(x)
    kept = captured._passed.forward.features[features.point]
    assert [kept.data_ptr()] == seen
    assert kept.grad_fn is None
    assert not kept.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_backbone_leaves_no_graph(kind: str) -> None:
    """What autograd keeps is of the tail: nothing as large as an early layer, and nothing once the result is there."""
    model, cam, x = wrapped(kind)
    sizes: list[int] = []

    def packed(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    ran: list[bool] = []
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
        result = cam(x)
        inside = len(sizes)
        torch.nn.functional.relu(x.clone().requires_grad_())
        assert len(sizes) > inside  # the hook does see what is kept
    assert ran
    assert not any(ran)
    for value in vars(result).values():
        assert not isinstance(value, Tensor) or (value.grad_fn is None and not value.requires_grad)


def test_no_model_is_kept_alive() -> None:
    model, cam, _ = wrapped("class token")
    there = [weakref.ref(each) for each in (model, model.head, model.head.weight)]
    del model, cam
    gc.collect()
    assert [each() for each in there] == [None] * 3


MANY = """
import torch, camhook
from pathlib import Path
from camhook.cli import check as checks
import timm

def kib(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

def peak(run):
    Path("/proc/self/clear_refs").write_text("5")
    before = kib("VmRSS")
    kept = run()
    return (kib("VmHWM") - before) * 1024, kept

torch.set_num_threads(1)
model = timm.create_model("test_resnet", num_classes=21841).eval()
checks.jitter(model)
cam = camhook.wrap(model)
x = torch.randn(4, 3, 288, 288)
for warm in range(2):
    cam(x[:1], "all")
with torch.inference_mode():
    plain, _ = peak(lambda: model(x))
highest, result = peak(lambda: cam(x, "all"))
print(plain, highest, result.maps.nbytes, bool(result.exact.all()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_maps_of_21841_classes_take_little_more_than_themselves() -> None:
    steady = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MANY]
    done = subprocess.run(command, env={**os.environ, **steady}, check=True, capture_output=True, text=True)
    plain, highest, maps, exact = done.stdout.split()
    assert int(maps) == 4 * 4 * 21841 * 81
    assert exact == "True"
    assert int(highest) < 1.5 * int(maps) + int(plain)
