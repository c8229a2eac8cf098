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
from camhook.engine.outputs import check_tensor
from camhook.plan_cache import PlanCache, Unknown, structure_of

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
        there = cam.like(model)
        there._plans = cam._plans
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
    (features,) = cam.plan_for(SIZE).features
    assert not features.point.overwritten
    seen: list[int] = []
    model.get_submodule(features.point.module).register_forward_hook(lambda *given: seen.append(given[2].data_ptr()))
    with torch.no_grad(), cam.capture() as captured:
        model(x)
    assert captured._passed is not None
    kept = captured._passed[1].observation.features[features.point]
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


# Plans that are kept.


def searches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by one with each search for a plan; none is kept yet."""
    place: Any = sys.modules["camhook.engine.reader"]
    made: list[Any] = []
    search = place.make_plan

    def counted(*args: Any, **options: Any) -> Any:
        plan = search(*args, **options)
        made.append(plan.target_layer)
        return plan

    monkeypatch.setattr(place, "make_plan", counted)
    monkeypatch.setattr(place, "PLANS", PlanCache())
    return made


@pytest.mark.parametrize("kind", ["affine", "norm", "mlp", "class token", "attention pool", "flatten"])
def test_a_second_instance_takes_the_plan_of_the_first(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = searches(monkeypatch)
    _, first, _ = wrapped(kind)
    torch.manual_seed(0)
    model = KINDS[kind][0]().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    second = camhook.wrap(model, input_size=SIZE)
    assert len(made) == 1
    assert second.plan_for(SIZE) == first.plan_for(SIZE)
    assert second(torch.ones(1, 3, *SIZE)).exact.all()


class Loud(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def other_buffer(model: Any) -> None:
    model.register_buffer("mask", torch.ones(3))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another number of classes": lambda model: model.reset_classifier(5),
    "another pooling": lambda model: model.reset_classifier(40, "max"),
    "a deeper head": lambda model: setattr(model, "fc", nn.Sequential(model.fc, nn.ReLU(), nn.Linear(40, 40))),
    "another activation": lambda model: setattr(model, "act1", nn.GELU()),
    "the same module twice": lambda model: setattr(model, "act1", model.layer1[0].act1),
    "another stride": lambda model: setattr(model.conv1, "stride", (1, 1)),
    "a module more": lambda model: setattr(model, "maxpool", nn.Sequential(model.maxpool, Loud())),
    "an attribute": lambda model: setattr(model, "scale", 3.0),
    "a buffer": other_buffer,
    "something unknown": lambda model: setattr(model, "thing", object()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_differs_is_searched(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = searches(monkeypatch)
    wrapped("affine")
    model = KINDS["affine"][0]().eval()
    CHANGES[change](model)
    cam = camhook.wrap(model, input_size=SIZE)
    assert len(made) == 2
    assert cam(torch.ones(1, 3, *SIZE)).exact.all()


def test_a_method_exchanged_on_the_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = searches(monkeypatch)
    wrapped("affine")
    model = KINDS["affine"][0]()
    monkeypatch.setattr(type(model), "forward", vars(type(model))["forward_features"])
    camhook.wrap(model, input_size=SIZE)
    assert len(made) == 2


def test_a_forward_patched_on_the_instance_is_not_understood() -> None:
    model = KINDS["affine"][0]()
    own = model.forward
    model.forward = lambda x: own(x).relu()
    with pytest.raises(Unknown, match="function"):
        structure_of(model)


@pytest.mark.parametrize("options", [{"input_size": (96, 64)}, {"target_layer": "layer3"}, {"output": lambda x: x}])
def test_what_was_asked_for_is_part_of_the_key(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = searches(monkeypatch)
    wrapped("affine")
    camhook.wrap(KINDS["affine"][0](), **{"input_size": SIZE, **options})
    assert len(made) == 2


def test_the_values_of_a_buffer_count_and_those_of_running_statistics_do_not() -> None:
    def masked(value: float, mean: float) -> Any:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        model.register_buffer("mask", torch.tensor([1.0, value]))
        model[1].running_mean.fill_(mean)  # type: ignore[operator]
        return structure_of(model)

    assert masked(1, 0) == masked(1, 2)
    assert masked(1, 0) != masked(0, 0)
    assert masked(1, 0) != masked(1, float("nan"))


def test_no_model_is_kept_alive_by_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    made = searches(monkeypatch)
    model, cam, _ = wrapped("class token")
    there = [weakref.ref(each) for each in (model, model.head, model.head.weight)]
    del model, cam
    gc.collect()
    assert made
    assert [each() for each in there] == [None] * 3


def test_the_plan_not_used_for_longest_goes_first() -> None:
    plans: Any = PlanCache(2)
    made: list[str] = []

    def get(key: str) -> None:
        def make() -> Any:
            made.append(key)
            return key

        assert plans.get(key, make) == key

    for key in "abacab":
        get(key)
    assert made == ["a", "b", "c", "b"]
    assert len(plans) == 2


MANY = """
import torch, camhook
from pathlib import Path
from camhook import checks
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
