"""Layouts of features, and adapters that others bring along."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import camhook
from camhook.adapters import base
from camhook.adapters import layouts as mean
from camhook.adapters.base import Adapter, Layout, adapters, register
from camhook.errors import CamhookError, LayoutError, UnsupportedModelError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Adapter]:
    """A registry of this test's own, which no installed package fills."""
    own = {"mean": mean.MEAN}
    monkeypatch.setattr(base, "_registry", own)
    monkeypatch.setattr(base, "_loaded_entry_points", True)
    return own


@pytest.mark.parametrize(
    ("layout", "shape", "input_size", "expected"),
    [
        (Layout("NCHW"), (2, 96, 5, 7), (160, 224), (5, 7)),
        (Layout("NHWC"), (2, 5, 7, 96), (160, 224), (5, 7)),
        (Layout("NLC"), (2, 196, 96), (224, 224), (14, 14)),
        (Layout("NLC", 1), (2, 197, 96), (224, 224), (14, 14)),
        (Layout("NLC", 5), (2, 201, 96), (224, 224), (14, 14)),
        (Layout("NLC"), (2, 3072, 8), (1024, 768), (64, 48)),
        (Layout("NLC"), (2, 3072, 8), (768, 1024), (48, 64)),
        (Layout("NLC", 1, (16, 16)), (2, 3073, 8), (1024, 768), (64, 48)),
        (Layout("NLC"), (2, 16, 384), (224, 224), (4, 4)),  # LeViT: 224 over 64, rounded up
        (Layout("NLC", 0, (16, 16)), (2, 16, 384), (224, 224), (4, 4)),  # its patches are merged later on
        (Layout("NLC", 0, (8, 16)), (2, 8 * 4, 384), (64, 64), (8, 4)),  # oblong patches
        (Layout("NLC"), (2, 6, 8), (32, 48), (2, 3)),
        (Layout("NLC"), (2, 1, 8), (32, 48), (1, 1)),
        (Layout("NLC"), (2, 4 * 7, 8), (64, 100), (4, 7)),  # 64 over 16, 100 over 16 rounded up
    ],
)
def test_grid_size(
    layout: Layout, shape: tuple[int, ...], input_size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert layout.grid_size(shape, input_size) == expected


@pytest.mark.parametrize(
    ("layout", "shape", "words"),
    [
        (Layout("NCHW"), (2, 196, 96), r"shape \(2, 196, 96\) were found where NCHW was expected"),
        (Layout("NHWC"), (2, 96), "where NHWC was expected"),
        (Layout("NLC"), (2, 96, 7, 7), "where NLC was expected"),
        (Layout("NLC"), (2, 197, 96), "197 tokens from an input of 224 x 224 pixels fit no grid.*num_prefix_tokens"),
        (Layout("NLC", 2), (2, 197, 96), "195 tokens .* fit no grid"),
        (Layout("NLC", 1), (2, 1, 96), "0 tokens .* fit no grid"),
        (Layout("NLC", 0, (16, 16)), (2, 195, 96), "fit no grid"),
        (Layout("NLC"), (2, 2, 96), "2 tokens .* fit several grids"),
    ],
)
def test_grid_that_cannot_be_told(layout: Layout, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        layout.grid_size(shape, (224, 224))


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 3])
@pytest.mark.parametrize("axes", ["NCHW", "NHWC", "NLC"])
def test_split_and_join(axes: Literal["NCHW", "NHWC", "NLC"], num_prefix_tokens: int) -> None:
    if axes != "NLC" and num_prefix_tokens:
        pytest.skip("only tokens have prefixes")
    layout = Layout(axes, num_prefix_tokens)
    cells = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)  # (B, C, h, w)
    prefix = -torch.rand(2, num_prefix_tokens, 3) - 1
    features = {
        "NCHW": cells,
        "NHWC": cells.permute(0, 2, 3, 1),
        "NLC": torch.cat((prefix, torch.einsum("bchw->bhwc", cells).reshape(2, 20, 3)), 1),
    }[axes]
    positions, prefix_tokens = layout.split(features, (4, 5))
    assert torch.equal(positions, cells)
    assert (prefix_tokens is None) == (num_prefix_tokens == 0)
    assert prefix_tokens is None or torch.equal(prefix_tokens, prefix)
    assert torch.equal(layout.join(positions, prefix_tokens), features)


def test_later_adapters_are_asked_first(registry: dict[str, Adapter]) -> None:
    other = replace(mean.MEAN, name="other")
    assert register(other) is other
    assert register(other) is other  # the very same again: a module imported twice
    assert [adapter.name for adapter in adapters()] == ["other", "mean"]


@pytest.mark.parametrize("order", list(permutations(["mean", "general", "family", "later family"])))
def test_families_are_asked_before_general_adapters_whenever_they_were_registered(
    registry: dict[str, Adapter], order: tuple[str, ...]
) -> None:
    registry.clear()
    for name in order:
        if name == "mean":
            register(mean.MEAN)
        elif name == "general":
            register(replace(mean.MEAN, name=name, priority=0))
        else:
            register(Adapter(name, mean.token_layouts, applies=lambda model: isinstance(model, nn.Linear)))
    families = [name for name in reversed(order) if "family" in name]  # of two families, the later registered one
    assert [adapter.name for adapter in adapters()] == [*families, "general", "mean"]


def test_priority_comes_before_everything_else(registry: dict[str, Adapter]) -> None:
    for name, priority in (("first", 2), ("second", 1), ("last", -2)):
        register(replace(THREEFOLD, name=name, priority=priority))
    register(Adapter("general of a priority", mean.token_layouts, priority=1))
    order = ["first", "second", "general of a priority", "mean", "last"]
    assert [adapter.name for adapter in adapters()] == order


@pytest.mark.parametrize("step", [1, -1])
def test_the_order_of_imports_does_not_matter(step: int, tmp_path: Path) -> None:
    family = 'from camhook.adapters.base import *; register(Adapter("family", None, applies=lambda model: False))'
    (tmp_path / "family.py").write_text(family)
    modules = ["family", "camhook.adapters.coat", "camhook.adapters.efficientvim", "camhook.adapters.layouts"][::step]
    # In the place of camhook and camhook.adapters are empty packages, so that no other module is imported first.
    code = f"""
import importlib, sys, types
sys.path.insert(0, {str(tmp_path)!r})
for name, folder in ("camhook", "camhook"), ("camhook.adapters", "adapters"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
for name in {modules}:
    importlib.import_module(name)
from camhook.adapters import base
base._loaded_entry_points = True
print([adapter.name for adapter in base.adapters()])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = ast.literal_eval(done.stdout)
    assert (sorted(names), names[-1]) == (["coat", "efficientvim", "family", "mean"], "mean")


def test_two_adapters_of_one_name() -> None:
    with pytest.raises(CamhookError, match="An adapter named 'mean' is registered already"):
        register(replace(mean.MEAN))  # equal or not, another object
    with pytest.raises(CamhookError, match="registered already"):
        register(Adapter("mean", lambda *_: []))
    assert adapters() == [mean.MEAN]


class Threefold(nn.Module):
    """A made-up family: three prefix tokens that it says nothing about, and patches of 8."""

    def __init__(self, *, channels_last: bool = False) -> None:
        super().__init__()
        self.cut, self.stem = nn.PixelUnshuffle(8), nn.Linear(192, 12)
        self.prefix = nn.Parameter(torch.randn(1, 3, 12))
        self.mix = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
        self.head = nn.Linear(12, 5)
        self.channels_last = channels_last

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(self.cut(x).permute(0, 2, 3, 1))
        if not self.channels_last:
            x = torch.cat((self.prefix.expand(len(x), -1, -1), x.flatten(1, 2)), 1)
        mixed: Tensor = self.mix(x)
        return mixed

    def forward_head(self, x: Tensor) -> Tensor:
        pooled = x.mean((1, 2)) if self.channels_last else x[:, 3:].mean(1) + x[:, :3].tanh().mean(1)
        logits: Tensor = self.head(pooled)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def threefold_layouts(model: nn.Module, shape: tuple[int, ...]) -> Iterator[Layout]:
    yield Layout("NLC", 3, (8, 8))


THREEFOLD = Adapter("threefold", threefold_layouts, applies=lambda model: isinstance(model, Threefold))


def made_up(*, channels_last: bool = False) -> tuple[Threefold, Tensor]:
    torch.manual_seed(0)
    return Threefold(channels_last=channels_last).eval(), torch.randn(2, 3, 32, 64)


def check(cam: camhook.CAM, model: Threefold, images: Tensor) -> None:
    result = cam(images, "all")
    assert (cam.describe().adapter, cam.describe().num_prefix_tokens, cam.describe().grid_size) == (
        "threefold",
        3,
        (4, 8),
    )
    with torch.no_grad():
        cells = model.forward_features(images)[:, 3:].view(2, 4, 8, 12)
        expected = torch.einsum("bhwc,kc->bkhw", cells, model.head.weight)
    torch.testing.assert_close(result.maps, expected, rtol=1e-5, atol=1e-6)
    assert result.exact.all()


def test_made_up_family_without_its_adapter() -> None:
    model, _ = made_up()
    with pytest.raises(UnsupportedModelError, match="Threefold: no place was found"):
        camhook.wrap(model, input_size=(32, 64))


def test_registered_adapter() -> None:
    model, images = made_up()
    register(THREEFOLD)
    check(camhook.wrap(model, input_size=(32, 64)), model, images)


def test_adapter_passed_to_wrap(registry: dict[str, Adapter]) -> None:
    model, images = made_up()
    check(camhook.wrap(model, input_size=(32, 64), adapter=THREEFOLD), model, images)
    assert list(registry) == ["mean"]


def test_adapter_names_its_target_layer() -> None:
    model, _ = made_up()
    register(replace(THREEFOLD, layouts=lambda *_: [Layout("NLC", 2)], name="wrong"))  # refused by the numbers
    with pytest.raises(UnsupportedModelError):
        camhook.wrap(model, input_size=(32, 64))
    with pytest.raises(LayoutError, match="'nowhere'"):
        camhook.wrap(model, input_size=(32, 64), adapter=replace(THREEFOLD, target_layer="nowhere"))


def test_adapter_does_not_disturb_other_families() -> None:
    register(THREEFOLD)
    register(replace(THREEFOLD, name="greedy", applies=lambda _: True))
    model, images = made_up(channels_last=True)
    cam = camhook.wrap(model, input_size=(32, 64))
    assert (cam.describe().adapter, cam.describe().layout, cam.describe().grid_size) == ("mean", "NHWC", (4, 8))
    assert cam(images).exact.all()


def test_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []

    def entry_points(*, group: str) -> list[SimpleNamespace]:
        groups.append(group)
        return [SimpleNamespace(name="threefold", load=lambda: THREEFOLD)]

    monkeypatch.setattr(base, "entry_points", entry_points)
    monkeypatch.setattr(base, "_loaded_entry_points", False)
    model, images = made_up()
    check(camhook.wrap(model, input_size=(32, 64)), model, images)
    assert [adapter.name for adapter in adapters()] == ["threefold", "mean"]
    assert groups == ["camhook.adapters"]  # asked once


def test_entry_point_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ImportError("no module named theirs")

    broken = SimpleNamespace(name="theirs", value="theirs:ADAPTER", load=load)
    monkeypatch.setattr(base, "entry_points", lambda *, group: [broken])
    monkeypatch.setattr(base, "_loaded_entry_points", False)
    for _ in range(2):  # it is not forgotten
        with pytest.raises(CamhookError, match=r"'theirs' \(theirs:ADAPTER\) .*no module named theirs.*uninstall"):
            adapters()


def test_folder_is_not_a_package_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", "import adapters"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: This folder is the package camhook.adapters" in done.stderr
