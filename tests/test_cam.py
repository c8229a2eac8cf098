"""Wrap and call: what is found, what follows a change of the model, what is refused and how."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import camhook
from camhook.adapters.base import Layout
from camhook.adapters.layouts import MEAN
from camhook.demo import demo_model, demo_photos
from camhook.errors import CamhookError, CompletenessError, ImageError, LayoutError, TargetError, UnsupportedModelError

SIZE = (64, 64)


def jitter(model: Any, seed: int = 0) -> Any:
    """Leave no parameter zero and no two alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def jittered(name: str = "test_resnet", seed: int = 0, num_classes: int = 7, **options: Any) -> Any:
    torch.manual_seed(seed)
    return jitter(timm.create_model(name, num_classes=num_classes, **options), seed)


def pictures(*size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, *(size or SIZE), generator=torch.Generator().manual_seed(1))


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def plain_maps(model: Any, images: Tensor) -> Tensor:
    """Zhou's CAM of a model with one linear layer behind its pooling, written out."""
    with torch.no_grad():
        return torch.einsum("bchw,kc->bkhw", model.forward_features(images), model.get_classifier().weight)


# What a call gives back.


def test_maps_are_zhous() -> None:
    model = jittered()
    result = camhook.wrap(model, input_size=SIZE)(pictures(), "all")
    torch.testing.assert_close(result.maps, plain_maps(model, pictures()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.offset, model.fc.bias.detach().expand(2, -1))
    torch.testing.assert_close(result.maps.mean((2, 3)) + result.offset, result.logits)
    assert (result.maps.dtype, result.target.dtype) == (torch.float32, torch.int64)
    assert torch.equal(result.scores, result.logits)
    assert (result.method, result.head, result.target_layer, result.explains) == (
        "cam",
        "mean/linear",
        "layer4",
        "model",
    )


def test_float64_model() -> None:
    result = camhook.wrap(jittered().double(), input_size=SIZE)(pictures().double(), topk=2)
    assert result.maps.dtype == torch.float64
    assert float((result.completeness_error / result.logits.abs().max()).max()) < 1e-12


@pytest.mark.parametrize(
    ("name", "tail"), [("test_convnext", "norm-linear"), ("test_mambaout", "mlp"), ("test_efficientnet", "linear")]
)
def test_all_classes_equal_one_at_a_time(name: str, tail: str) -> None:
    cam = camhook.wrap(jittered(name, num_classes=40), input_size=SIZE)
    assert cam.describe().tail == tail
    together = cam(pictures(), "all")
    assert together.maps.shape == (2, 40, 2, 2)
    assert together.exact.all()
    for label in (0, 17, 39):
        one = cam(pictures(), label)
        torch.testing.assert_close(one.maps[:, 0], together.maps[:, label], rtol=1e-4, atol=1e-5)


def test_contrast_is_the_difference_of_maps() -> None:
    cam = camhook.wrap(jittered(), input_size=SIZE)
    every, result = cam(pictures(), "all"), cam(pictures(), 2, contrast=[0, 5])
    expected = every.maps[:, 2] - (every.maps[:, 0] + every.maps[:, 5]) / 2
    torch.testing.assert_close(result.maps[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert result.exact.all()
    rivals = cam(pictures(), [[2, 3]] * 2, contrast="rivals")
    others = [0, 1, 3, 4, 5, 6]  # fewer than ten classes: all the others
    torch.testing.assert_close(
        rivals.maps[:, 0], every.maps[:, 2] - every.maps[:, others].mean(1), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(TargetError, match="at least two classes"):
        camhook.wrap(jittered(num_classes=1), input_size=SIZE)(pictures(), contrast="rivals")


# The model changes after wrapping.


@pytest.mark.parametrize("assign", [False, True])
def test_weights_loaded_later_are_picked_up(assign: bool) -> None:
    model, other = jittered(), jittered(seed=5)
    cam = camhook.wrap(model, input_size=SIZE)
    before = cam(pictures(), "all")
    model.load_state_dict(other.state_dict(), assign=assign)
    after = cam(pictures(), "all")
    assert after.exact.all()
    assert not torch.allclose(after.maps, before.maps, atol=0.1)
    torch.testing.assert_close(after.maps, plain_maps(other, pictures()), rtol=1e-5, atol=1e-5)


def test_a_new_linear_layer_is_picked_up() -> None:
    model = jittered()
    cam = camhook.wrap(model, input_size=SIZE)
    model.fc = jitter(nn.Linear(model.num_features, 12))
    result = cam(pictures(), "all")
    assert result.exact.all()
    torch.testing.assert_close(result.maps, plain_maps(model, pictures()), rtol=1e-5, atol=1e-5)


def test_a_new_head_with_an_activation_is_as_if_wrapped_again() -> None:
    model = jittered()
    cam = camhook.wrap(model, input_size=SIZE)
    model.fc = jitter(nn.Sequential(nn.Linear(model.num_features, 16), nn.ReLU(), nn.Linear(16, 7)))
    result, again = cam(pictures(), "all"), camhook.wrap(model, input_size=SIZE)(pictures(), "all")
    assert again.head == "mean/mlp"
    assert result.exact.all()
    torch.testing.assert_close(result.maps, again.maps)


def squared(model: Any) -> None:
    forward_head = model.forward_head
    model.forward_head = lambda features: forward_head(features).square()


def doubled_outside_the_head(model: Any) -> None:
    forward = model.forward
    model.forward = lambda images: 2 * forward(images)


def max_pooled(model: Any) -> None:
    model.global_pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())


def with_a_product(model: Any) -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :7] * x[:, 7:14]

    model.fc = nn.Sequential(model.fc, jitter(nn.Linear(7, 14)), Product())


@pytest.mark.parametrize("change", [squared, with_a_product])
def test_a_head_that_has_become_another_still_adds_up(change: Callable[[Any], None]) -> None:
    model = jittered()
    cam = camhook.wrap(model, input_size=SIZE, strict=True)
    before = cam(pictures())
    change(model)
    after = cam(pictures())
    assert after.exact.all()
    assert not torch.allclose(before.scores, after.scores)


def test_a_module_exchanged_deep_within_is_noticed_at_the_next_call() -> None:
    model = jittered()
    hidden = nn.Sequential(nn.Linear(model.num_features, 16), nn.ReLU())
    model.fc = jitter(nn.Sequential(hidden, nn.Linear(16, 7)))
    cam = camhook.wrap(model, input_size=SIZE, strict=True)
    before = cam(pictures(), "all")
    hidden[1] = nn.GELU()
    after, again = cam(pictures(), "all"), camhook.wrap(model, input_size=SIZE)(pictures(), "all")
    torch.testing.assert_close(after.maps, again.maps)
    assert not torch.allclose(after.maps, before.maps, atol=1e-3)


@pytest.mark.parametrize("change", [doubled_outside_the_head, max_pooled])
def test_a_head_that_no_longer_adds_up_shows(change: Callable[[Any], None]) -> None:
    model = jittered()
    cam, strict = (camhook.wrap(model, input_size=SIZE, strict=strict) for strict in (False, True))
    assert strict(pictures()).exact.all()
    change(model)
    result = cam(pictures())
    assert not result.exact.any()
    assert (result.completeness_error > 100 * result.tolerance).all()
    assert "NOT COMPLETE" in result.caption()
    with pytest.raises(CompletenessError, match=r"misses the model's own score by .*Wrap it again"):
        strict(pictures())


# What cannot be wrapped.


def identity_for_a_classifier() -> Any:
    model = jittered()
    model.fc = nn.Identity()
    return model


def reset() -> Any:
    model = jittered()
    model.reset_classifier(0)
    return model


@pytest.mark.parametrize("make", [lambda: jittered(num_classes=0), reset, identity_for_a_classifier])
def test_no_head(make: Callable[[], Any]) -> None:
    cam = camhook.wrap(make(), input_size=SIZE)
    found = cam.describe()
    assert (found.explains, found.pooling, found.layout, found.grid_size) == ("none", "none", "NCHW", (2, 2))
    assert "no classifier" in str(found)
    with pytest.raises(UnsupportedModelError, match=r"test_resnet has no head .*Its maps need a probe"):
        cam(pictures())


def test_class_token() -> None:
    cam = camhook.wrap(jittered("test_vit", img_size=64))
    found = cam.describe()
    assert (found.pooling, found.num_prefix_tokens, found.grid_size, found.check_error) == (
        "attention",
        1,
        (4, 4),
        None,
    )
    assert "6 attentions from blocks on" in found.target_layer
    assert cam(pictures(64, 64)).exact.all()


class SumOfAFunction(nn.Module):
    """Features come out of a function and go into one: no module is given them or gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))

    def forward_head(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_features_that_no_module_gives_or_is_given() -> None:
    with pytest.raises(UnsupportedModelError):
        camhook.wrap(SumOfAFunction(), input_size=SIZE)


@pytest.mark.parametrize("thing", [None, "resnet50", lambda x: x])
def test_not_a_module(thing: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"A torch\.nn\.Module was expected"):
        camhook.wrap(thing)


def test_unknown_method() -> None:
    model = jittered()
    with pytest.raises(CamhookError, match="method='nope': one of auto, cam"):
        camhook.wrap(model, method="nope")
    with pytest.raises(CamhookError, match="method='nope'"):
        camhook.wrap(model, input_size=SIZE)(pictures(), method="nope")


# Options of wrap.


def test_describe() -> None:
    description = camhook.wrap(jittered("test_vit2", img_size=(64, 96))).describe()
    expected: dict[str, Any] = {
        "model": "test_vit2",
        "target_layer": "norm",
        "layout": "NLC",
        "grid_size": (4, 6),
        "adapter": "mean",
    }
    expected |= {"num_prefix_tokens": 1, "input_size": (64, 96), "num_classes": 7, "tail": "norm-linear"}
    found = description.as_dict()
    assert {key: found[key] for key in expected} == expected
    assert (found["feature_shape"], found["pooling"], found["forward_passes"]) == ((25, 64), "mean", 1)
    assert 0 <= found["check_error"] < 1e-8
    assert json.loads(json.dumps(found))["grid_size"] == [4, 6]
    for words in ("test_vit2, 7 classes, input 64 x 96", "norm", "grid 4 x 6, 1 prefix tokens", "1 forward pass and"):
        assert words in str(description)


def test_target_layer() -> None:
    model = jittered()
    plain = camhook.wrap(model, input_size=SIZE)
    chosen = camhook.wrap(model, input_size=SIZE, target_layer="layer4.0")
    assert (plain.describe().target_layer, chosen.describe().target_layer) == ("layer4", "layer4.0")
    torch.testing.assert_close(plain(pictures()).maps, chosen(pictures()).maps)
    with pytest.raises(LayoutError, match=r"'layer9': the model has no module of that name.*named_modules"):
        camhook.wrap(model, input_size=SIZE, target_layer="layer9")
    deeper = camhook.wrap(model, input_size=SIZE, target_layer="layer3")
    assert (deeper.describe().pooling, deeper.describe().tail) == ("general", "deep")
    result = deeper(pictures())
    assert result.maps.shape[2:] == (4, 4)
    assert result.exact.all()


def test_adapter() -> None:
    def layouts(model: nn.Module, shape: tuple[int, ...]) -> list[Layout]:
        return [Layout("NCHW")]

    mine = camhook.Adapter("mine", layouts)
    cam = camhook.wrap(jittered(), input_size=SIZE, adapter=mine)
    assert cam.describe().adapter == "mine"
    assert torch.equal(cam(pictures()).maps, camhook.wrap(jittered(), input_size=SIZE, adapter=MEAN)(pictures()).maps)


def test_input_size_and_other_sizes_later() -> None:
    cam = camhook.wrap(jittered(), input_size=(96, 160))
    assert (cam.describe().input_size, cam.describe().grid_size) == ((96, 160), (3, 5))
    for size, grid in [((96, 160), (3, 5)), ((128, 64), (4, 2))]:
        result = cam(pictures(*size))
        assert result.maps.shape == (2, 1, *grid)
        assert result.exact.all()


def test_img_size() -> None:
    cam = camhook.wrap(jittered("test_vit2", img_size=(96, 128)))
    assert (cam.describe().input_size, cam.describe().grid_size) == ((96, 128), (6, 8))
    assert cam(pictures(96, 128)).exact.all()
    assert cam(noise(50, 70)).maps.shape == (1, 1, 6, 8)


@pytest.mark.parametrize("channels", [1, 4])
def test_in_chans(channels: int) -> None:
    cam = camhook.wrap(jittered(in_chans=channels), input_size=SIZE)
    result = cam(pictures(channels=channels))
    assert result.exact.all()
    assert result.overlay().size == SIZE
    with pytest.raises(ImageError, match=f"3 channels was found, the model reads {channels}"):
        cam(pictures())
    if channels == 1:
        assert cam(noise(50, 70)).exact.all()
    else:
        with pytest.raises(ImageError, match="photos do not have 4 channels"):
            cam(noise(50, 70))


@dataclass
class Answer:
    logits: Tensor
    features: Tensor


class Plain(nn.Module):
    """No timm model: global average pooling and a linear layer, wrapped up in what it returns."""

    def __init__(self, returns: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(12, 5)
        self.returns = returns

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        return self.returns(self.head(features.mean((2, 3))), features)


OUTPUTS: list[Any] = [
    pytest.param(lambda logits, features: logits, None, id="plain"),
    pytest.param(lambda logits, features: (features, logits), 1, id="tuple"),
    pytest.param(lambda logits, features: {"y": logits, "features": features}, "y", id="dict"),
    pytest.param(Answer, "logits", id="dataclass"),
    pytest.param(lambda logits, features: [[logits]], lambda returned: returned[0][0], id="function"),
]


@pytest.mark.parametrize("input_size", [None, (32, 48)])
@pytest.mark.parametrize(("returns", "output"), OUTPUTS)
def test_modules_that_are_not_timms(returns: Any, output: Any, input_size: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    model = jitter(Plain(returns))
    cam = camhook.wrap(model, input_size=input_size, output=output)
    if input_size is None:
        with pytest.raises(CamhookError, match=r"Pass input_size=\(H, W\) to wrap, or explain an image"):
            cam.describe()
    result = cam(pictures(32, 48), "all")
    with torch.no_grad():
        expected = torch.einsum("bchw,kc->bkhw", model.body(pictures(32, 48)), model.head.weight)
    torch.testing.assert_close(result.maps, expected, rtol=1e-4, atol=1e-5)
    assert result.exact.all()
    assert (cam.describe().model, cam.describe().forward_passes) == ("Plain", 1)
    with pytest.raises(ImageError, match="How to preprocess photos is not known"):
        cam(noise(40, 40))
    with pytest.raises(ImageError, match="There is no photo to draw on"):
        result.overlay()
    assert torch.as_tensor(result.upsampled()).shape == (2, 5, 32, 48)


# What cannot be explained.


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 64, 64), r"shape \(3, 64, 64\) was found, \(B, C, H, W\) was expected"),
        (torch.zeros(0, 3, 64, 64), r"shape \(0, 3, 64, 64\) was found"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"torch\.uint8 was found, preprocessed floating point"),
        (torch.zeros(1, 1, 64, 64), "1 channels was found, the model reads 3"),
        (torch.zeros(1, 64, 64, 3), "64 channels was found"),
        (torch.full((1, 3, 64, 64), torch.nan), "holds NaN or infinity"),
        (torch.full((1, 3, 64, 64), torch.inf), "holds NaN or infinity"),
        (torch.zeros(1, 3, 64, 64).double(), r"torch\.float64 and the model torch\.float32\. Convert one"),
        (torch.zeros(1, 3, 64, 64, device="meta"), "is on meta and the model on cpu"),
        ([], "empty list"),
        ([torch.zeros(3, 64, 64)], "passed on its own, not in a list"),
        (3, "found int"),
        (np.zeros((64, 64, 3)), "array of float64"),
        ("absent.jpg", "there is no such file"),
    ],
)
def test_images_that_cannot_be_used(images: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        camhook.wrap(jittered(), input_size=SIZE)(images)


# Pictures of results.


def test_upsampled() -> None:
    result = camhook.wrap(jittered(), input_size=(96, 160))(pictures(96, 160), topk=2)
    found = result.upsampled()
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, F.interpolate(result.maps, (96, 160), mode="bilinear", align_corners=False))
    assert torch.as_tensor(result.upsampled((30, 50))).shape == (2, 2, 30, 50)


def test_photos_of_different_sizes() -> None:
    result = camhook.wrap(jittered(), input_size=SIZE)([noise(90, 120), noise(70, 64)], topk=2)
    found = result.upsampled()
    assert isinstance(found, list)
    assert [tuple(one.shape) for one in found] == [(2, 90, 120), (2, 70, 64)]
    assert [result.overlay(index).size for index in range(2)] == [(120, 90), (64, 70)]
    assert [result.masks(index).shape for index in range(2)] == [(90, 120), (70, 64)]
    for index, (height, width) in enumerate([(90, 120), (70, 64)]):
        boxes = result.boxes(index, component="all")
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        assert torch.as_tensor(result[index].upsampled()).shape == (1, 2, height, width)


@pytest.mark.parametrize("name", ["test_resnet", "test_mambaout"])
def test_anatomy_adds_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def listen(photo: Any, terms: Any, total: Any, **rest: Any) -> Image.Image:
        given.update(terms=terms, total=total, **rest)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("camhook.drawing.anatomy.anatomy", listen)
    cam = camhook.wrap(jittered(name), input_size=SIZE)
    cam.anatomy(pictures()[:1], 3, channels=4)
    result = cam(pictures()[:1], 3)
    assert len(given["terms"]) == 5
    assert sum(term.score for term in given["terms"]) + given["offset"] == pytest.approx(
        float(result.logits[0, 3]), abs=1e-4
    )
    assert given["total"].score == pytest.approx(float(result.logits[0, 3]))
    added = np.sum([term.map for term in given["terms"]], axis=0)
    np.testing.assert_allclose(added, given["total"].map, atol=1e-4)
    with pytest.raises(CamhookError, match="channels=0: from 1 to"):
        cam.anatomy(pictures()[:1], channels=0)
    with pytest.raises(ImageError, match="anatomy draws one image; 2 were given"):
        cam.anatomy(pictures())


# Real predictions.


@pytest.fixture(scope="module")
def model() -> Any:
    return demo_model()


@pytest.fixture(scope="module")
def cam(model: Any) -> camhook.CAM:
    return camhook.wrap(model)


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    return [demo_photos()[name] for name in ("chelsea.png", "coffee.png")]


def prepared(model: Any, photos: list[Path]) -> Tensor:
    """The photos through timm's own transform."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return torch.stack([transform(Image.open(photo).convert("RGB")) for photo in photos])


def test_demo_is_complete_and_equals_captum(model: Any, cam: camhook.CAM, photos: list[Path]) -> None:
    images = prepared(model, photos)
    result, every = cam(photos), cam(images, "all")
    assert float((result.completeness_error / result.logits.abs().amax(1, keepdim=True)).max()) < 1e-5
    assert result.exact.all()
    assert every.maps.shape == (2, 1000, 7, 7)
    largest = float(result.maps.abs().max())
    where = result.target[..., None, None].expand(-1, -1, 7, 7)
    assert float((every.maps.gather(1, where) - result.maps).abs().max()) < 1e-5 * largest
    gradcam = LayerGradCam(model, model.bn2).attribute(images, result.target[:, 0], relu_attributions=False)
    assert float((49 * gradcam.detach() - result.maps).abs().max()) < 1e-5 * largest


def test_demo_sees_the_cat(cam: camhook.CAM, photos: list[Path]) -> None:
    result = cam(photos)
    assert result.label(0) in {"tabby", "tiger cat", "Egyptian cat"}
    assert result.label(1) in {"espresso", "cup", "coffee mug"}
    found = result[0].upsampled()
    assert isinstance(found, Tensor)
    height, width = found.shape[2:]
    assert (height, width) == (300, 451)
    row, column = divmod(int(found[0, 0].nan_to_num(-torch.inf).argmax()), width)
    assert width / 4 < column < 3 * width / 4  # the face fills the middle of the photo
    assert row < 3 * height / 4
    ((left, top, right, bottom),) = result.boxes(0)
    assert 0 <= left < column < right <= width
    assert 0 <= top < row < bottom <= height
    assert result.overlay(0).size == (width, height)
    assert torch.isnan(found).any()  # what the crop left out


def test_demo_anatomy(model: Any, cam: camhook.CAM, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def listen(photo: Any, terms: Any, total: Any, **rest: Any) -> Image.Image:
        given.update(photo=photo, terms=terms, total=total, **rest)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("camhook.drawing.anatomy.anatomy", listen)
    cam.anatomy(photos[0], "tabby", channels=5)
    with torch.no_grad():
        features = model.forward_features(prepared(model, photos[:1]))
        weights = model.classifier.weight[281]
        adds = weights * features.mean((2, 3))[0]
        logit = float(model.classifier.bias[281] + adds.sum())
    best = adds.topk(5)
    terms = given["terms"]
    assert [term.label for term in terms] == [f"channel {c}" for c in best.indices.tolist()] + [
        "the other 1275 channels"
    ]
    assert [term.score for term in terms[:5]] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert [term.weight for term in terms[:5]] == pytest.approx(weights[best.indices].tolist(), abs=1e-5)
    assert terms[5].weight is None
    assert sum(term.score for term in terms) + given["offset"] == pytest.approx(logit, abs=1e-4)
    assert given["total"].score == pytest.approx(logit, abs=1e-4)
    assert all(term.map.shape == (300, 451) for term in terms)
    assert given["photo"].size == (451, 300)
    assert Counter(type(term.map) for term in terms) == {np.ndarray: 6}
