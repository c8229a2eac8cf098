"""One battery for every family of classifiers: each map against a reference that shares no code with the engine.

All in float64, so that a wrong formula cannot hide behind rounding. Adding a family is a row of `FAMILIES`, and, where
its tail is not affine as it stands, one function that writes that tail out by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import timm
import torch
from captum.attr import DeepLift, LayerGradCam
from torch import Tensor, nn
from torch.nn import functional as F

import camhook

NUM_CLASSES = 40  # more than the engine takes one by one, so that "all" goes its own way
SMOOTH_NODES = 4096  # the midpoint rule errs by 1 / (24 nodes^2) times the second derivative: below 1e-8 of a slope
KINK_NODES = 65536  # a slope that jumps is misplaced by at most half a step: 8e-6 of a unit's part, of random sign
KINK_TOLERANCE = 1e-5  # of the largest cell, in which many units add up

Act = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tail:
    """A tail written out by hand, norms held: logits = after(act(before(z))), both maps affine."""

    before: Act
    act: Act
    after: Act


@dataclass(frozen=True)
class Family:
    """What is expected of an architecture. `explicit` writes the tail out; `widen` names its first layer's scale."""

    name: str
    axes: str
    grid: tuple[int, int]
    tail: str
    layer: str
    size: tuple[int, int] = (64, 96)
    options: dict[str, Any] = field(default_factory=dict)
    explicit: Callable[[Any, Tensor], Tail] | None = None
    widen: str | None = None
    prefix: int = 0
    in_chans: int = 3
    is_grad_cam: bool = False
    """Grad-CAM gives the same map: an affine tail, or ReLU without a bias, which has one slope all along the path."""

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items() if k in ("in_chans", "fc_norm"))])


def _frozen_norm(norm: Any, at: Tensor) -> Act:
    """Layer normalisation whose scale is that of the vectors `at`."""
    scale = 1 / torch.sqrt(((at - at.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + norm.eps)
    return lambda x: (x - x.mean(-1, keepdim=True)) * scale * norm.weight + norm.bias


def _affine(layer: Any) -> Act:
    return lambda x: F.linear(x, layer.weight.flatten(1), layer.bias)


def _batch_norm(norm: Any) -> Act:
    return lambda x: (x - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias


def _identity(x: Tensor) -> Tensor:
    return x


def _then(*steps: Act) -> Act:
    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


def _norm_fc(model: Any, z: Tensor) -> Tail:
    return Tail(_identity, _identity, _then(_frozen_norm(model.head.norm, z), _affine(model.head.fc)))


def _fc_norm_head(model: Any, z: Tensor) -> Tail:
    return Tail(_identity, _identity, _then(_frozen_norm(model.fc_norm, z), _affine(model.head)))


def _norm_tanh(model: Any, z: Tensor) -> Tail:
    before = _then(_frozen_norm(model.head.norm, z), _affine(model.head.pre_logits.fc))
    return Tail(before, torch.tanh, _affine(model.head.fc))


def _conv_head(act: Act) -> Callable[[Any, Tensor], Tail]:
    return lambda model, z: Tail(_affine(model.conv_head), act, _affine(model.classifier))


def _conv_norm_head(model: Any, z: Tensor) -> Tail:
    return Tail(_then(_affine(model.conv_head), _batch_norm(model.norm_head)), F.relu, _affine(model.classifier))


def _last_conv(model: Any, z: Tensor) -> Tail:
    conv, _, *lab = model.head.last_conv
    after: Act = (lambda x: lab[0].scale * x + lab[0].bias) if lab else _identity
    return Tail(_affine(conv), F.relu, _then(after, _affine(model.head.fc)))


def _norm_mlp(model: Any, z: Tensor) -> Tail:
    head = model.head
    return Tail(_then(_frozen_norm(head.norm, z), _affine(head.pre_logits.fc)), F.gelu, _affine(head.fc))


def _norm_mlp_norm(model: Any, z: Tensor) -> Tail:
    head = model.head
    before = _then(_frozen_norm(head.norm, z), _affine(head.pre_logits.fc))
    return Tail(before, F.gelu, _then(_frozen_norm(head.pre_logits.norm, F.gelu(before(z))), _affine(head.fc)))


def _fc_norm_act(model: Any, z: Tensor) -> Tail:
    first, norm, _, _, last = model.head.classifier
    before = _then(_affine(first), _frozen_norm(norm, _affine(first)(z)))
    return Tail(before, F.hardswish, _affine(last))


class Deep(nn.Module):
    """Three layers after the pooling; no timm model has as many."""

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU(), nn.Conv2d(16, 24, 4, 4), nn.GELU())
        self.mlp = nn.Sequential(nn.Linear(24, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, NUM_CLASSES))

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        return features

    def forward_head(self, x: Tensor) -> Tensor:
        logits: Tensor = self.mlp(x.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


_SWIN = {"img_size": (64, 96), "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (3, 3, 6, 6)}
_SMALL = {"layers": (1, 1, 1, 1), "channels": (16, 32, 48, 64)}
_VIT = {"img_size": (96, 128), "in_chans": 1, "global_pool": "avg"}

# fmt: off
FAMILIES = [
    Family("test_resnet", "NCHW", (2, 3), "linear", "layer4", is_grad_cam=True),
    Family("resnetv2_50", "NCHW", (2, 3), "linear", "norm", options=_SMALL, is_grad_cam=True),
    Family("regnetx_002", "NCHW", (2, 3), "linear", "final_conv", is_grad_cam=True),
    Family("densenet121", "NCHW", (2, 3), "linear", "features", is_grad_cam=True,
           options={"block_config": (2, 2, 2, 2)}),
    Family("test_efficientnet", "NCHW", (2, 3), "linear", "bn2", is_grad_cam=True),
    Family("mobilenetv3_small_050", "NCHW", (2, 3), "mlp", "blocks", explicit=_conv_head(F.hardswish),
           widen="conv_head"),
    Family("mobilenetv4_conv_small_035", "NCHW", (2, 3), "mlp", "blocks", explicit=_conv_norm_head, widen="conv_head"),
    Family("ghostnet_050", "NCHW", (2, 3), "mlp", "blocks", explicit=_conv_head(F.relu), widen="conv_head"),
    Family("hgnetv2_b0", "NCHW", (2, 3), "mlp", "stages", options={"head_hidden_size": 128}, explicit=_last_conv,
           widen="head.last_conv.0", is_grad_cam=True),
    Family("test_convnext", "NCHW", (2, 3), "norm-linear", "norm_pre", explicit=_norm_fc),
    Family("test_nfnet", "NCHW", (2, 3), "linear", "final_act", is_grad_cam=True),
    Family("test_mambaout", "NHWC", (2, 3), "mlp", "stages", explicit=_norm_mlp, widen="head.pre_logits.fc"),
    Family("mambaout_femto", "NHWC", (2, 3), "mlp", "stages", explicit=_norm_mlp_norm, widen="head.pre_logits.fc",
           options={"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}),
    Family("swin_tiny_patch4_window7_224", "NHWC", (2, 3), "linear", "norm", options=_SWIN, is_grad_cam=True),
    Family("swinv2_tiny_window8_256", "NHWC", (2, 3), "linear", "norm", options=_SWIN, is_grad_cam=True),
    Family("test_maxvit", "NCHW", (2, 3), "linear", "norm", options={"img_size": (64, 96)}, is_grad_cam=True),
    Family("maxvit_tiny_tf_224", "NCHW", (2, 2), "mlp", "norm", (64, 64), explicit=_norm_tanh,
           widen="head.pre_logits.fc",
           options={"img_size": 64, "embed_dim": (32, 32, 64, 64), "depths": (1, 1, 1, 1)}),
    Family("mixer_s32_224", "NLC", (2, 3), "linear", "norm", options={"img_size": (64, 96)}, is_grad_cam=True),
    Family("levit_128s", "NLC", (4, 4), "linear", "stages", (224, 224), is_grad_cam=True),
    Family("tiny_vit_5m_224", "NCHW", (2, 3), "norm-linear", "stages", explicit=_norm_fc),
    Family("nest_tiny", "NCHW", (4, 4), "linear", "input of global_pool", (64, 64), options={"img_size": 64},
           is_grad_cam=True),
    Family("efficientvit_b0", "NCHW", (2, 3), "mlp", "head.in_conv", explicit=_fc_norm_act, widen="head.classifier.1"),
    Family("test_vit", "NLC", (6, 8), "linear", "norm", (96, 128), options=_VIT | {"fc_norm": False}, prefix=1,
           in_chans=1, is_grad_cam=True),
    Family("test_vit", "NLC", (6, 8), "norm-linear", "norm", (96, 128), options=_VIT, prefix=1, in_chans=1,
           explicit=_fc_norm_head),
    Family("test_vit_relpos", "NLC", (10, 10), "norm-linear", "norm", (160, 160), explicit=_fc_norm_head),
    Family("deep-tanh", "NCHW", (2, 3), "deep", "body"),
    Family("deep-relu", "NCHW", (2, 3), "deep", "body"),
]
# fmt: on

over_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.id)
over_bent_tails = pytest.mark.parametrize("family", [f for f in FAMILIES if f.explicit], ids=lambda family: family.id)


@dataclass(frozen=True, eq=False)
class Case:
    family: Family
    model: Any
    x: Tensor
    cam: camhook.CAM
    logits: Tensor
    positions: Tensor
    """The features as (B, C, h, w), captured and laid out by the test itself."""
    slopes: Tensor
    """Of TARGETS' logits with respect to these, (B, T, C, h, w)."""
    result: camhook.CAMResult

    @property
    def z(self) -> Tensor:
        return self.positions.mean((2, 3))

    @property
    def grad_cam(self) -> Tensor:
        """Grad-CAM of TARGETS, before ReLU, times the number of positions."""
        return self.slopes.sum((3, 4), keepdim=True).mul(self.positions[:, None]).sum(2)

    def tail(self) -> Tail:
        assert self.family.explicit is not None
        return self.family.explicit(self.model, self.z)


TARGETS = torch.tensor([[3, 39, 0], [11, 7, 25]])


@cache  # keyed by the row's place, for a row's options are not hashable
def _case(index: int) -> Case:
    family = FAMILIES[index]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if family.tail == "deep":
            model: Any = Deep(nn.Tanh if family.name == "deep-tanh" else nn.ReLU)
        else:
            model = timm.create_model(family.name, num_classes=NUM_CLASSES, **family.options)
    model = model.double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, family.in_chans, *family.size, generator=generator, dtype=torch.float64)
    _jitter(model, x)
    if family.widen is not None:
        assert family.explicit is not None
        z = _features(family, model, x)[1].mean((2, 3)).detach()
        model.get_submodule(family.widen).weight *= 6 / family.explicit(model, z).before(z).std()
    raw, positions, logits = _features(family, model, x)
    slopes = torch.stack(
        [torch.autograd.grad(logits.gather(1, t[:, None]).sum(), raw, retain_graph=True)[0] for t in TARGETS.T]
    )
    slopes = torch.stack([_laid_out(family, one) for one in slopes], 1)
    cam = camhook.wrap(model, input_size=family.size)
    with torch.no_grad():
        logits = model(x)
    return Case(family, model, x, cam, logits, positions.detach(), slopes, cam(x, TARGETS))


def _of(family: Family) -> Case:
    return _case(FAMILIES.index(family))


def _jitter(model: nn.Module, x: Tensor) -> None:
    """Move parameters and running statistics off their initial values, where a head may be zero or a norm idle."""
    generator = torch.Generator().manual_seed(3)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        for norm in norms:  # near the statistics of x, else deep networks forget the picture
            norm.momentum = 0.9
            norm.train()
        if norms:
            model(x)
    model.eval()


def _features(family: Family, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features as the tail reads them, the same as (B, C, h, w), and the logits that depend on the first."""
    caught: list[Tensor] = []
    module = model.get_submodule(family.layer.removeprefix("input of "))

    def keep(value: Any) -> Tensor:
        value = value[0] if isinstance(value, tuple) else value
        caught.append(value.detach().requires_grad_())
        return caught[-1].clone()  # what follows may act in place

    if family.layer.startswith("input of "):
        handle = module.register_forward_pre_hook(lambda _, args: keep(args))
    else:
        handle = module.register_forward_hook(lambda _, args, output: keep(output))
    try:
        logits = model(x)
    finally:
        handle.remove()
    return caught[-1], _laid_out(family, caught[-1]), logits


def _laid_out(family: Family, features: Tensor) -> Tensor:
    if family.axes == "NHWC":
        return features.permute(0, 3, 1, 2)
    if family.axes == "NLC":
        tokens = features[:, family.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], *family.grid)
    return features


def _deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def _mean_slope(tail: Tail, z: Tensor) -> Tensor:
    """Brute force: the activation's slope, averaged over midpoints of the straight path from the rest to z."""
    slope, nodes = _SLOPES[tail.act]
    start, end = tail.before(torch.zeros_like(z)), tail.before(z)
    shares = (torch.arange(nodes, dtype=z.dtype) + 0.5) / nodes
    total = torch.zeros_like(start)
    for some in shares.split(256):
        total += slope(torch.lerp(start, end, some[:, None, None])).sum(0)
    return total / nodes


_SLOPES: dict[Act, tuple[Act, int]] = {
    F.relu: (lambda u: u > 0, KINK_NODES),
    F.hardswish: (lambda u: torch.where(u.abs() < 3, u / 3 + 0.5, (u > 0).to(u.dtype)), KINK_NODES),
    F.gelu: (lambda u: torch.erfc(-u / 2**0.5) / 2 + u * torch.exp(-u * u / 2) / (2 * torch.pi) ** 0.5, SMOOTH_NODES),
    torch.tanh: (lambda u: 1 - torch.tanh(u) ** 2, SMOOTH_NODES),
}


def _reference(tail: Tail, positions: Tensor) -> Tensor:
    """Return the maps of all classes, (B, K, h, w): every position through the tail, its activation made linear."""
    z = positions.mean((2, 3))
    slope = torch.ones_like(z) if tail.act is _identity else _mean_slope(tail, z)
    with torch.no_grad():
        each = positions.flatten(2).permute(2, 0, 1)
        rest = tail.before(torch.zeros_like(z))
        moved = tail.after(tail.act(rest) + slope * (tail.before(each) - rest)) - tail.after(tail.act(rest))
    return moved.permute(1, 2, 0).reshape(len(z), -1, *positions.shape[2:])


@over_families
def test_structure(family: Family) -> None:
    found = _of(family).cam.describe()
    assert (found.layout, found.grid_size, found.tail) == (family.axes, family.grid, family.tail)
    assert found.target_layer == family.layer
    assert found.num_prefix_tokens == family.prefix
    assert (found.pooling, found.forward_passes, found.num_classes) == ("mean", 1, NUM_CLASSES)


@over_families
def test_a_map_adds_up_to_the_models_own_logit(family: Family) -> None:
    case = _of(family)
    result = case.result
    assert torch.equal(result.logits, case.logits)
    assert result.maps.dtype == torch.float64
    assert result.maps.shape == (2, 3, *family.grid)
    found = result.maps.mean((2, 3)) + result.offset
    missed = (found - case.logits.gather(1, TARGETS)).abs().max() / case.logits.abs().max()
    assert missed <= 1e-12
    assert result.exact.all()
    # Not for want of anything to add up: positions differ, classes differ, and the positions count.
    assert (result.maps.std((2, 3)) > 1e-4 * result.maps.abs().mean()).all()
    assert (result.maps.mean((2, 3)).abs().max(1).values > 1e-2 * case.logits.abs().amax(1)).all()


@over_families
def test_the_offset_is_the_tail_of_the_rest(family: Family) -> None:
    case = _of(family)
    with torch.no_grad():
        if family.explicit is None:
            expected = case.model.forward_head(torch.zeros_like(case.model.forward_features(case.x)))
        else:
            tail = case.tail()
            expected = tail.after(tail.act(tail.before(torch.zeros_like(case.z))))
    assert _deviation(case.result.offset, expected.gather(1, TARGETS)) < 1e-9


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.tail == "linear"], ids=lambda family: family.id)
def test_an_affine_tails_map_is_grad_cam_times_the_positions(family: Family) -> None:
    case = _of(family)
    assert _deviation(case.result.maps, case.grad_cam) < 1e-8
    if family.axes != "NCHW":  # Captum takes the second axis for the channels
        return
    name = family.layer.removeprefix("input of ")
    captum = LayerGradCam(case.model, case.model.get_submodule(name))
    found = [
        captum.attribute(
            case.x.clone().requires_grad_(),
            target,
            attribute_to_layer_input=name != family.layer,
            relu_attributions=False,
            attr_dim_summation=True,
        )
        for target in TARGETS.T
    ]
    positions = family.grid[0] * family.grid[1]
    assert _deviation(case.result.maps, positions * torch.cat(found, 1).detach()) < 1e-8


@over_bent_tails
def test_a_bent_tails_map_is_the_integral_along_the_path(family: Family) -> None:
    case = _of(family)
    tail = case.tail()
    with torch.no_grad():  # the tail written out by hand is the model's own
        assert _deviation(tail.after(tail.act(tail.before(case.z))), case.logits) < 1e-10
    expected = _reference(tail, case.positions)
    tolerance = 1e-9 if tail.act is _identity else KINK_TOLERANCE
    assert _deviation(case.result.maps, _picked(expected)) < tolerance
    if family.is_grad_cam:
        assert _deviation(case.grad_cam, _picked(expected)) < tolerance
    else:
        assert _deviation(case.grad_cam, _picked(expected)) > 0.05


def _picked(maps: Tensor) -> Tensor:
    return torch.stack([maps[i, targets] for i, targets in enumerate(TARGETS)])


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.tail == "mlp"], ids=lambda family: family.id)
def test_the_path_crosses_the_activations_kinks(family: Family) -> None:
    """Else the tests above would see an affine function."""
    case = _of(family)
    tail = case.tail()
    u, rest = tail.before(case.z), tail.before(torch.zeros_like(case.z))
    kink = 3 if tail.act is F.hardswish else 0
    assert (u < -kink).float().mean() > 0.05
    assert (u > kink).float().mean() > 0.05
    if not family.is_grad_cam:
        assert ((u - kink) * (rest - kink) < 0).any()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.tail == "deep"], ids=lambda family: family.id)
def test_a_deep_tails_map_is_that_of_captums_rescale_rule(family: Family) -> None:
    case = _of(family)
    deep_lift = DeepLift(case.model.mlp)
    z = case.z.requires_grad_()
    with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        columns = [deep_lift.attribute(z, torch.zeros_like(z), target=targets) for targets in TARGETS.T]
    slopes = (torch.stack(columns, 1) / z[:, None]).detach()
    expected = torch.einsum("btc,bchw->bthw", slopes, case.positions)
    assert _deviation(case.result.maps, expected) < 1e-9
    assert _deviation(case.grad_cam, case.result.maps) > 0.05


@over_families
def test_classes_together_are_as_classes_one_by_one(family: Family) -> None:
    case = _of(family)
    every = case.cam(case.x, "all")
    assert every.maps.shape[1] == NUM_CLASSES
    assert _deviation(_picked(every.maps), case.result.maps) < 1e-10
    assert torch.equal(every.offset.gather(1, TARGETS), case.result.offset)
    for place in (0, 2):
        one = case.cam(case.x, TARGETS[:, place])
        assert _deviation(one.maps[:, 0], case.result.maps[:, place]) < 1e-10
        assert torch.equal(one.offset[:, 0], case.result.offset[:, place])


@pytest.mark.parametrize("family", FAMILIES[5:10], ids=lambda family: family.id)
def test_contrast_subtracts_the_mean_over_the_ten_strongest_rivals(family: Family) -> None:
    case = _of(family)
    every = case.cam(case.x, "all")
    found = case.cam(case.x, TARGETS, contrast="rivals")
    for image in range(2):
        ranked = sorted(range(NUM_CLASSES), key=lambda c: -float(case.logits[image, c]))
        for place, target in enumerate(TARGETS[image].tolist()):
            rivals = [c for c in ranked if c != target][:10]
            for have, of_all in ((found.maps, every.maps), (found.offset, every.offset), (found.scores, case.logits)):
                expected = of_all[image, target] - sum(of_all[image, c] for c in rivals) / 10
                assert torch.allclose(have[image, place], expected, rtol=0, atol=1e-10 * float(of_all.abs().max()))
    assert found.exact.all()


def _without_mixing(name: str) -> tuple[Any, tuple[int, int]]:
    """Return a model in which a position sees its own patch only, and the size of a patch."""
    if name == "test_convnext":  # NCHW
        model = timm.create_model(name, num_classes=NUM_CLASSES, head_norm_first=True)
        for stage in model.stages:
            stage.blocks = nn.Sequential()
        return model, (32, 32)
    if name == "test_vit":  # tokens
        model = timm.create_model(name, num_classes=NUM_CLASSES, **_VIT, fc_norm=False)
        model.blocks = nn.Sequential()
        return model, (16, 16)
    model = timm.create_model(name, num_classes=NUM_CLASSES, **_SWIN)  # NHWC
    for stage in model.layers:
        stage.blocks = nn.Sequential()
    return model, (32, 32)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "swin_tiny_patch4_window7_224"])
def test_each_cell_is_its_own_patch_of_the_picture(name: str) -> None:
    model, (height, width) = _without_mixing(name)
    model = model.double().eval().requires_grad_(False)
    size, in_chans = ((96, 128), 1) if name == "test_vit" else ((64, 96), 3)
    rows, columns = size[0] // height, size[1] // width
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows * columns + 1, in_chans, *size, generator=generator, dtype=torch.float64)
    x[1:] = x[0]
    for place in range(rows * columns):
        top, left = place // columns * height, place % columns * width
        x[1 + place, :, top : top + height, left : left + width] *= -1
    _jitter(model, x)
    maps = camhook.wrap(model, input_size=size)(x, [4] * len(x)).maps[:, 0]
    assert maps.shape[1:] == (rows, columns)
    changed = (maps[1:] - maps[0]).abs().flatten(1)
    assert torch.equal(changed > 1e-9 * maps.abs().max(), torch.eye(rows * columns, dtype=torch.bool))


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_mambaout"])
@pytest.mark.parametrize("way", ["bfloat16", "autocast"])
def test_half_precision_gives_the_map_of_single_precision(name: str, way: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(name, num_classes=NUM_CLASSES).eval()
    x = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(5))
    _jitter(model, x)
    expected = camhook.wrap(model, input_size=(96, 128))(x, TARGETS)
    if way == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        found = camhook.wrap(model, input_size=(96, 128))(x, TARGETS)
    assert found.maps.dtype == found.offset.dtype == torch.float32
    assert _deviation(found.maps, expected.maps) < 0.05
    assert not torch.equal(found.maps, expected.maps)  # it did run in half precision
    assert found.exact.all()


@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224"])
def test_wrapping_after_a_forward_pass_that_left_tensors_of_its_graph_in_a_cache(name: str) -> None:
    model = timm.create_model(name, num_classes=NUM_CLASSES).eval()
    model(torch.zeros(1, 3, 224, 224))
    cam = camhook.wrap(model, input_size=(224, 224))
    assert cam(torch.zeros(1, 3, 224, 224)).exact.all()
