"""How each explanation is computed, by Captum or by camhook: subject, images, target and options to maps.

Images (B, C, H, W) are on the model's device and may be changed; target is (B,). Attributions of single pixels are
added up over the colour channels. Captum's own errors pass.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import torch
from captum import attr
from torch import Tensor
from torch.nn import functional as F

from camhook.comparison.subjects import Subject, viewing
from camhook.comparison.superpixels import grid_cells, segment_areas
from camhook.engine.inputs import size_of
from camhook.metrics.controls import gaussian_maps, random_maps


class Attributed(NamedTuple):
    """What a method gives for some images."""

    maps: Tensor
    """(B, H, W), signed, at the size of the images."""
    total: Tensor | None = None
    """(B,): what the map adds up to, where the method claims that this and the offset make the logit."""
    offset: Tensor | None = None
    """(B,): what belongs to no position; for a method with a baseline, the baseline's logit."""
    delta: Tensor | None = None
    """(B,): Captum's own convergence delta."""


def layer_grad_cam(subject: Subject, images: Tensor, target: Tensor) -> Tensor:
    """Return Captum's LayerGradCam (B, h, w), signed, of the channel-first view of the features."""
    size = size_of(images)
    with viewing(subject.scorer, subject.features(images, target), size) as view:
        found: Tensor = attr.LayerGradCam(subject.scorer, view).attribute(images.requires_grad_(), target)
    return found[:, 0].detach()


def _gradient(subject: Subject, images: Tensor, target: Tensor) -> Tensor:
    """Return the target logit's gradient with respect to the images, (B, C, H, W)."""
    found: Tensor = attr.Saliency(subject.scorer).attribute(images.requires_grad_(), target, abs=False)
    return found


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps[:, None].double(), size_of(images), mode="bilinear", align_corners=False)[:, 0]


def cam(subject: Subject, images: Tensor, target: Tensor, contrast: str | None = None) -> Attributed:
    """Return camhook's own map."""
    result = subject.cam(images, target.tolist(), contrast=contrast)
    maps = _enlarged(result.maps[:, 0], images)
    return Attributed(maps) if contrast else Attributed(maps, result.maps[:, 0].mean((1, 2)), result.offset[:, 0])


def cam_rivals(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return camhook's map less the mean of the strongest rivals' maps."""
    return cam(subject, images, target, "rivals")


def grad_cam(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return LayerGradCam, enlarged to the images."""
    return Attributed(_enlarged(layer_grad_cam(subject, images, target), images))


def saliency(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return the absolute gradient."""
    return Attributed(_gradient(subject, images, target).abs().sum(1))


def plain_gradient(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return the gradient, signed."""
    return Attributed(_gradient(subject, images, target).sum(1))


def input_x_gradient(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return input times gradient."""
    return Attributed(attr.InputXGradient(subject.scorer).attribute(images.requires_grad_(), target).sum(1))


def integrated_gradients(subject: Subject, images: Tensor, target: Tensor, n_steps: int) -> Attributed:
    """Return integrated gradients from the baseline."""
    found, delta = attr.IntegratedGradients(subject.scorer).attribute(
        images, subject.reference(images), target, n_steps=n_steps,
        internal_batch_size=subject.batch_size, return_convergence_delta=True,
    )  # fmt: skip
    return _summed(subject, images, target, found, delta)


def deep_lift(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return DeepLift from the baseline."""
    found, delta = attr.DeepLift(subject.scorer).attribute(
        images, subject.reference(images).contiguous(), target, return_convergence_delta=True
    )
    return _summed(subject, images, target, found, delta)


def gradient_shap(subject: Subject, images: Tensor, target: Tensor, n_samples: int, stdevs: float) -> Attributed:
    """Return gradient SHAP, in rounds of so many samples as memory is to hold."""
    total = torch.zeros_like(images)
    for start in range(0, n_samples, subject.batch_size):
        count = min(subject.batch_size, n_samples - start)
        total += count * attr.GradientShap(subject.scorer).attribute(
            images, subject.reference(images).contiguous(), count, stdevs, target
        )
    return _summed(subject, images, target, total / n_samples)


def smooth_grad(subject: Subject, images: Tensor, target: Tensor, n_samples: int, noise: float) -> Attributed:
    """Return the absolute mean gradient of noisy copies."""
    tunnel = attr.NoiseTunnel(attr.Saliency(subject.scorer))
    found = tunnel.attribute(
        images, nt_type="smoothgrad", nt_samples=n_samples, nt_samples_batch_size=subject.batch_size,
        stdevs=noise * float(images.max() - images.min()), target=target, abs=False,
    )  # fmt: skip
    return Attributed(found.abs().sum(1))


def guided_backprop(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return guided backpropagation."""
    return Attributed(attr.GuidedBackprop(subject.scorer).attribute(images.requires_grad_(), target).sum(1))


def guided_grad_cam(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return guided Grad-CAM."""
    with viewing(subject.scorer, subject.features(images, target), size_of(images)) as view:
        guided = attr.GuidedGradCam(subject.scorer, view)
        found = guided.attribute(images.requires_grad_(), target, interpolate_mode="bilinear")
    return Attributed(found.sum(1))


def lrp(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return layer-wise relevance propagation by Captum's default rules."""
    found = attr.LRP(subject.scorer).attribute(images.requires_grad_(), target).sum(1)
    return Attributed(found, found.sum((1, 2)), torch.zeros(len(found)))


def occlusion(subject: Subject, images: Tensor, target: Tensor, stride: int | None) -> Attributed:
    """Return occlusion by windows of the size of a grid's cell."""
    channels, *size = images.shape[1:]
    grid_cells((size[0], size[1]), cells=subject.cells)  # says so if the images are too small
    window = [-(-side // subject.cells) for side in size]
    strides = [stride or max(side // 2, 1) for side in window]
    found = attr.Occlusion(subject.scorer).attribute(
        images, (channels, *window), (channels, *strides), subject.reference(images), target,
        perturbations_per_eval=subject.batch_size,
    )  # fmt: skip
    return Attributed(found[:, 0])


def _by_parts(subject: Subject, images: Tensor, target: Tensor, made: Any, claims: bool, **options: Any) -> Attributed:
    """Explain the parts of an image: each pixel gets its part's value, as it is."""
    parts = subject.parts(images)
    maps = made(subject.scorer).attribute(
        images, baselines=subject.reference(images), target=target, feature_mask=parts[:, None],
        perturbations_per_eval=subject.batch_size, **options,
    )[:, 0]  # fmt: skip
    if not claims:
        return Attributed(maps)
    return Attributed(maps, (maps / segment_areas(parts)).sum((1, 2)), subject.baseline_scores(images, target))


def feature_ablation(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return what the logit loses with each part."""
    return _by_parts(subject, images, target, attr.FeatureAblation, False)


def shapley(subject: Subject, images: Tensor, target: Tensor, n_samples: int) -> Attributed:
    """Return sampled Shapley values of the parts."""
    return _by_parts(subject, images, target, attr.ShapleyValueSampling, True, n_samples=n_samples)


def kernel_shap(subject: Subject, images: Tensor, target: Tensor, n_samples: int) -> Attributed:
    """Return Kernel SHAP of the parts."""
    return _by_parts(subject, images, target, attr.KernelShap, True, n_samples=n_samples)


def lime(subject: Subject, images: Tensor, target: Tensor, n_samples: int) -> Attributed:
    """Return LIME of the parts."""
    return _by_parts(subject, images, target, attr.Lime, False, n_samples=n_samples)


def _summed(subject: Subject, images: Tensor, target: Tensor, found: Tensor, delta: Tensor | None = None) -> Attributed:
    maps = found.double().sum(1)
    return Attributed(maps, maps.sum((1, 2)), subject.baseline_scores(images, target), delta)


def random(subject: Subject, images: Tensor, target: Tensor, grid: tuple[int, int] | None = None) -> Attributed:
    """Return noise that hangs on each bit of an image, so that it is another for the next image, whatever the batch."""
    size = size_of(images)
    seeds = [zlib.crc32(image.detach().cpu().numpy().tobytes()) + subject.seed for image in images]
    return Attributed(torch.cat([random_maps(1, size, grid=grid, seed=seed) for seed in seeds]))


def random_coarse(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return noise on a grid as coarse as camhook's map."""
    grid = subject.cam.reader.plan_for(size_of(images)).grid_size
    return random(subject, images, target, grid)


def gaussian(subject: Subject, images: Tensor, target: Tensor) -> Attributed:
    """Return a centred Gaussian."""
    return Attributed(gaussian_maps(len(images), size_of(images)))
