"""Attribution methods as functions of a subject, images and a target: Captum's, camhook's own, and controls.

Each takes a subject, images (B, C, H, W) on the model's device, which it may change, a target (B,), and options of its
own; `camhook.comparison.methods.METHODS` says what it computes. Captum's layer methods get a channel-first view of the
features: they take dimension 1 for channels, which is wrong for (B, h, w, C) and for tokens and raises no error.
Attributions of pixels are summed over colour channels. Captum's own errors pass.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from captum import attr
from torch import Tensor
from torch.nn import functional as F

from camhook.comparison.segments import grid_cells, segment_areas
from camhook.comparison.subjects import Subject, channel_first
from camhook.engine.inputs import size_of
from camhook.metrics import gaussian_maps, random_maps

__all__ = ["Attribution", "gradient", "layer_grad_cam"]


@dataclass(frozen=True)
class Attribution:
    """Attribution maps of B images; a method by which total and offset add up to the logit returns these, too."""

    maps: Tensor  # (B, H, W), signed, at the images' size
    total: Tensor | None = None  # (B,), sum of the attributions
    offset: Tensor | None = None  # (B,), what is attributed to no position; with a baseline, the baseline's logit
    delta: Tensor | None = None  # (B,), Captum's convergence delta


def gradient(subject: Subject, images: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of the target's logit with respect to the images, (B, C, H, W)."""
    found: Tensor = attr.Saliency(subject.classifier).attribute(images.requires_grad_(), target, abs=False)
    return found


def layer_grad_cam(subject: Subject, images: Tensor, target: Tensor) -> Tensor:
    """Return Captum's LayerGradCam (B, h, w), signed, of the channel-first view of the features."""
    with channel_first(subject.classifier, subject.features(images, target), size_of(images)) as view:
        found: Tensor = attr.LayerGradCam(subject.classifier, view).attribute(images.requires_grad_(), target)
    return found[:, 0].detach()


def cam(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    found = subject.explain(images, target)
    maps = found.maps[:, 0]
    return Attribution(_upsampled(maps, images), total=maps.mean((1, 2)), offset=found.offset[:, 0])


def cam_rivals(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    return Attribution(_upsampled(subject.explain(images, target, "rivals").maps[:, 0], images))


def grad_cam(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    return Attribution(_upsampled(layer_grad_cam(subject, images, target), images))


def saliency(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    return Attribution(gradient(subject, images, target).abs().sum(1))


def input_x_gradient(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    return Attribution(attr.InputXGradient(subject.classifier).attribute(images.requires_grad_(), target).sum(1))


def integrated_gradients(subject: Subject, images: Tensor, target: Tensor, n_steps: int = 32) -> Attribution:
    found, delta = attr.IntegratedGradients(subject.classifier).attribute(
        images, subject.baseline(images), target, n_steps=n_steps,
        internal_batch_size=subject.batch_size, return_convergence_delta=True,
    )  # fmt: skip
    return _with_baseline(subject, images, target, found.double().sum(1), delta=delta)


def deep_lift(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    found, delta = attr.DeepLift(subject.classifier).attribute(
        images, subject.baseline(images).contiguous(), target, return_convergence_delta=True
    )
    return _with_baseline(subject, images, target, found.double().sum(1), delta=delta)


def gradient_shap(
    subject: Subject, images: Tensor, target: Tensor, n_samples: int = 16, stdevs: float = 0.09
) -> Attribution:
    total = torch.zeros_like(images)
    for start in range(0, n_samples, subject.batch_size):
        count = min(subject.batch_size, n_samples - start)
        total += count * attr.GradientShap(subject.classifier).attribute(
            images, subject.baseline(images).contiguous(), count, stdevs, target
        )
    return _with_baseline(subject, images, target, (total / n_samples).double().sum(1))


def smooth_grad(
    subject: Subject, images: Tensor, target: Tensor, n_samples: int = 16, noise: float = 0.15
) -> Attribution:
    found = attr.NoiseTunnel(attr.Saliency(subject.classifier)).attribute(
        images, nt_type="smoothgrad", nt_samples=n_samples, nt_samples_batch_size=subject.batch_size,
        stdevs=noise * float(images.max() - images.min()), target=target, abs=False,
    )  # fmt: skip
    return Attribution(found.abs().sum(1))


def guided_backprop(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    return Attribution(attr.GuidedBackprop(subject.classifier).attribute(images.requires_grad_(), target).sum(1))


def guided_grad_cam(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    with channel_first(subject.classifier, subject.features(images, target), size_of(images)) as view:
        guided = attr.GuidedGradCam(subject.classifier, view)
        found = guided.attribute(images.requires_grad_(), target, interpolate_mode="bilinear")
    return Attribution(found.sum(1))


def lrp(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    found = attr.LRP(subject.classifier).attribute(images.requires_grad_(), target).sum(1)
    return Attribution(found, total=found.sum((1, 2)), offset=torch.zeros(len(found)))


def occlusion(subject: Subject, images: Tensor, target: Tensor, stride: int | None = None) -> Attribution:
    channels, *size = images.shape[1:]
    grid_cells((size[0], size[1]), cells=subject.cells)  # raises if the images are too small
    window = [-(-side // subject.cells) for side in size]
    strides = [stride or max(side // 2, 1) for side in window]
    found = attr.Occlusion(subject.classifier).attribute(
        images, (channels, *window), (channels, *strides), subject.baseline(images), target,
        perturbations_per_eval=subject.batch_size,
    )  # fmt: skip
    return Attribution(found[:, 0])


def feature_ablation(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    return Attribution(_by_segment(attr.FeatureAblation, subject, images, target))


def lime(subject: Subject, images: Tensor, target: Tensor, n_samples: int = 128) -> Attribution:
    return Attribution(_by_segment(attr.Lime, subject, images, target, n_samples=n_samples))


def kernel_shap(subject: Subject, images: Tensor, target: Tensor, n_samples: int = 128) -> Attribution:
    maps = _by_segment(attr.KernelShap, subject, images, target, n_samples=n_samples)
    return _with_baseline(subject, images, target, maps, areas=segment_areas(subject.feature_mask(images)))


def shapley_value_sampling(subject: Subject, images: Tensor, target: Tensor, n_samples: int = 4) -> Attribution:
    maps = _by_segment(attr.ShapleyValueSampling, subject, images, target, n_samples=n_samples)
    return _with_baseline(subject, images, target, maps, areas=segment_areas(subject.feature_mask(images)))


def random(
    subject: Subject, images: Tensor, target: Tensor, *, grid_size: tuple[int, int] | None = None
) -> Attribution:
    # Seeded by each image's content, so that the noise of an image does not depend on its batch.
    seeds = [zlib.crc32(image.detach().cpu().numpy().tobytes()) + subject.seed for image in images]
    return Attribution(torch.cat([random_maps(1, size_of(images), grid=grid_size, seed=seed) for seed in seeds]))


def random_coarse(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    return random(subject, images, target, grid_size=subject.grid_size(size_of(images)))


def gaussian(subject: Subject, images: Tensor, target: Tensor) -> Attribution:
    return Attribution(gaussian_maps(len(images), size_of(images)))


def _upsampled(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps[:, None].double(), size_of(images), mode="bilinear", align_corners=False)[:, 0]


def _with_baseline(
    subject: Subject,
    images: Tensor,
    target: Tensor,
    maps: Tensor,
    *,
    areas: Tensor | float = 1.0,
    delta: Tensor | None = None,
) -> Attribution:
    """Add the total and the baseline's logit, which add up to the image's logit."""
    return Attribution(maps, (maps / areas).sum((1, 2)), subject.baseline_logits(images, target), delta)


def _by_segment(captum: Any, subject: Subject, images: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Run a Captum method that removes segments: each pixel gets the attribution of its whole segment, (B, H, W)."""
    found: Tensor = captum(subject.classifier).attribute(
        images, baselines=subject.baseline(images), target=target, feature_mask=subject.feature_mask(images)[:, None],
        perturbations_per_eval=subject.batch_size, **options,
    )[:, 0]  # fmt: skip
    return found
