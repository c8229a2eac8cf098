"""What camhook makes of a photo is what torchvision's transforms and transformers' image processors make of it.

Exactly so where they resize with Pillow. Processors that resize tensors round otherwise: by two grey levels at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

import camhook
from camhook.adapters.libraries import class_names, data_config_of, input_size
from camhook.demo import demo_photos
from camhook.errors import ImageError
from camhook.images.preprocessing import Preprocessing

NORM = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
STEPS = [transforms.Resize(64), transforms.CenterCrop(56), transforms.ToTensor(), transforms.Normalize(*NORM)]
SQUASH = transforms.Compose([transforms.Resize((48, 64)), transforms.ToTensor()])
MODERN = v2.Compose([v2.Resize(64), v2.CenterCrop(56), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {},
    "Siglip": {},
    "CLIP": {},
    "Bit": {},
    "Levit": {},
    "PoolFormer": {},
    "MobileNetV2": {},
    "ConvNext": {"size": {"shortest_edge": 224}},  # crops below 384 and squashes from there on
    "ConvNext 384": {},
    "EfficientNet": {"resample": 0, "size": {"height": 224, "width": 224}},
    "EfficientNet offset": {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False},
    "ViT unscaled": {"do_normalize": False, "do_rescale": False},
}


def _photo() -> Image.Image:
    return Image.open(demo_photos()["chelsea.png"]).convert("RGB")  # 300 x 451


def _check(given: Any, theirs: Callable[[Image.Image], Tensor], grey_levels: float) -> None:
    config = data_config_of(given)
    batch = Preprocessing(config)([_photo()])
    expected = theirs(_photo()).float()
    assert batch.tensor[0].shape == expected.shape == config["input_size"]
    off = (batch.tensor[0] - expected).abs() * torch.tensor(config["std"]).view(3, 1, 1) * 255
    assert float(off.max()) <= grey_levels + 1e-3
    geometry = batch.geometries[0]
    if config["crop_mode"] == "squash" and config["crop_pct"] == 1:
        assert geometry.offset == (0, 0)
    # The middle of the input is the middle of the photo, to a pixel of the input.
    middle = [150 * geometry.scale[0] + geometry.offset[0], 225.5 * geometry.scale[1] + geometry.offset[1]]
    assert all(abs(m - s / 2) <= 1 for m, s in zip(middle, expected.shape[1:], strict=True))


@pytest.mark.parametrize("name", ["ResNet50", "EfficientNet_B1", "Swin_T", "MaxVit_T", "ViT_L_16"])
def test_torchvision_weights(name: str) -> None:
    weights = torchvision.models.get_model_weights(name.lower()).DEFAULT
    for given in (weights, weights.transforms()):
        _check(given, weights.transforms(), 0)


def test_every_torchvision_weight_can_be_said() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        for weights in torchvision.models.get_model_weights(name):
            preset, config = weights.transforms(), data_config_of(weights)
            assert config["input_size"] == (3, *preset.crop_size * 2)
            assert int(preset.crop_size[0] / config["crop_pct"]) == preset.resize_size[0]
            assert len(class_names(nn.Identity(), weights)) == (0 if weights.meta["categories"] is None else 1000)


@pytest.mark.parametrize("transform", [transforms.Compose(STEPS), SQUASH, MODERN], ids=["v1", "squash", "v2"])
def test_composed_transforms(transform: Any) -> None:
    _check(transform, transform, 0)


@pytest.mark.parametrize("kind", ["ImageProcessorPil", "ImageProcessor"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_image_processors(name: str, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, name.split()[0] + kind, None)
    if made is None:
        pytest.skip(f"this version of transformers has no {name.split()[0]}{kind}")
    processor = made(**PROCESSORS[name])
    for given in (processor, processor.to_dict()):
        _check(
            given,
            lambda photo: processor(photo, return_tensors="pt")["pixel_values"][0],
            0 if kind.endswith("Pil") else 2,
        )


def test_configurations_of_old() -> None:
    old = {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3, "image_mean": [0.5] * 3}
    clip = data_config_of({**old, "feature_extractor_type": "CLIPFeatureExtractor", "image_std": [0.5] * 3})
    assert (clip["crop_mode"], clip["crop_pct"], clip["interpolation"]) == ("center", 1.0, "bicubic")
    deit = data_config_of({**old, "size": 256, "feature_extractor_type": "DeiTFeatureExtractor", "image_std": 0.5})
    assert (deit["crop_mode"], deit["crop_pct"], deit["std"]) == ("squash", 0.875, (0.5, 0.5, 0.5))


def test_timm_dictionary_stays() -> None:
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9}
    assert data_config_of(config) == config
    assert data_config_of(config) is not config


SAID = {
    "no resize": (transforms.Compose(STEPS[1:]), "one Resize, one CenterCrop and one Normalize were expected"),
    "random": (transforms.Compose([transforms.RandomResizedCrop(64)]), "RandomResizedCrop"),
    "no size": (transforms.Compose([transforms.Resize(64)]), "without a crop, so its input has no one size"),
    "oblong": (transforms.Compose([transforms.Resize(64), transforms.CenterCrop((32, 48))]), "no one crop_pct"),
    "order": (transforms.Compose(STEPS[1::-1]), "in this order"),
    "max_size": (transforms.Compose([transforms.Resize(64, max_size=80)]), "without max_size"),
    "channels": ({"size": 256, "do_flip_channel_order": True}, "do_flip_channel_order cannot be said"),
    "longest": ({"size": {"longest_edge": 256}}, "longest_edge"),
    "unresized": ({"size": 256, "do_resize": False}, "do_resize=False"),
    "nothing": (3, "an image processor of transformers was expected"),
    "sizeless": ({"image_mean": [0.5] * 3}, "No size was found"),
    "filter": ({"size": 256, "resample": 17}, "interpolation 17 was found"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_cannot_be_said_is_refused(case: str) -> None:
    given, words = SAID[case]
    with pytest.raises(ImageError, match=words):
        data_config_of(given)


def test_names_and_sizes_of_models() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**small, image_size=(32, 48), patch_size=8, id2label={0: "cat", 1: "dog"})
    model = transformers.ViTForImageClassification(config)
    assert class_names(model) == {0: "cat", 1: "dog"}
    assert input_size(model) == (32, 48)
    siglip = transformers.SiglipConfig(vision_config={**small, "image_size": 32, "patch_size": 8}, num_labels=2)
    assert input_size(transformers.SiglipForImageClassification(siglip)) == (32, 32)
    assert class_names(transformers.SiglipForImageClassification(siglip)) == {}  # LABEL_0, LABEL_1 are no names


def test_models_that_say_nothing() -> None:
    assert class_names(nn.Linear(3, 2)) == {}
    assert input_size(nn.Linear(3, 2)) is None
    assert input_size(torchvision.models.VisionTransformer(32, 8, 1, 2, 8, 8)) == (32, 32)


def test_wrap_takes_weights_and_processors() -> None:
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    photo = _photo()
    cam = camhook.wrap(torchvision.models.resnet18(), data_config=weights)
    result = cam(photo, "tabby")
    assert (cam.describe().input_size, result.label()) == ((224, 224), "tabby")
    assert torch.as_tensor(result.upsampled()[0]).shape[1:] == (300, 451)  # the original photo
    fine_tuned = camhook.wrap(torchvision.models.resnet18(num_classes=10), data_config=weights)
    assert fine_tuned(photo, 3).label() == "class 3"  # the weights' names are not those of ten other classes
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**small, image_size=32, patch_size=8, id2label={0: "cat", 1: "dog"})
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    cam = camhook.wrap(transformers.ViTForImageClassification(config), data_config=processor)
    assert (cam.describe().grid_size, cam(photo, "dog").label()) == ((4, 4), "dog")
    assert camhook.wrap(transformers.ViTForImageClassification(config)).describe().input_size == (32, 32)
