"""Questions put to timm, torchvision and transformers: which answer holds, and that none is imported to ask."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import camhook
from camhook.adapters import libraries
from camhook.adapters import timm as timms
from camhook.adapters.data_config import as_pair

CONFIG = {"input_size": (3, 64, 96), "mean": (0.5,) * 3, "std": (0.5,) * 3}
WEIGHTS = torchvision.models.ResNet18_Weights.DEFAULT


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def configured(**config: Any) -> nn.Module:
    """Return a module with a configuration as transformers writes it."""
    model = nn.Linear(3, 2)
    model.config = SimpleNamespace(**config)  # type: ignore[assignment]
    return model


def test_input_size_of_a_convolutional_network_is_that_of_its_configuration() -> None:
    model = on_meta("test_resnet")
    assert libraries.input_size(model) == model.pretrained_cfg["input_size"][1:]


def test_input_size_comes_from_what_is_given_then_the_patch_embedding_then_the_configuration() -> None:
    model = on_meta("test_vit", img_size=(96, 128))
    assert libraries.input_size(model, CONFIG) == (64, 96)
    assert libraries.input_size(model, WEIGHTS) == (224, 224)
    assert libraries.input_size(model) == (96, 128) != model.pretrained_cfg["input_size"][1:]
    assert libraries.input_size(model, {"mean": (0.5,) * 3}) == (96, 128)  # says nothing of the size


def test_input_size_of_other_libraries() -> None:
    assert libraries.input_size(torchvision.models.VisionTransformer(32, 8, 1, 2, 8, 8)) == (32, 32)
    assert libraries.input_size(configured(image_size=[32, 48])) == (32, 48)
    assert libraries.input_size(configured(vision_config=SimpleNamespace(image_size=40))) == (40, 40)
    assert libraries.input_size(torchvision.models.resnet18()) is None


def test_a_data_config_without_a_size_takes_the_models() -> None:
    given = {key: CONFIG[key] for key in ("mean", "std")}
    cam = camhook.wrap(timm.create_model("test_resnet"), data_config=given)
    assert cam.describe().input_size == (160, 160)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(7, (7, 7)), ([7], (7, 7)), ((7, 9), (7, 9)), (True, None), ("79", None), ((1, 2, 3), None), (None, None)],
)
def test_as_pair(size: Any, expected: tuple[int, int] | None) -> None:
    assert as_pair(size) == expected


def test_declared_channels() -> None:
    assert libraries.declared_channels(on_meta("test_resnet", in_chans=1)) == 3  # timm's configuration goes on saying 3
    assert libraries.declared_channels(configured(num_channels=1)) == 1
    assert libraries.declared_channels(configured(vision_config=SimpleNamespace(num_channels=4))) == 4
    assert libraries.declared_channels(nn.Linear(3, 2)) == 3


def test_data_config_is_what_is_given_else_the_models_own() -> None:
    model = on_meta("test_resnet")
    assert libraries.data_config(model, CONFIG) == CONFIG
    assert libraries.data_config(model) == timm.data.resolve_model_data_config(model)
    assert libraries.data_config(torchvision.models.resnet18()) is None


def test_class_names_come_from_the_weights_first() -> None:
    model = on_meta("test_resnet")
    assert libraries.class_names(model)[0] == "tench, Tinca tinca"
    assert libraries.class_names(model, WEIGHTS)[0] == "tench"
    assert libraries.class_names(model, CONFIG)[0] == "tench, Tinca tinca"


def test_class_names_of_another_number_of_classes_are_not_taken() -> None:
    model = on_meta("test_resnet", num_classes=2)
    assert libraries.class_names(model, WEIGHTS, num_classes=2) == {}
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["cat", "dog", "fox"]}  # of the head that was there
    assert libraries.class_names(model, num_classes=3) == {0: "cat", 1: "dog", 2: "fox"}
    assert libraries.class_names(model, num_classes=2) == {}
    assert libraries.class_names(configured(id2label={"0": "cat", "1": "dog"}), WEIGHTS, num_classes=2)[1] == "dog"


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("test_resnet", ("fc",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("efficientvim_m1", ("heads.0", "heads.1", "heads.2", "heads.3")),
    ],
)
def test_head_modules(name: str, modules: tuple[str, ...]) -> None:
    model = on_meta(name)
    assert libraries.head_modules(model) == modules
    assert set(modules) <= set(dict(model.named_modules()))
    assert libraries.head_modules(nn.Linear(3, 2)) == ()


@pytest.mark.parametrize("name", ["test_resnet", "deit_tiny_distilled_patch16_224", "vgg11", "test_vit"])
def test_a_model_made_without_classes_has_no_head(name: str) -> None:
    assert not libraries.has_no_head(on_meta(name))
    model = on_meta(name, num_classes=0)
    assert libraries.has_no_head(model)
    model.num_classes = 1000
    assert libraries.has_no_head(model)  # its classifier is the identity
    assert not libraries.has_no_head(torchvision.models.resnet18())


def test_encoders_have_no_classifier_and_no_forward_pass() -> None:
    encoder = on_meta("mobilenetv5_300m_enc")
    assert timms.is_encoder(encoder)
    images = torch.empty(1, 3, 256, 256, device="meta")
    assert timms.forward(encoder, images).shape == encoder.forward_features(images).shape
    resnet = on_meta("test_resnet").eval()
    assert not timms.is_encoder(resnet)
    assert timms.forward(resnet, images).shape == (1, 1000)
    assert timms.has_forward_head(resnet)
    assert not timms.has_forward_head(torchvision.models.resnet18())


def test_model_name() -> None:
    assert libraries.model_name(on_meta("test_resnet")) == "test_resnet"
    assert libraries.model_name(torchvision.models.resnet18()) == "ResNet"


def test_imagenet_index() -> None:
    ids = timm.data.ImageNetInfo("imagenet-1k").label_names()
    assert timms.imagenet_index(ids) == list(range(1000))
    assert timms.imagenet_index(["n02123045", "tabby"]) == [281, None]


def test_no_library_is_imported_to_ask() -> None:
    code = """
import sys, camhook.adapters
from torch import nn
from camhook.adapters import libraries as of
model = nn.Linear(3, 2)
of.input_size(model), of.declared_channels(model), of.data_config(model), of.class_names(model), of.has_no_head(model)
print([name for name in ("timm", "torchvision", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
