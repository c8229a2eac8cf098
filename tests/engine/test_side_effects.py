"""A call leaves everything as it was: hooks, flags, gradients, weights, random state, memory; threads do not meet."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from side_effects import SIZE, jittered, lived_in, pictures, same, snapshot, unchanged
from torch import Tensor

import camhook
from camhook.errors import HookError, TargetError

FAMILIES = ["test_resnet", "test_convnext", "test_mambaout"]  # a linear tail, one with a norm, one with an activation


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> Iterator[None]:
    """Tiny models on a busy machine spend their time waiting for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Sabotage(Exception):
    pass


def test_sweep_sees_changes() -> None:
    model, _ = lived_in()
    before = snapshot(model)
    model.layer2.train()
    model(pictures())
    handle = model.layer4.register_forward_hook(lambda *_: None)
    changed = {key for key, value in snapshot(model).items() if not same(before[key], value)}
    assert {"layer2: training", "layer4: _forward_hooks", "rng"} <= changed
    assert any(key.endswith("running_mean: value") for key in changed)
    handle.remove()


def test_wrap_changes_nothing_and_does_not_run() -> None:
    model, log = lived_in()
    log.clear()
    with unchanged(model):
        camhook.wrap(model, input_size=(SIZE, SIZE)).describe()
    assert log == []


@pytest.mark.parametrize("options", [{}, {"topk": 3}, {"target": "all"}, {"target": 2, "contrast": "rivals"}])
def test_call_changes_nothing(options: dict[str, Any]) -> None:
    model, log = lived_in()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    log.clear()
    with unchanged(model):
        assert cam(pictures(), **options).exact.all()
    assert log == ["pre", "forward"]  # the user's hooks saw one pass


def test_anatomy_changes_nothing() -> None:
    model, _ = lived_in()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    with unchanged(model):
        cam.anatomy(pictures(1))


@pytest.mark.parametrize("broken", ["layer4", "layer2", "fc"])
def test_error_in_the_forward_comes_through_and_changes_nothing(broken: str) -> None:
    model, _ = lived_in()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    error = Sabotage("disk on fire")

    def fail(*_: Any) -> Any:
        raise error

    model.get_submodule(broken).forward = fail
    with unchanged(model), pytest.raises(Sabotage) as caught:
        cam(pictures())
    assert caught.value is error


def test_interrupt_changes_nothing() -> None:
    model, _ = lived_in()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    model.layer4.forward = interrupt
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        cam(pictures())


def test_hook_that_never_fires_changes_nothing() -> None:
    model, _ = lived_in()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    model.forward = lambda x: x.mean((1, 2, 3))[:, None].expand(-1, 7)
    with unchanged(model), pytest.raises(HookError, match="did not go through layer4"):
        cam(pictures())


def test_layer_that_is_gone_changes_nothing() -> None:
    model, _ = lived_in()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    model.tail = model.layer4
    del model.layer4
    with unchanged(model), pytest.raises(HookError, match=r"no longer has .*'layer4'.*[Ww]rap it again"):
        cam(pictures())


def test_layer_that_gives_no_tensor_changes_nothing() -> None:
    model, _ = lived_in()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    model.layer4.forward = lambda x: {"x": x}
    with unchanged(model), pytest.raises(HookError, match="a tensor was expected there and dict was found"):
        cam(pictures())


@pytest.mark.parametrize("target", [7, -1, "cat", [1, 2, 3], 0.5])
def test_wrong_target_changes_nothing(target: Any) -> None:
    model, _ = lived_in()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    with unchanged(model), pytest.raises(TargetError):
        cam(pictures(), target)


def test_two_cams_on_one_model() -> None:
    model, _ = lived_in()
    alone = camhook.wrap(jittered(), input_size=(SIZE, SIZE))(pictures(), 1)
    model.load_state_dict(jittered().state_dict(), strict=False)
    first, second = (camhook.wrap(model, input_size=(SIZE, SIZE)) for _ in range(2))
    with unchanged(model):
        results = [cam(pictures(), 1) for cam in (first, second, first)]
    for result in results:
        torch.testing.assert_close(result.maps, alone.maps, rtol=0, atol=0)


def test_threads_get_their_own_results() -> None:
    model = jittered()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    batches = [pictures(1, seed=seed) for seed in range(4)]
    maps = [cam(batch, "all").maps for batch in batches]
    with torch.no_grad():
        logits = [model(batch) for batch in batches]
    assert not any(torch.allclose(maps[0], other) for other in maps[1:])

    def explain(seed: int) -> bool:
        return torch.allclose(cam(batches[seed % 4], "all").maps, maps[seed % 4], atol=1e-5)

    def predict(seed: int) -> bool:
        with torch.no_grad():
            return torch.allclose(model(batches[seed % 4]), logits[seed % 4], atol=1e-5)

    jobs: list[Callable[[int], bool]] = [explain, predict]
    with ThreadPoolExecutor(4) as pool:
        verdicts = [pool.submit(jobs[i % 2], i // 2) for i in range(80)]
        assert all(verdict.result(timeout=60) for verdict in verdicts)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("target", [None, "all"])
def test_grad_modes_give_the_same_maps(name: str, target: str | None) -> None:
    model = jittered(name)
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    plain = cam(pictures(), target).maps
    with torch.no_grad():
        assert torch.equal(cam(pictures(), target).maps, plain)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        made_inside = pictures()
        assert made_inside.is_inference()
        assert torch.equal(cam(made_inside, target).maps, plain)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(cam(made_inside, target).maps, plain)
    assert torch.equal(cam(pictures().requires_grad_(), target).maps, plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_model_made_in_inference_mode(name: str) -> None:
    plain = camhook.wrap(jittered(name), input_size=(SIZE, SIZE))(pictures(), [[1, 2]] * 2)
    with torch.inference_mode():
        model = jittered(name)
        assert next(model.parameters()).is_inference()
        cam = camhook.wrap(model, input_size=(SIZE, SIZE))
        inside = cam(pictures(), [[1, 2]] * 2)
    outside = cam(pictures(), [[1, 2]] * 2)
    for result in (inside, outside):
        assert result.exact.all()
        torch.testing.assert_close(result.maps, plain.maps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_results_hold_no_graph(name: str, mode: Any) -> None:
    cam, images = camhook.wrap(jittered(name), input_size=(SIZE, SIZE)), pictures().requires_grad_()
    with mode():
        result = cam(images, topk=2)
    tensors = {key: value for key, value in vars(result).items() if isinstance(value, Tensor)}
    assert len(tensors) == 7
    tensors |= {"exact": result.exact, "upsampled": torch.stack(list(result.upsampled()))}
    for key, tensor in tensors.items():
        assert not tensor.requires_grad, key
        assert tensor.grad_fn is None, key
        assert not tensor.is_inference(), key


def test_result_outlives_the_model() -> None:
    model = jittered()
    cam = camhook.wrap(model, input_size=(SIZE, SIZE))
    result = cam(pictures(), "all")
    gone = weakref.ref(model), weakref.ref(cam), weakref.ref(model.fc.weight)
    del model, cam
    gc.collect()
    assert [reference() for reference in gone] == [None, None, None]
    assert result.overlay(1, 3).size == (SIZE, SIZE)
    assert result.boxes(0).shape[1] == 4
    assert len(str(result).splitlines()) == 11 + 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_eval_mode(name: str, training: bool) -> None:
    """Dropout in the head shows that the tail, too, runs in eval mode."""
    model = jittered(name, drop_rate=0.5).train(training)
    result = camhook.wrap(model, input_size=(SIZE, SIZE))(pictures(), "all")
    assert all(module.training == training for module in model.modules())
    with torch.no_grad():
        assert torch.equal(result.logits, model.eval()(pictures()))
        assert not torch.equal(result.logits, model.train()(pictures()))
    assert result.exact.all()


def test_parameters_get_no_gradient() -> None:
    model = jittered().train()
    camhook.wrap(model, input_size=(SIZE, SIZE))(pictures(), topk=3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_input_is_left_alone() -> None:
    images = pictures().requires_grad_()
    before = images.detach().clone()
    camhook.wrap(jittered(), input_size=(SIZE, SIZE))(images, topk=2)
    assert torch.equal(images, before)
    assert images.grad is None


def test_a_thousand_calls_leave_memory_flat() -> None:
    cam = camhook.wrap(jittered(), input_size=(SIZE, SIZE))
    images, process = pictures(1), pytest.importorskip("psutil").Process()
    for _ in range(100):
        cam(images)
    gc.collect()
    before = process.memory_info().rss
    for _ in range(1000):
        cam(images)
    gc.collect()
    assert process.memory_info().rss - before < 8 * 2**20
