"""Captum's methods in their own right, on a copy of the model, and its layer methods on channel-first features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
from captum import attr
from side_effects import lived_in, unchanged
from torch import Tensor, nn
from torch.nn import functional as F

import camhook
from camhook.comparison.attributions import attribute, notes
from camhook.comparison.baselines import baseline_function
from camhook.comparison.captum_methods import layer_grad_cam
from camhook.comparison.methods import METHODS, method
from camhook.comparison.segments import grid_cells, segment_areas, superpixels
from camhook.comparison.subjects import Subject
from camhook.errors import CamhookError, ImageError
from camhook.metrics import blurred

SIZE, CLASSES = 64, 7
_SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4, "img_size": SIZE}
_VIT = {"img_size": SIZE, "depth": 3}


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name: str = "test_resnet", **options: Any) -> Any:
    """A seeded model in float64, none of whose parameters is zero."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pictures(count: int = 2, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def subject(model: nn.Module, **options: Any) -> Subject:
    return Subject(camhook.wrap(model, input_size=(SIZE, SIZE)), **options)


TARGET = torch.tensor([3, 5])


# Layer methods


def grad_cam_by_hand(
    model: nn.Module, layer: nn.Module, images: Tensor, channel_first: Callable[[Tensor], Tensor]
) -> Tensor:
    """Selvaraju et al. 2017 without the ReLU: mean gradient over positions times features, summed over channels."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    score = model(images).gather(1, TARGET[:, None]).sum()
    handle.remove()
    gradient = channel_first(torch.autograd.grad(score, kept[0])[0])
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * channel_first(kept[0])).sum(1).detach()


def tokens(value: Tensor) -> Tensor:
    grid = SIZE // 16
    return value[:, 1:].transpose(1, 2).reshape(len(value), -1, grid, grid)


def as_picture(value: Tensor) -> Tensor:
    """Return what a layer method gave as (B, 1, rows, columns), whatever it is."""
    return value.reshape(len(value), 1, -1, value.shape[-1])


LAYERS: dict[str, tuple[str, dict[str, Any], str, Callable[[Tensor], Tensor]]] = {
    "swin": ("swin_tiny_patch4_window7_224", _SWIN, "norm", lambda value: value.permute(0, 3, 1, 2)),
    "vit, mean of patches": ("test_vit", _VIT | {"global_pool": "avg"}, "norm", tokens),
    "vit, class token": ("test_vit", _VIT, "blocks.2.norm1", tokens),
    "resnet": ("test_resnet", {}, "layer4", lambda value: value),
}


@pytest.mark.parametrize("case", LAYERS)
def test_layer_grad_cam_is_right_in_any_layout_and_plain_captum_is_not(case: str) -> None:
    name, options, layer, channel_first = LAYERS[case]
    model, images = made(name, **options), pictures()
    seen = subject(model)
    assert str(seen.features(images, TARGET).point) == layer
    found = layer_grad_cam(seen, images.clone(), TARGET)
    expected = grad_cam_by_hand(model, model.get_submodule(layer), images, channel_first)
    assert expected.abs().max() > 1e-6
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    plain = attr.LayerGradCam(model, model.get_submodule(layer)).attribute(images, TARGET).detach()[:, 0]
    if case == "resnet":
        torch.testing.assert_close(plain, expected, rtol=1e-10, atol=1e-12)
    else:  # it gives numbers without a word: channels and positions are mixed up
        assert plain.shape != expected.shape
        # Nor is it the same picture once it is drawn, as its users draw it, at the size of the image.
        ours, theirs = (F.interpolate(as_picture(x), (SIZE, SIZE), mode="bilinear") for x in (expected, plain))
        likeness = F.cosine_similarity((ours - ours.mean()).flatten(1), (theirs - theirs.mean()).flatten(1))
        assert (likeness.abs() < 0.7).all(), likeness


def test_layer_grad_cam_is_cam_where_the_head_is_linear() -> None:
    model, images = made(), pictures()
    found = layer_grad_cam(subject(model), images.clone(), TARGET)
    result = camhook.wrap(model)(images, TARGET)
    torch.testing.assert_close(found * found[0].numel(), result.maps[:, 0], rtol=1e-9, atol=1e-9)


def test_layer_methods_meet_an_activation_that_works_in_place() -> None:
    model = made("densenet121", growth_rate=4, block_config=(1, 1))
    seen, images = subject(model), pictures()
    for name in ("layer_grad_cam", "guided_grad_cam"):
        assert attribute(seen, name, images, TARGET).maps.abs().max() > 0


# Every method


@pytest.mark.parametrize("name", METHODS)
def test_each_method_gives_one_map_an_image_whatever_the_batch(name: str) -> None:
    seen, images = subject(made(), cells=4), pictures()
    options = {"n_samples": 4} if "n_samples" in METHODS[name].options else {}
    if name == "lrp":  # timm's average pool and batch norm with activation are unknown to Captum's rules
        with pytest.raises(TypeError, match="no rule defined"):
            attribute(seen, name, images, TARGET)
        return
    both = attribute(seen, name, images, TARGET, options=options)
    assert both.maps.shape == (2, SIZE, SIZE)
    assert both.maps.dtype == torch.float64
    if "n_samples" not in METHODS[name].options:  # what is drawn for the second image follows the first
        alone = attribute(seen, name, images[1:], TARGET[1:], options=options)
        torch.testing.assert_close(alone.maps[0], both.maps[1], rtol=1e-6, atol=1e-9)
    again = attribute(seen, name, images, TARGET, options=options)
    assert torch.equal(again.maps, both.maps)


def test_lrp_where_it_applies() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(SIZE), _Squeezed()).double().eval()
    weights, images = {name: value.clone() for name, value in model.state_dict().items()}, pictures()
    found = attribute(subject(model, baseline=0.0), "lrp", images, TARGET)
    expected = attr.LRP(model).attribute(images.clone().requires_grad_(), TARGET).sum(1).detach()
    torch.testing.assert_close(found.maps, expected)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


class _Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = self.linear(value[:, :, 0, 0])
        return result


def test_what_captum_is_given() -> None:
    model, images = made(), pictures()
    black = baseline_function("black", camhook.wrap(model).preprocessing)(images)
    seen = subject(model)
    found = attribute(seen, "integrated_gradients", images, TARGET, options={"n_steps": 8})
    expected = attr.IntegratedGradients(model).attribute(images, black, TARGET, n_steps=8).sum(1)
    torch.testing.assert_close(found.maps, expected)
    ablated = attribute(seen, "feature_ablation", images, TARGET).maps
    parts = grid_cells((SIZE, SIZE))[:, None]
    expected = attr.FeatureAblation(model).attribute(images, black, TARGET, feature_mask=parts)[:, 0]
    torch.testing.assert_close(ablated, expected)
    gradient = torch.autograd.grad(model(x := images.clone().requires_grad_()).gather(1, TARGET[:, None]).sum(), x)[0]
    torch.testing.assert_close(attribute(seen, "saliency", images, TARGET).maps, gradient.abs().sum(1))
    product = attribute(seen, "input_x_gradient", images, TARGET).maps
    torch.testing.assert_close(product, (gradient * images).sum(1))


@pytest.mark.parametrize("segments", ["grid", "superpixels"])
@pytest.mark.parametrize("name", ["cam", "integrated_gradients", "shapley_value_sampling", "kernel_shap"])
def test_what_claims_to_add_up_adds_up(name: str, segments: Any) -> None:
    seen, images = subject(made(), cells=3, segments=segments), blurred(pictures(), kernel_size=15, sigma=5)
    options = {"n_steps": 64} if name == "integrated_gradients" else {}
    found = attribute(seen, name, images, TARGET, options=options)
    assert found.total is not None
    assert found.offset is not None
    logit = seen.logits(images).gather(1, TARGET[:, None])[:, 0]
    tolerance = 2e-2 if name == "integrated_gradients" else 1e-4
    torch.testing.assert_close(found.total + found.offset, logit, rtol=0, atol=tolerance * float(logit.abs().max()))
    if name != "cam":
        assert found.offset.allclose(seen.logits(seen.baseline(images)).gather(1, TARGET[:, None])[:, 0])


# What does nothing, or cannot be done


def test_says_where_guided_backpropagation_is_the_plain_gradient() -> None:
    images = pictures()
    told = {}
    for model in ("test_resnet", "test_convnext"):
        seen = subject(made(model))
        for name in ("guided_backprop", "guided_grad_cam", "deep_lift"):
            found = attribute(seen, name, images, TARGET)
            told[model, name] = " ".join(notes(seen, name, images, TARGET, found))
    assert "plain gradient" in told["test_convnext", "guided_backprop"]
    assert "GELU" in told["test_convnext", "guided_backprop"]
    assert "guided backpropagation equals the plain gradient" in told["test_convnext", "guided_grad_cam"]
    assert "plain gradient" not in told["test_resnet", "guided_backprop"]
    assert "no rule for" in told["test_convnext", "deep_lift"]
    assert "no rule for" not in told["test_resnet", "deep_lift"]
    assert all("convergence delta" in told[model, "deep_lift"] for model in ("test_resnet", "test_convnext"))


def test_in_place_activations_are_taken_and_the_model_keeps_them() -> None:
    model = made()
    in_place = [module for module in model.modules() if getattr(module, "inplace", False)]
    assert in_place
    for name in ("deep_lift", "guided_backprop"):
        assert attribute(subject(model), name, pictures(), TARGET).maps.abs().max() > 0
    assert all(module.inplace for module in in_place)


def test_nan_is_an_error() -> None:
    model = made()
    with torch.no_grad():
        model.fc.weight[3].fill_(float("nan"))
    with pytest.raises(CamhookError, match="NaN"):
        attribute(subject(model, baseline=0.0), "saliency", pictures(), TARGET)


@pytest.mark.parametrize(
    "name", ["layer_grad_cam", "deep_lift", "guided_grad_cam", "lrp", "kernel_shap", "smooth_grad"]
)
def test_nothing_of_the_model_changes_even_where_a_method_fails(name: str) -> None:
    model, log = lived_in()
    cam = camhook.wrap(model)
    images = pictures().float()
    log.clear()
    np_state = np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    with unchanged(model):
        seen = Subject(cam)
        options = {"n_samples": 2} if "n_samples" in METHODS[name].options else {}
        try:
            attribute(seen, name, images, TARGET, options=options)
        except TypeError:
            assert name == "lrp"
        else:
            assert name != "lrp"
    assert log == []  # the user's hooks saw nothing of it
    assert (np.random.get_state()[1] == np_state).all()  # type: ignore[index] # noqa: NPY002


# Baselines and parts


def test_baselines() -> None:
    cam, images = camhook.wrap(made()), pictures()
    black = baseline_function("black", cam.preprocessing)(images)
    assert torch.allclose(black, torch.full_like(black, -1))  # (0 - 0.5) / 0.5
    assert torch.equal(baseline_function("zero", cam.preprocessing)(images), torch.zeros_like(images))
    mean = baseline_function("mean", cam.preprocessing)(images)
    torch.testing.assert_close(mean[0, :, 0, 0], images[0].mean((1, 2)))
    assert mean.shape == images.shape
    torch.testing.assert_close(
        baseline_function("blur", cam.preprocessing)(images), blurred(images, kernel_size=19, sigma=SIZE / 22)
    )
    colour = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    assert baseline_function(colour, cam.preprocessing)(images)[1, :, 5, 7].tolist() == [1, 2, 3]
    assert baseline_function(0.5, cam.preprocessing)(images).unique().tolist() == [0.5]


def test_bad_baselines() -> None:
    cam = camhook.wrap(made())
    with pytest.raises(CamhookError, match="Did you mean black"):
        baseline_function("blak", cam.preprocessing)
    with pytest.raises(ImageError, match=r"shape \(5,\)"):
        baseline_function(torch.zeros(5), cam.preprocessing)(pictures())
    unknown = camhook.wrap(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), input_size=(8, 8)
    )
    with pytest.raises(CamhookError, match="What black is"):
        baseline_function("black", unknown.preprocessing)
    assert baseline_function("zero", unknown.preprocessing)(pictures()).abs().max() == 0


def test_parts() -> None:
    assert grid_cells((6, 9), cells=3).unique(return_counts=True)[1].tolist() == [6] * 9
    assert grid_cells((7, 7), cells=3).unique().tolist() == list(range(9))
    found = superpixels(blurred(pictures(), kernel_size=15, sigma=5), count=9)
    assert found.shape == (2, SIZE, SIZE)
    for each in found:
        assert each.unique().tolist() == list(range(int(each.max()) + 1))
    assert segment_areas(torch.tensor([[[0, 2, 2]]])).tolist() == [[[1, 2, 2]]]
    with pytest.raises(CamhookError, match="grid of 7 x 7 cells for images of 5 x 9 pixels"):
        grid_cells((5, 9))


# Names


def test_unknown_names_are_told_with_near_ones() -> None:
    with pytest.raises(CamhookError, match="Did you mean saliency"):
        method("saliencey")
    with pytest.raises(CamhookError, match="Did you mean integrated_gradients"):
        method("IntegratedGradients")
    with pytest.raises(CamhookError, match="There are cam,"):
        method("qqqq")
    with pytest.raises(CamhookError, match="no option 'steps'; it takes n_steps"):
        attribute(subject(made()), "integrated_gradients", pictures(), TARGET, options={"steps": 3})
