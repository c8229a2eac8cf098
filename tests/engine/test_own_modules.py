"""Modules that someone wrote: whatever their heads and outputs, a complete map or a refusal that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beyond import explained, features_and_slopes, jittered, photos
from torch import Tensor, nn
from torch.nn import functional as F

import camhook

SIZE = (48, 32)  # a grid of 6 x 4
Head = Callable[[Tensor], Any]


class Net(nn.Module):
    """A small convolutional net whose head is a function of its features (B, 16, 6, 4) and of the parts it is given."""

    def __init__(self, head: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, after in ((3, 8), (8, 8), (8, 16)):
            stages += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*stages)
        self.fc = nn.Linear(16, 5)
        for name, part in parts.items():
            self.add_module(name, part)
        self._head = head

    def forward(self, x: Tensor) -> Any:
        return self._head(self, self.body(x))


def net(head: Callable[[Any, Tensor], Any], **parts: nn.Module) -> Any:
    torch.manual_seed(0)
    return jittered(Net(head, **parts))


def gap(f: Tensor) -> Tensor:
    return f.mean((2, 3))


class Moving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.scale.device) * self.scale


def _attention(m: Any, f: Tensor) -> Any:
    weights = m.score(f).flatten(2).softmax(-1)
    return m.fc((f.flatten(2) * weights).sum(-1))


def _gem(m: Any, f: Tensor) -> Any:
    return m.fc(gap(f.clamp(min=1e-6).pow(3)).pow(1 / 3))


def _mean_and_max(m: Any, f: Tensor) -> Any:
    return m.wide(torch.cat((gap(f), F.adaptive_max_pool2d(f, 1).flatten(1)), 1))


def _flatten(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(384, width), nn.ReLU(), nn.Linear(width, 5))


HEADS: dict[str, tuple[Any, str]] = {
    "gap": (lambda: net(lambda m, f: m.fc(gap(f))), "mean/linear"),
    "flatten": (lambda: net(lambda m, f: m.top(f.flatten(1)), top=nn.Linear(384, 5)), "flatten/linear"),
    "view": (lambda: net(lambda m, f: m.top(f.view(len(f), -1)), top=nn.Linear(384, 5)), "flatten/linear"),
    "flatten mlp": (lambda: net(lambda m, f: m.top(f), top=_flatten(20)), "flatten/mlp"),
    "pooled grid": (
        lambda: net(lambda m, f: m.top(F.adaptive_avg_pool2d(f, 2).flatten(1)), top=nn.Linear(64, 5)), "flatten/linear"
    ),
    "batch norm": (lambda: net(lambda m, f: m.fc(m.norm(gap(f))), norm=nn.BatchNorm1d(16)), "mean/linear"),
    "cosine": (lambda: net(lambda m, f: 10 * m.fc(F.normalize(gap(f)))), "mean/norm-linear"),
    "max": (lambda: net(lambda m, f: m.fc(f.amax((2, 3)))), "max/norm-linear"),
    "mean and max": (lambda: net(_mean_and_max, wide=nn.Linear(32, 5)), "max/norm-linear"),
    "attention": (lambda: net(_attention, score=nn.Conv2d(16, 1, 1)), "attention/norm-linear"),
    "gem": (lambda: net(_gem), "flatten/deep"),
    "one score": (lambda: net(lambda m, f: m.one(gap(f)), one=nn.Linear(16, 1)), "mean/linear"),
    "sigmoid": (lambda: net(lambda m, f: m.fc(gap(f)).sigmoid()), "mean/mlp"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    make, head = HEADS[name]
    description, result = explained(make(), SIZE)
    assert (result.head, description.grid_size, description.forward_passes) == (head, (6, 4), 1)
    assert description.target_layer in ("body", "body.8")


@pytest.mark.parametrize("name", ["gap", "flatten", "pooled grid", "batch norm"])
def test_affine_heads_by_autograd(name: str) -> None:
    model = HEADS[name][0]()
    features, slopes = features_and_slopes(model, "body", photos(SIZE))
    expected = 24 * (slopes * features[:, None]).sum(2)
    torch.testing.assert_close(camhook.wrap(model)(photos(SIZE), "all").maps, expected, rtol=1e-9, atol=1e-12)


def test_max_lies_where_it_wins() -> None:
    model = HEADS["max"][0]()
    features, _ = features_and_slopes(model, "body", photos(SIZE))
    flat = features.flatten(2)
    wins = F.one_hot(flat.argmax(-1), 24)
    expected = 24 * torch.einsum("kc,bcn,bcn->bkn", model.fc.weight, flat, wins.double()).unflatten(2, (6, 4))
    torch.testing.assert_close(camhook.wrap(model)(photos(SIZE), "all").maps, expected, rtol=1e-9, atol=1e-12)


def test_attention_weights_are_held() -> None:
    model = HEADS["attention"][0]()
    features, _ = features_and_slopes(model, "body", photos(SIZE))
    weights = model.score(features).flatten(2).softmax(-1).unflatten(2, (6, 4))
    expected = 24 * torch.einsum("kc,bchw->bkhw", model.fc.weight, features * weights)
    torch.testing.assert_close(camhook.wrap(model)(photos(SIZE), "all").maps, expected, rtol=1e-9, atol=1e-12)


def _outputs(m: Any, f: Tensor) -> tuple[Tensor, Tensor]:
    return gap(f), m.fc(gap(f))


@pytest.mark.parametrize(
    ("head", "output", "pick"),
    [
        (_outputs, 1, lambda returned: returned[1]),
        (_outputs, -1, lambda returned: returned[1]),
        (_outputs, lambda returned: returned[1], lambda returned: returned[1]),
        (lambda m, f: dict(zip(("z", "scores"), _outputs(m, f), strict=True)), "scores", lambda r: r["scores"]),
        (lambda m, f: dict(zip(("z", "logits"), _outputs(m, f), strict=True)), None, lambda r: r["logits"]),
        (lambda m, f: m.fc(gap(f))[:, 0], None, lambda r: r[:, None]),
    ],
    ids=["index", "last", "function", "key", "logits", "one score an image"],
)
def test_outputs(head: Any, output: Any, pick: Any) -> None:
    _, result = explained(net(head), SIZE, pick, output=output)
    assert result.head == "mean/linear"


@pytest.mark.parametrize(
    ("head", "output", "words"),
    [
        (_outputs, None, r"returned tuple of 0: a tensor of shape \(2, 16\), 1: a tensor of shape \(2, 5\)"),
        (_outputs, 7, "output=7 is not in what the model returned: tuple"),
        (_outputs, "logits", "output='logits' is not in what the model returned: tuple"),
        (lambda m, f: {"a": m.fc(gap(f))}, "b", "output='b' is not in what the model returned: dict of 'a'"),
        (lambda m, f: m.fc(gap(f)).softmax(1), None, "ends in a softmax"),
        (lambda m, f: F.log_softmax(m.fc(gap(f)), 1), None, "ends in a log-softmax"),
    ],
    ids=["tuple", "index", "attribute", "key", "softmax", "log-softmax"],
)
def test_outputs_that_are_no_logits_are_refused_with_words(head: Any, output: Any, words: str) -> None:
    with pytest.raises(camhook.UnsupportedModelError, match=words):
        camhook.wrap(net(head), input_size=SIZE, output=output)


@pytest.mark.parametrize(("layer", "grid"), [("body.2", (24, 16)), ("body.3", (12, 8)), ("body.8", (6, 4))])
def test_layers_in_the_middle(layer: str, grid: tuple[int, int]) -> None:
    description, result = explained(HEADS["gap"][0](), SIZE, target_layer=layer)
    assert (description.target_layer, description.grid_size, result.maps.shape[2:]) == (layer, grid, grid)


def test_layer_that_does_not_exist() -> None:
    with pytest.raises(camhook.LayoutError, match="no module of that name"):
        camhook.wrap(HEADS["gap"][0](), input_size=SIZE, target_layer="nope")


class Residual(nn.Module):
    """Residual blocks written out in one forward, so that no module gives their sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.first, self.second = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.first(x).relu()
        x = x + self.second(x).relu()
        result: Tensor = self.fc(gap(x))
        return result


def test_skips_come_round_a_branch_and_cost_a_pass() -> None:
    model = jittered(Residual())
    description, _ = explained(model, SIZE)
    assert (description.target_layer, description.forward_passes) == ("stem", 1)  # nothing bypasses this one
    description, result = explained(model, SIZE, target_layer="second")
    assert description.forward_passes == 2
    features, _ = features_and_slopes(model, "second", photos(SIZE))
    expected = torch.einsum("kc,bchw->bkhw", model.fc.weight, features.relu())
    torch.testing.assert_close(result.maps, expected, rtol=1e-9, atol=1e-12)


def test_inputs_that_move_to_the_models_device() -> None:
    model = net(lambda m, f: m.fc(gap(f)))
    model.body.insert(0, Moving().double())
    assert explained(model, SIZE)[1].head == "mean/linear"


def test_sequential() -> None:
    layers = [HEADS["gap"][0]().body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    assert explained(jittered(nn.Sequential(*layers)), SIZE)[0].target_layer == "0"
    with pytest.raises(camhook.UnsupportedModelError, match=r"model\[:-1\]"):
        camhook.wrap(nn.Sequential(*layers, nn.Softmax(1)), input_size=SIZE)
