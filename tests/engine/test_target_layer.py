"""Layers named by the user: windowed transformers, class-token models at depth, modules and lists of layers."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import camhook
from camhook.cli.check import jitter
from camhook.errors import LayoutError, UnsupportedModelError

SMALL = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (3, 3, 6, 6)}


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=40, **options).double().eval()
    jitter(model)
    return model


def explained(model: nn.Module, layer: Any, **options: Any) -> tuple[camhook.CAM, camhook.CAMResult, Tensor]:
    cam = camhook.wrap(model, target_layer=layer, **options)
    height, width = cam.describe().input_size
    images = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return cam, cam(images, topk=2), images


def is_exact(result: camhook.CAMResult) -> bool:
    return float((result.completeness_error / result.logits.abs().amax(1, keepdim=True)).max()) < 1e-8


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("swin_tiny_patch4_window7_224", "layers.0"),
        ("swin_tiny_patch4_window7_224", "layers.1"),
        ("swinv2_tiny_window8_256", "layers.1"),
    ],
)
def test_windows_folded_into_the_batch(name: str, layer: str) -> None:
    """Windowed attention folds windows into the batch axis; nothing may take that axis for the images."""
    model = made(name, **SMALL)
    cam, result, images = explained(model, layer)
    assert cam.describe().target_layer == layer
    assert is_exact(result)
    alone = torch.cat(
        [cam(image[None], [target.tolist()]).maps for image, target in zip(images, result.target, strict=True)]
    )
    torch.testing.assert_close(
        result.maps, alone, rtol=1e-8, atol=1e-10
    )  # an image's map does not depend on the others
    every = cam(images, "all").maps.gather(1, result.target[..., None, None].expand_as(result.maps))
    torch.testing.assert_close(result.maps, every, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layer", ["patch_embed", "blocks.0", "blocks.4", "input of blocks.2"])
def test_a_layer_of_a_class_token_model_is_read_itself(layer: str) -> None:
    model = made("test_vit")
    cam, result, images = explained(model, layer)
    assert cam.describe().target_layer == layer
    assert result.target_layer == layer
    assert is_exact(result)
    default = camhook.wrap(model)(images, result.target)
    assert float((result.maps - default.maps).abs().max()) > 0.01 * float(default.maps.abs().max())


@pytest.mark.parametrize("layer", ["blocks.5", "norm"])
def test_patches_behind_the_last_attention_of_a_class_token_are_refused(layer: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"does not read the spatial features[\s\S]*before their last attention"
    ):
        camhook.wrap(made("test_vit"), target_layer=layer)


def test_a_module_is_as_good_as_its_name() -> None:
    model = made("test_resnet")
    _, by_name, _ = explained(model, "layer3")
    _, by_module, _ = explained(model, model.layer3)
    _, by_list, _ = explained(model, [model.layer3])
    assert by_module.target_layer == by_list.target_layer == "layer3"
    assert torch.equal(by_name.maps, by_module.maps)
    assert torch.equal(by_name.maps, by_list.maps)


class TwoScales(nn.Module):
    """A score that reads two stages, each by a pooling of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 8, 2, 2)
        self.fine_head, self.coarse_head = nn.Linear(6, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x).relu()
        coarse = self.coarse(fine).relu()
        logits: Tensor = self.fine_head(fine.mean((2, 3))) + self.coarse_head(coarse.mean((2, 3)))
        return logits


def test_layers_that_the_score_reads_by_paths_of_their_own_are_joined_by_overlap_area() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(TwoScales()).double().eval()
    options: dict[str, Any] = {"input_size": (16, 16)}
    cam, result, _ = explained(model, ["0.fine", model[0].coarse], **options)
    assert cam.describe().target_layer == "0.fine, 0.coarse"
    assert is_exact(result)
    assert result.maps.shape[2:] == (4, 4)


def test_layers_in_a_row_are_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedModelError, match="the logits depend on layer3 only through the other layers"):
        camhook.wrap(made("test_resnet"), target_layer=["layer3", "layer4"])


@pytest.mark.parametrize("layer", ["fc", "global_pool"])
def test_a_layer_without_positions_is_not_advised_to_pass_what_was_passed(layer: str) -> None:
    with pytest.raises(UnsupportedModelError, match="it has no positions") as caught:
        camhook.wrap(made("test_resnet"), target_layer=layer)
    assert "pass target_layer=" not in str(caught.value)


@pytest.mark.parametrize("layer", ["nope", 3, [], ["layer3", 4], nn.Linear(2, 2)])
def test_what_is_no_layer_of_the_model_is_refused(layer: Any) -> None:
    with pytest.raises(LayoutError, match="target_layer="):
        camhook.wrap(made("test_resnet"), target_layer=layer)
