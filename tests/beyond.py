"""Models from elsewhere, small and with random weights, and the checks that every map of theirs must pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

import camhook

RELATIVE_ERROR = 1e-8
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "patch_size": 8}
FOUR = {"hidden_sizes": (8, 8, 12, 16), "depths": (1, 1, 1, 1)}
HEADS = {"num_attention_heads": (1, 1, 1, 2)}
STAGES = {"embedding_size": 8, "hidden_sizes": (16, 24), "depths": (1, 1)}
WINDOWS = {"image_size": (32, 48), "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
LEVIT = {"hidden_sizes": (16, 24, 32), "num_attention_heads": (1, 1, 2), "depths": (1, 1, 1), "key_dim": (8, 8, 8)}


def made(name: str, **options: Any) -> Any:
    return lambda: torchvision.models.get_model(name, num_classes=5, **options)


def with_small_classifier(name: str, features: int) -> Any:
    """Return one of the nets that flatten, with fewer units in its classifier: 100 million weights teach no more."""

    def make() -> Any:
        with torch.device("meta"):
            model = torchvision.models.get_model(name, num_classes=5)
        layers = [nn.Linear(features, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(True)]
        model.classifier = nn.Sequential(*layers, nn.Linear(16, 5)).to("meta")
        model.to_empty(device="cpu")
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
        return model

    return make


def swin(**options: Any) -> Any:
    return lambda: SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5, **options)


# make, input, head, target layer, grid
TORCHVISION: dict[str, tuple[Any, tuple[int, int], str, str, tuple[int, int]]] = {
    "resnet18": (made("resnet18"), (64, 96), "mean/linear", "layer4", (2, 3)),
    "googlenet": (made("googlenet", init_weights=False), (64, 96), "mean/linear", "inception5b", (2, 3)),
    "inception_v3": (made("inception_v3", init_weights=False), (107, 107), "mean/linear", "Mixed_7c", (2, 2)),
    "squeezenet1_1": (made("squeezenet1_1"), (64, 96), "mean/linear", "classifier.2", (3, 5)),
    "mnasnet0_5": (made("mnasnet0_5"), (64, 96), "mean/linear", "layers", (2, 3)),
    "shufflenet_v2": (made("shufflenet_v2_x0_5"), (64, 96), "mean/linear", "conv5", (2, 3)),
    "efficientnet_b0": (made("efficientnet_b0"), (64, 96), "mean/linear", "features", (2, 3)),
    "regnet_y": (made("regnet_y_400mf"), (64, 96), "mean/linear", "trunk_output", (2, 3)),
    "mobilenet_v2": (made("mobilenet_v2"), (64, 96), "mean/linear", "features", (2, 3)),
    "mobilenet_v3": (made("mobilenet_v3_small"), (64, 96), "mean/mlp", "features", (2, 3)),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5), (64, 96), "flatten/mlp", "features", (8, 12)
    ),
    "convnext": (
        lambda: ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)], num_classes=5),
        (64, 96), "mean/norm-linear", "features", (8, 12),
    ),
    "swin": (swin(), (32, 48), "mean/linear", "permute", (4, 6)),
    "swin_v2": (
        swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2), (32, 48), "mean/linear", "permute", (4, 6)
    ),
    "maxvit": (
        lambda: MaxVit((64, 64), 8, 4, [8, 16], [1, 1], 8, 0.1, num_classes=5), (64, 64), "mean/mlp", "blocks.1", (8, 8)
    ),
    "vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5),
        (32, 32), "attention/deep", "2 attentions from encoder on", (4, 4),
    ),
    "alexnet": (with_small_classifier("alexnet", 9216), (64, 96), "flatten/deep", "avgpool", (6, 6)),
    "vgg11": (with_small_classifier("vgg11", 25088), (64, 96), "flatten/deep", "avgpool", (7, 7)),
}  # fmt: skip

# configuration, its options, head, grid
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str, tuple[int, int]]] = {
    "ViT": ("ViT", {**SMALL, "image_size": (32, 48)}, "attention/deep", (4, 6)),
    "DeiT": ("DeiT", {**SMALL, "image_size": (32, 48)}, "attention/deep", (4, 6)),
    "DeiT WithTeacher": ("DeiT", {**SMALL, "image_size": (32, 48)}, "attention/deep", (4, 6)),
    "ViTMSN": ("ViTMSN", {**SMALL, "image_size": (32, 48)}, "attention/deep", (4, 6)),
    "Beit": ("Beit", {**SMALL, "image_size": (32, 48)}, "mean/norm-linear", (4, 6)),
    "Beit token": ("Beit", {**SMALL, "image_size": (32, 48), "use_mean_pooling": False}, "attention/deep", (4, 6)),
    "Data2VecVision": (
        "Data2VecVision", {**SMALL, "image_size": 32, "use_relative_position_bias": True}, "mean/norm-linear", (4, 4)
    ),
    "Dinov2": ("Dinov2", {**SMALL, "image_size": 32}, "attention+mean/deep", (4, 6)),
    "Dinov2WithRegisters": ("Dinov2WithRegisters", {**SMALL, "image_size": 32}, "attention+mean/deep", (4, 6)),
    "IJepa": ("IJepa", {**SMALL, "image_size": (32, 48)}, "mean/linear", (4, 6)),
    "Siglip": ("Siglip", {"vision_config": {**SMALL, "image_size": 32}}, "mean/linear", (4, 4)),
    "CLIP": ("CLIP", {"vision_config": {**SMALL, "image_size": 32}}, "mean/linear", (4, 4)),
    "Swin": ("Swin", WINDOWS, "mean/linear", (4, 6)),
    "Swinv2": ("Swinv2", WINDOWS, "mean/linear", (4, 6)),
    "ConvNext": ("ConvNext", FOUR, "mean/norm-linear", (2, 3)),
    "ConvNextV2": ("ConvNextV2", FOUR, "mean/norm-linear", (2, 3)),
    "ResNet": ("ResNet", STAGES, "mean/linear", (8, 12)),
    "RegNet": ("RegNet", {**STAGES, "groups_width": 8}, "mean/linear", (8, 12)),
    "Bit": ("Bit", {**STAGES, "num_groups": 4}, "mean/linear", (8, 12)),
    "Pvt": ("Pvt", {**FOUR, **HEADS, "image_size": 64}, "attention/deep", (2, 2)),
    "PvtV2": ("PvtV2", {**FOUR, **HEADS}, "mean/linear", (2, 3)),
    "Segformer": ("Segformer", {**FOUR, **HEADS}, "mean/linear", (2, 3)),
    "PoolFormer": ("PoolFormer", FOUR, "mean/linear", (2, 3)),
    "Levit": ("Levit", {**LEVIT, "image_size": 128}, "mean/linear", (2, 2)),
    "Levit WithTeacher": ("Levit", {**LEVIT, "image_size": 128}, "mean/linear", (2, 2)),
    "Cvt": ("Cvt", {"embed_dim": (8, 12, 16), "num_heads": (1, 1, 2), "depth": (1, 2, 3)}, "attention/deep", (2, 3)),
    "PPLCNet": ("PPLCNet", {"scale": 0.25, "class_expand": 32}, "mean/mlp", (2, 3)),
    "TimmWrapper": ("TimmWrapper", {"architecture": "resnet18"}, "mean/linear", (2, 3)),
}  # fmt: skip
ATTENTIONS = ["ViT", "DeiT", "DeiT WithTeacher", "Beit", "Data2VecVision", "Dinov2", "Dinov2WithRegisters", "Siglip"]
RESIZED = {"Dinov2": (32, 48), "Dinov2WithRegisters": (32, 48)}  # not what they were configured for


def jittered(model: nn.Module) -> Any:
    """Put the model in float64 and eval mode, with no parameter or statistic left at zero or one."""
    generator = torch.Generator().manual_seed(0)
    model.double().eval()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                spread = float(value.std()) if value.numel() > 1 else 0.0
                value.add_(0.3 * max(spread, 0.05) * noise)
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return model


def photos(size: tuple[int, int], channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def logits_of(returned: Any) -> Tensor:
    logits: Tensor = returned if isinstance(returned, Tensor) else returned.logits
    return logits


def explained(
    model: nn.Module, size: tuple[int, int], pick: Callable[[Any], Tensor] = logits_of, **options: Any
) -> tuple[Any, camhook.CAMResult]:
    """Return what is described, and a result of all classes, checked to be exact and of the model's own logits."""
    cam = camhook.wrap(model, input_size=size, **options)
    images = photos(size)
    result = cam(images, "all")
    with torch.no_grad():
        assert torch.equal(result.logits, pick(model(images)))
    assert bool(result.exact.all())
    assert float(result.completeness_error.max() / result.logits.abs().max()) < RELATIVE_ERROR
    mean = result.maps.mean((2, 3)) + result.offset  # the sum itself, whatever the result says of its error
    torch.testing.assert_close(mean, result.logits, rtol=RELATIVE_ERROR, atol=RELATIVE_ERROR)
    assert float(result.maps.std()) > 0
    return cam.describe(), result


def features_and_slopes(
    model: nn.Module, layer: str, images: Tensor, pick: Callable[[Any], Tensor] = logits_of
) -> tuple[Tensor, Tensor]:
    """Return what a layer gives, and the logits' slopes there (B, K, ...), by autograd alone."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1] * 1  # a later step may overwrite it

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        logits = pick(model(images))
    finally:
        handle.remove()
    slopes = [torch.autograd.grad(one.sum(), kept[0], retain_graph=True)[0] for one in logits.unbind(1)]
    return kept[0].detach(), torch.stack(slopes, 1)


@cache
def torchvision_model(name: str) -> Any:
    torch.manual_seed(0)
    return jittered(TORCHVISION[name][0]())


def hugging_face(name: str, attention: str = "eager") -> tuple[Any, tuple[int, int]]:
    """Return a classifier of transformers with random weights, and the (height, width) of its input."""
    transformers = pytest.importorskip("transformers")
    family, _, suffix = name.partition(" ")
    suffix = suffix if suffix == "WithTeacher" else ""
    given = TRANSFORMERS[name][1]
    size = RESIZED.get(name) or given.get("vision_config", given).get("image_size", (64, 96))
    config = getattr(transformers, f"{TRANSFORMERS[name][0]}Config")(**given, num_labels=5)
    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}ForImageClassification{suffix}")
    model = jittered(kind._from_config(config, attn_implementation=attention))
    return model, (size, size) if isinstance(size, int) else size
