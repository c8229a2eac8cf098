"""A model in the middle of training, and a check that nothing of it changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import Tensor, nn

SIZE = 64


def jittered(name: str = "test_resnet", **options: Any) -> Any:
    """A seeded model none of whose parameters is zero, with running statistics of its own."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def pictures(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def lived_in() -> tuple[Any, list[str]]:
    """A model as found in the middle of training: mixed flags, frozen parts, gradients, hooks of the user's."""
    model = jittered(drop_rate=0.5, drop_path_rate=0.2).train()
    model.layer2.eval()
    model.spare = nn.BatchNorm2d(3).eval()  # never called, but part of the sweep
    for parameter in model.layer1.parameters():
        parameter.requires_grad_(False)
    log: list[str] = []
    model.layer3.register_forward_hook(lambda *_: log.append("forward"))
    model.layer1.register_forward_pre_hook(lambda *_: log.append("pre"))
    model.fc.register_full_backward_hook(lambda *_: None)
    model(pictures()).sum().backward()
    return model, log


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a call could have changed."""
    seen: dict[str, Any] = {"grad mode": torch.is_grad_enabled(), "rng": torch.get_rng_state()}
    for name, module in model.named_modules():
        seen[f"{name}: training"] = module.training
        for key, value in vars(module).items():
            if key.endswith("_hooks") and isinstance(value, dict):
                seen[f"{name}: {key}"] = dict(value)
    for name, parameter in model.named_parameters():
        seen[f"{name}: requires_grad"] = parameter.requires_grad
        seen[f"{name}: parameter"] = id(parameter)
        seen[f"{name}: grad"] = None if parameter.grad is None else (id(parameter.grad), parameter.grad.clone())
    for name, value in model.state_dict().items():
        seen[f"{name}: value"] = value.clone()
    return seen


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, tuple):
        return all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    before = snapshot(model)
    assert any("grad" in key and value is not None for key, value in before.items())
    assert sum(bool(value) for key, value in before.items() if key.endswith("_hooks")) >= 3
    yield
    after = snapshot(model)
    assert before.keys() == after.keys()
    assert [key for key in before if not same(before[key], after[key])] == []
