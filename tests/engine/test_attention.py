"""Maps of class tokens and attention pools against `attention_reference`, which shares no code with the engine.

A second check goes through the models' own code and autograd, with gates on what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from attention_reference import (
    GRID,
    NUM_CLASSES,
    TOLERANCE,
    Mode,
    Net,
    Pool,
    PoolReference,
    Reads,
    TokenReference,
    deviation,
    gelu_by_hand,
    read_cait,
    read_clip,
    read_eva,
    read_map_head,
    read_map_head_with_prefix,
    read_torchvision,
    read_transformers,
    secant_by_hand,
    vit,
)
from timm.layers import Attention
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

import camhook

TARGETS = torch.tensor([[3, 39, 0], [11, 7, 25]])
SIZE = (48, 64)


# The families.


@dataclass(frozen=True)
class Family:
    """What is expected of a model. `read` gives its weights, `gated` that F's functions are all it is made of."""

    id: str
    make: Callable[[], Any]
    read: Callable[[Any], Net] | Callable[[Any, Tensor], Pool]
    prefix: int = 1
    pooling: str = "attention"
    tail: str = "deep"
    size: tuple[int, int] = SIZE
    grid: tuple[int, int] = GRID
    gated: bool = False

    @property
    def is_pool(self) -> bool:
        return self.read in (read_map_head, read_clip)


_SMALL: dict[str, Any] = {
    "img_size": SIZE, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": NUM_CLASSES,
}  # fmt: skip


def _vit(**options: Any) -> Callable[[], Any]:
    return lambda: VisionTransformer(**_SMALL | options)


class _GatedAttention(Attention):  # type: ignore[misc]
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, gated=True, **options)


def _make_eva(**options: Any) -> Callable[[], Any]:
    # The default of `global_pool` is the mean.
    return lambda: Eva(**_SMALL, global_pool="token", swiglu_mlp=True, use_rot_pos_emb=True, **options)


def _make_torchvision(**options: Any) -> Callable[[], Any]:
    sizes = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    return lambda: torchvision.models.VisionTransformer(**sizes, num_classes=NUM_CLASSES, **options)


def _make_transformers() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48, image_size=SIZE,
        patch_size=16, num_labels=NUM_CLASSES,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def _make_clip() -> Any:
    blocks = tuple(ByoBlockCfg(type="bottle", d=1, c=c, s=s, br=0.25) for c, s in ((32, 1), (48, 2)))
    stem = {"stem_chs": (8, 8, 16), "stem_type": "", "stem_pool": "avg2", "downsample": "avg", "aa_layer": "avg"}
    config = ByoModelCfg(blocks=blocks, head_type="attn_abs", head_hidden_size=128, **stem)
    return ByobNet(config, img_size=(24, 32), num_classes=NUM_CLASSES)


# fmt: off
FAMILIES = [
    Family("vit", _vit(init_values=1e-5), vit, gated=True),
    Family("vit-70-positions", _vit(img_size=(112, 160), depth=2), vit, size=(112, 160), grid=(7, 10), gated=True),
    Family("vit-qk_norm", _vit(qk_norm=True, scale_attn_norm=True, init_values=1e-5), vit, gated=True),
    Family("vit-gated", _vit(attn_layer=_GatedAttention, scale_attn_norm=True), vit),
    Family("vit-registers", _vit(reg_tokens=4, no_embed_class=True), vit, prefix=5, gated=True),
    Family("deit-distilled", lambda: VisionTransformerDistilled(**_SMALL), vit, prefix=2, gated=True),
    Family("cait", lambda: Cait(**_SMALL), read_cait, gated=True),
    Family("eva", _make_eva(init_values=1e-5), read_eva),
    Family("eva02", _make_eva(scale_mlp=True, scale_attn_inner=True, qkv_fused=False, num_reg_tokens=2), read_eva,
           prefix=3),
    Family("torchvision", _make_torchvision(), read_torchvision, size=(64, 64), grid=(4, 4)),
    Family("torchvision-tanh", _make_torchvision(representation_size=20), read_torchvision, size=(64, 64), grid=(4, 4)),
    Family("transformers", _make_transformers, read_transformers),
    Family("map-head", _vit(global_pool="map", class_token=False), read_map_head, prefix=0, tail="mlp", gated=True),
    Family("map-head-besides-class-token", _vit(global_pool="map"), read_map_head, tail="mlp", gated=True),
    Family("map-head-with-class-token", _vit(global_pool="map", pool_include_prefix=True), read_map_head_with_prefix,
           pooling="attention+attention"),
    Family("map-head-with-registers", _vit(global_pool="map", pool_include_prefix=True, reg_tokens=4),
           read_map_head_with_prefix, prefix=5, pooling="attention+attention"),
    Family("clip", _make_clip, read_clip, prefix=0, tail="norm-linear", size=(24, 32), gated=True),
]
# fmt: on

over_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.id)
over_tokens = pytest.mark.parametrize("family", [f for f in FAMILIES if not f.is_pool], ids=lambda family: family.id)
over_gated = pytest.mark.parametrize("family", [f for f in FAMILIES if f.gated], ids=lambda family: family.id)


@dataclass(frozen=True, eq=False)
class Case:
    model: Any
    x: Tensor
    cam: camhook.CAM
    logits: Tensor
    reference: Any
    maps: Tensor
    """All classes' maps of the reference, (B, K, h, w)."""
    few: camhook.CAMResult
    """Of TARGETS."""
    every: camhook.CAMResult


@cache  # keyed by the row's place, for a row's options are not hashable
def _case(index: int) -> Case:
    family = FAMILIES[index]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = family.make()
    model = model.double().eval().requires_grad_(False)
    jitter(model)
    x = torch.randn(2, 3, *family.size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    read: Any = family.read
    with torch.no_grad():
        logits = _logits_of(model(x))
        reference = PoolReference(read(model, x)) if family.is_pool else TokenReference(read(model), x)
        maps = reference.maps().unflatten(-1, family.grid)
    cam = camhook.wrap(model, input_size=family.size)
    return Case(model, x, cam, logits, reference, maps, cam(x, TARGETS), cam(x, "all"))


def _of(family: Family) -> Case:
    return _case(FAMILIES.index(family))


def jitter(model: Any) -> None:
    """Move parameters off their initial values, where layer scales, tokens and queries are next to nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
            scale = 0.5 if "token" in name or "pos" in name else scale
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def _logits_of(output: Any) -> Tensor:
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _picked(of_all: Tensor) -> Tensor:
    return torch.stack([of_all[i, targets] for i, targets in enumerate(TARGETS)])


@over_families
def test_structure(family: Family) -> None:
    found = _of(family).cam.describe()
    assert (found.pooling, found.tail, found.grid_size) == (family.pooling, family.tail, family.grid)
    assert (found.num_prefix_tokens, found.forward_passes, found.num_classes) == (family.prefix, 1, NUM_CLASSES)


@over_families
def test_the_reference_is_the_model(family: Family) -> None:
    case = _of(family)
    assert deviation(case.reference.forward_logits, case.logits) < TOLERANCE
    assert deviation(case.reference.logits, case.logits) < TOLERANCE  # its tail, on the class tokens alone
    assert deviation(case.maps.mean((2, 3)) + case.reference.offset, case.logits) < TOLERANCE


@over_families
def test_maps_are_those_of_the_reference(family: Family) -> None:
    case = _of(family)
    assert torch.equal(case.few.logits, case.logits)
    assert deviation(case.few.offset, _picked(case.reference.offset)) < TOLERANCE
    assert deviation(case.few.maps, _picked(case.maps)) < TOLERANCE
    assert case.few.exact.all()


@over_families
def test_maps_of_all_classes_are_those_of_the_reference(family: Family) -> None:
    case = _of(family)
    assert deviation(case.every.offset, case.reference.offset) < TOLERANCE
    assert deviation(case.every.maps, case.maps) < TOLERANCE
    assert case.every.exact.all()


@over_families
def test_there_is_something_to_see(family: Family) -> None:
    """Else the tests above would compare next to nothing with next to nothing."""
    case = _of(family)
    assert (case.maps.std((2, 3)) > 1e-2 * case.logits.abs().max()).all()
    assert (case.maps.mean((2, 3)).abs().amax(1) > 1e-2 * case.logits.abs().amax(1)).all()
    for other in (case.maps.roll(1, 3), case.maps.roll(1, 2), case.maps.flip(1), case.maps.flip(0)):
        assert deviation(other, case.maps) > 0.1  # columns, rows, classes, images


@over_tokens
def test_every_block_head_and_prefix_token_counts(family: Family) -> None:
    """A map that left one of them out would be seen to differ."""
    reference, maps = _of(family).reference, _of(family).maps.flatten(2)

    def without(block: int, head: int, row: int) -> Callable[[Reads], Reads]:
        def keep(reads: Reads) -> Reads:
            reads = [list(heads) for heads in reads]
            reads[block][head] = reads[block][head].clone()
            reads[block][head][:, row] = 0
            return reads

        return keep

    with torch.no_grad():
        for block, heads in enumerate(reference.full):
            for head in range(len(heads)):
                for row in range(heads[head].shape[1]):
                    if row >= len(reference.net.heads) and block == len(reference.full) - 1:
                        continue  # no one asks a register after the last block
                    assert deviation(reference.maps(without(block, head, row)), maps) > 1e-4


@over_tokens
def test_secants_are_not_slopes_at_the_features(family: Family) -> None:
    """The rule for activations matters in these cases; with many nodes their path integral comes closer."""
    case = _of(family)
    targets = TARGETS[:, 0]
    secants = torch.stack([maps[target] for maps, target in zip(case.maps.flatten(2), targets, strict=True)])
    at_the_features = case.reference.integrated(targets, torch.ones(1))
    along_the_path = case.reference.integrated(targets, (torch.arange(32) + 0.5) / 32)
    assert deviation(at_the_features, secants) > 1e-2
    assert deviation(along_the_path, secants) < deviation(at_the_features, secants)
    added_up = along_the_path.mean(1) + case.reference.offset.gather(1, targets[:, None])[:, 0]
    assert (added_up - case.logits.gather(1, targets[:, None])[:, 0]).abs().max() < 1e-3 * case.logits.abs().max()


_UNFUSED = [f for f in FAMILIES if not f.id.startswith("torchvision")]


@pytest.mark.parametrize("family", _UNFUSED, ids=lambda family: family.id)
def test_unfused_attention_gives_the_same_map(family: Family) -> None:
    case = _of(family)
    model = deepcopy(case.model)
    if family.id == "transformers":
        model.set_attn_implementation("eager")
        tolerance = 1e-5  # this way its softmax is in single precision, whatever the model
    else:
        switched = [module for module in model.modules() if hasattr(module, "fused_attn")]
        assert switched
        for module in switched:
            assert module.fused_attn
            module.fused_attn = False
        tolerance = TOLERANCE
    cam = camhook.wrap(model, input_size=family.size)
    for result in (cam(case.x, TARGETS), case.cam(case.x, TARGETS)):
        assert deviation(result.maps, _picked(case.maps)) < tolerance
        assert deviation(result.offset, _picked(case.reference.offset)) < tolerance


class Gates:
    """F's attention, layer normalisation and GELU, such that a model's own code is affine in its gates.

    The first pass notes weights, values, scales and operands, the second, with closed gates, the operands at the rest.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.gates: Tensor | None = None
        """(B, N), on what class tokens read of the patches; None: they are not what is gated."""
        self.mode: Mode = "full"
        self._notes: list[Any] = []
        self._next = 0

    def run(self, mode: Mode, model: Callable[[Tensor], Tensor], x: Tensor, gates: Tensor | None = None) -> Tensor:
        self.mode, self.gates, self._next = mode, gates, 0
        return model(x)

    def _note(self, read: Callable[[], Any]) -> Any:
        if self.mode == "full":
            self._notes.append(read())
        self._next += 1
        return self._notes[self._next - 1]

    def attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: None = None, **_: Any) -> Tensor:
        def look() -> tuple[Tensor, Tensor]:
            return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).detach(), value.detach()

        weights, values = self._note(look)
        if self.gates is None:
            read: Tensor = weights @ value
            return read
        own = weights[..., : self.prefix, : self.prefix] @ value[..., : self.prefix, :]
        patches = weights[..., : self.prefix, self.prefix :] * self.gates[:, None, None]
        rows = own + patches @ values[..., self.prefix :, :]
        return F.pad(rows, (0, 0, 0, query.shape[-2] - self.prefix))  # patches tell class tokens nothing new

    def layer_norm(self, x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        scale: Tensor = self._note(lambda: (x.var(-1, correction=0, keepdim=True) + eps).rsqrt().detach())
        return (x - x.mean(-1, keepdim=True)) * scale * weight + bias

    def gelu(self, x: Tensor, approximate: str = "none") -> Tensor:
        ends: dict[str, Tensor] = self._note(lambda: {"full": x.detach()})
        if self.mode == "rest":
            ends["rest"] = x.detach()
        if self.mode != "straight":
            return gelu_by_hand(x)
        return gelu_by_hand(ends["rest"]) + secant_by_hand(gelu_by_hand, ends["rest"], ends["full"]) * (
            x - ends["rest"]
        )


@over_gated
def test_maps_are_the_models_own_slopes_in_gates_on_what_is_read(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = _of(family)
    gating = Gates(family.prefix)
    monkeypatch.setattr(F, "scaled_dot_product_attention", gating.attention)
    monkeypatch.setattr(F, "layer_norm", gating.layer_norm)
    monkeypatch.setattr(F, "gelu", gating.gelu)
    model, x = case.model, case.x
    count = family.grid[0] * family.grid[1]
    gates = torch.ones(len(x), count, dtype=x.dtype, requires_grad=True)
    if family.is_pool:
        with torch.no_grad():
            features = model.forward_features(x)
        gating = Gates(0)  # the backbone has taken its turn
        monkeypatch.setattr(F, "scaled_dot_product_attention", gating.attention)
        monkeypatch.setattr(F, "layer_norm", gating.layer_norm)
        monkeypatch.setattr(F, "gelu", gating.gelu)
        is_grid = features.ndim == 4
        prefix = 0 if is_grid else family.prefix
        whole = gates.unflatten(1, (1, *family.grid)) if is_grid else F.pad(gates, (prefix, 0))[..., None]
        full = gating.run("full", model.forward_head, features)
        offset = gating.run("rest", model.forward_head, features * (0 * whole.detach()))
        logits = gating.run("straight", model.forward_head, features * whole)
    else:
        full = gating.run("full", model, x)
        offset = gating.run("rest", model, x, 0 * gates.detach())
        logits = gating.run("straight", model, x, gates)
    assert deviation(full, case.logits) < TOLERANCE
    assert deviation(logits.detach(), case.logits) < TOLERANCE
    assert deviation(case.few.offset, _picked(offset)) < TOLERANCE
    each = [
        torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), gates, retain_graph=True)[0]
        for targets in TARGETS.T
    ]
    expected = count * torch.stack(each, 1).unflatten(2, family.grid)
    assert deviation(case.few.maps, expected) < TOLERANCE
