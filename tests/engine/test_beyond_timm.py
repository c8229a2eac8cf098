"""Classifiers of torchvision and transformers, built from small configurations: every map exact, each pooling checked.

The references share no code with the engine: autograd where the head is affine, the formulas written out elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from beyond import (
    ATTENTIONS,
    TORCHVISION,
    TRANSFORMERS,
    explained,
    features_and_slopes,
    hugging_face,
    jittered,
    photos,
    torchvision_model,
)  # fmt: skip
from torch import Tensor
from torch.nn import functional as F

import camhook


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_is_exact(name: str) -> None:
    _, size, head, layer, grid = TORCHVISION[name]
    description, result = explained(torchvision_model(name), size)
    assert result.head == head
    assert (description.target_layer, description.grid_size, description.forward_passes) == (layer, grid, 1)


@pytest.mark.parametrize(
    ("name", "attention"), [(n, a) for n in TRANSFORMERS for a in ("eager", "sdpa") if a == "eager" or n in ATTENTIONS]
)
def test_transformers_is_exact(name: str, attention: str) -> None:
    *_, head, grid = TRANSFORMERS[name]
    model, size = hugging_face(name, attention)
    options: dict[str, Any] = {}
    if name == "PPLCNet":  # its logits go by another name
        options = {"pick": lambda returned: returned.last_hidden_state, "output": "last_hidden_state"}
    description, result = explained(model, size, **options)
    assert (result.head, description.grid_size, description.forward_passes) == (head, grid, 1)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "swin", "googlenet"])
def test_affine_heads_by_autograd(name: str) -> None:
    model, (_, size, _, layer, grid) = torchvision_model(name), TORCHVISION[name]
    features, slopes = features_and_slopes(model, layer, photos(size))
    expected = grid[0] * grid[1] * (slopes * features[:, None]).sum(2)
    torch.testing.assert_close(camhook.wrap(model)(photos(size), "all").maps, expected, rtol=1e-9, atol=1e-12)


def test_transformers_swin_tokens_lie_row_by_row() -> None:
    model, _ = hugging_face("Swin")
    features, slopes = features_and_slopes(model, "swin.layernorm", photos((32, 48)))
    expected = 24 * (slopes * features[:, None]).sum(-1).view(2, 5, 4, 6)
    torch.testing.assert_close(camhook.wrap(model)(photos((32, 48)), "all").maps, expected, rtol=1e-9, atol=1e-12)


def test_densenet_is_the_map_of_its_rectified_features() -> None:
    model = torchvision_model("densenet")
    features, _ = features_and_slopes(model, "features", photos((64, 96)))
    expected = torch.einsum("kc,bchw->bkhw", model.classifier.weight, features.relu())
    torch.testing.assert_close(camhook.wrap(model)(photos((64, 96)), "all").maps, expected, rtol=1e-9, atol=1e-12)


def test_convnext_holds_the_norm() -> None:
    model = torchvision_model("convnext")
    features, _ = features_and_slopes(model, "features", photos((64, 96)))
    norm, linear = model.classifier[0], model.classifier[2]
    pooled = features.mean((2, 3))
    scale = (pooled.var(1, unbiased=False) + norm.eps).rsqrt().view(-1, 1, 1, 1)
    centred = (features - features.mean(1, keepdim=True)) * scale * norm.weight.view(-1, 1, 1)
    expected = torch.einsum("kc,bchw->bkhw", linear.weight, centred)
    torch.testing.assert_close(camhook.wrap(model)(photos((64, 96)), "all").maps, expected, rtol=1e-9, atol=1e-12)


Parts = tuple[Tensor, Tensor, Tensor, Tensor, Any, Any, Callable[[Tensor], Tensor], Any, Any]


def _torchvision_block() -> tuple[Any, Parts]:
    torch.manual_seed(0)
    model = jittered(torchvision.models.VisionTransformer(32, 8, 1, 2, 24, 48, num_classes=5))
    block = model.encoder.layers[0]
    kept: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    model(photos((32, 32)))
    handle.remove()
    attention = block.self_attention
    q, k, v = F.linear(block.ln_1(kept[0]), attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    return model, (
        kept[0], q, k, v, attention.out_proj, block.ln_2, block.mlp, model.encoder.ln, model.heads
    )  # fmt: skip


def _transformers_block(attention: str) -> tuple[Any, Parts]:
    model, _ = hugging_face("ViT", attention)
    model.vit.layers = model.vit.layers[:1]
    block = model.vit.layers[0]
    kept: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    model(photos((32, 48)))
    handle.remove()
    x = block.layernorm_before(kept[0])
    q, k, v = block.attention.q_proj(x), block.attention.k_proj(x), block.attention.v_proj(x)
    return model, (
        kept[0], q, k, v, block.attention.o_proj, block.layernorm_after, block.mlp, model.vit.layernorm,
        model.classifier,
    )  # fmt: skip


def _held(norm: Any, at: Tensor) -> Callable[[Tensor], Tensor]:
    scale = (at.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt().detach()
    return lambda x: (x - x.mean(-1, keepdim=True)) * scale * norm.weight + norm.bias


@pytest.mark.parametrize("kind", ["torchvision", "eager", "sdpa"])
def test_class_token_of_one_block_by_explicit_attention(kind: str) -> None:
    """One block: softmax attention by hand, and the slope of the class token's path by quadrature, norms held."""
    model, parts = _torchvision_block() if kind == "torchvision" else _transformers_block(kind)
    tokens, q, k, v, project, second_norm, mlp, last_norm, head = parts
    batch, count, heads, d = len(tokens), tokens.shape[1] - 1, 2, 12
    query, keys, values = q[:, 0].view(batch, heads, d), *(x.view(batch, -1, heads, d).transpose(1, 2) for x in (k, v))
    weights = (torch.einsum("bhd,bhnd->bhn", query, keys) / d**0.5).softmax(-1)
    reads = torch.einsum("bhn,bhnd->bnhd", weights, values).flatten(2).detach()  # what each token gives
    of_patches, of_itself = reads[:, 1:].sum(1), reads[:, 0]

    def path(read: Tensor, second: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor]) -> Tensor:
        x = tokens[:, 0] + project(read + of_itself)
        result: Tensor = head(last(x + mlp(second(x))))
        return result

    x = tokens[:, 0] + project(of_patches + of_itself)
    second, last = _held(second_norm, x), _held(last_norm, x + mlp(second_norm(x)))
    logits = path(of_patches, second, last)
    mean_slope = torch.zeros(batch, 5, heads * d, dtype=torch.float64)
    nodes = 400  # midpoints: the error falls with the square, to about 1e-7 of a slope here
    for i in range(nodes):
        at = ((i + 0.5) / nodes * of_patches).requires_grad_()
        given = path(at, second, last)
        slopes = [torch.autograd.grad(one.sum(), at, retain_graph=True)[0] for one in given.unbind(1)]
        mean_slope += torch.stack(slopes, 1).detach() / nodes
    expected = count * torch.einsum("bkc,bnc->bkn", mean_slope, reads[:, 1:])

    size = (32, 32) if kind == "torchvision" else (32, 48)
    result = camhook.wrap(model, input_size=size)(photos(size), "all")
    # transformers takes its softmax in single precision where it takes it itself
    torch.testing.assert_close(result.logits, logits.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result.maps.flatten(2), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_of_training_are_no_hindrance(name: str) -> None:
    model, size = torchvision_model(name), TORCHVISION[name][1]
    expected = camhook.wrap(model, input_size=size)(photos(size))
    model.train()
    try:
        result = camhook.wrap(model, input_size=size)(photos(size))
        assert model.training
    finally:
        model.eval()
    assert torch.equal(result.maps, expected.maps)


def test_models_that_take_no_pictures_are_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ImageGPTConfig(n_embd=24, n_layer=1, n_head=2, num_labels=5)
    model = transformers.ImageGPTForImageClassification(config)
    with pytest.raises(camhook.CamhookError, match=r"Expected a model that takes one \(B, C, H, W\) tensor"):
        camhook.wrap(model, input_size=(32, 32))
