"""Explanations by name: camhook's own, Captum's, and controls that know nothing, of one model as images to maps.

Captum gets a copy of the model, without the user's hooks, and its layer methods get the channel-first view of the
features: they take dimension 1 for channels, which is wrong on (B, h, w, C) and on tokens, without an error.
Attributions of single pixels are added up over the colour channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camhook.comparison import captum_methods as runs
from camhook.comparison.captum_methods import Attributed
from camhook.comparison.subjects import Subject
from camhook.errors import CamhookError
from camhook.suggestions import hint

__all__ = ["METHODS", "Attributed", "Method", "attribute", "method"]


@dataclass(frozen=True)
class Method:
    """A way of explaining.

    Attributes
    ----------
    name, title
        What `compare` calls it, and its name in Captum or in the literature.
    run
        Subject, images (B, C, H, W), target (B,) and options to `Attributed`.
    definition, source
        For a table's reader.
    options
        The options it takes, with their defaults.
    one_by_one
        It evaluates the model many times an image, so that it is given images one at a time.
    is_control
        It knows nothing of the model.
    """

    name: str
    title: str
    run: Callable[..., Attributed]
    definition: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    one_by_one: bool = False
    is_control: bool = False

    @property
    def is_captums(self) -> bool:
        """Whether Captum runs it; else it is camhook's own."""
        return not self.is_control and self.name not in ("cam", "cam_rivals")


def method(name: str) -> Method:
    """Look a method up.

    Raises
    ------
    CamhookError
        No method has the name; near ones are listed.

    Examples
    --------
    >>> method("saliency").title
    'Saliency'
    >>> method("grad_cam")
    Traceback (most recent call last):
    camhook.errors.CamhookError: No method is named 'grad_cam'. Did you mean layer_grad_cam, guided_grad_cam?
    """
    if name in METHODS:
        return METHODS[name]
    for each in METHODS.values():
        if str(name).strip().lower() == each.title.lower():
            raise CamhookError(f"No method is named {name!r}. Did you mean {each.name}?")
    raise CamhookError(f"No method is named {name!r}. {hint(str(name), METHODS)}")


def attribute(
    subject: Subject,
    name: str,
    images: Tensor,
    target: Tensor,
    *,
    options: Mapping[str, Any] | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> Attributed:
    """Explain images by one method, a bounded number at a time. The random state stays as it was.

    Parameters
    ----------
    subject
        The model.
    name
        One of `METHODS`.
    images, target
        (B, C, H, W) as the model takes them, on its device, and the class to explain, (B,).
    options
        In place of the method's defaults.
    done
        Told how many images were done, every time.

    Raises
    ------
    CamhookError
        There is no such method, it takes no such option, or it gave NaN or infinity. Captum's own errors pass.
    """
    chosen = method(name)
    if unknown := set(options or {}) - set(chosen.options):
        takes = f"it takes {', '.join(chosen.options)}" if chosen.options else "it takes none"
        raise CamhookError(f"The method {name!r} has no option {min(unknown)!r}; {takes}.")
    size = 1 if chosen.one_by_one else subject.batch_size
    found = []
    with _seeded(subject.seed, images.device), torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum tells of every hook it sets
        for part, classes in zip(images.detach().split(size), target.split(size), strict=True):
            given = chosen.run(subject, part.clone(), classes, **{**chosen.options, **(options or {})})
            found.append(Attributed(*(None if x is None else x.detach().double().cpu() for x in given)))  # type: ignore[arg-type]
            done(len(part))
    joined = [None if parts[0] is None else torch.cat(parts) for parts in zip(*found, strict=True)]
    whole = Attributed(*joined)  # type: ignore[arg-type]
    if not bool(torch.isfinite(whole.maps).all()):
        raise CamhookError("It gave NaN or infinity.")
    return whole


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Make what is drawn in the block the same every time, and leave all generators as they were."""
    before = np.random.get_state()  # noqa: NPY002  (Captum draws from it)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002


_ALL = (
    Method("cam", "camhook", runs.cam,
           "What each position adds to the logit; the mean of the map and the offset are the logit.",
           "Zhou et al. 2016, arXiv 1512.04150, extended to any head"),
    Method("cam_rivals", "camhook against rivals", runs.cam_rivals,
           "camhook's map less the mean of those of the ten strongest rival classes.", "camhook"),
    Method("layer_grad_cam", "LayerGradCam", runs.grad_cam,
           "Features, each weighted by the mean gradient of the logit, channel first; signed.",
           "Selvaraju et al. 2017, arXiv 1610.02391"),
    Method("saliency", "Saliency", runs.saliency, "Absolute gradient of the logit.",
           "Simonyan et al. 2014, arXiv 1312.6034"),
    Method("input_x_gradient", "InputXGradient", runs.input_x_gradient, "Input times gradient of the logit.",
           "Shrikumar et al. 2016, arXiv 1605.01713"),
    Method("integrated_gradients", "IntegratedGradients", runs.integrated_gradients,
           "Difference from the baseline times the mean gradient on the straight way from it.",
           "Sundararajan et al. 2017, arXiv 1703.01365", {"n_steps": 32}, one_by_one=True),
    Method("deep_lift", "DeepLift", runs.deep_lift,
           "Difference from the baseline, passed on by each activation's own difference.",
           "Shrikumar et al. 2017, arXiv 1704.02685"),
    Method("gradient_shap", "GradientShap", runs.gradient_shap,
           "Mean gradient at random points on the way from the baseline to noisy copies, times the difference.",
           "Lundberg and Lee 2017, arXiv 1705.07874", {"n_samples": 16, "stdevs": 0.09}, one_by_one=True),
    Method("guided_backprop", "GuidedBackprop", runs.guided_backprop,
           "Gradient with its negative part cut at each nn.ReLU.", "Springenberg et al. 2015, arXiv 1412.6806"),
    Method("guided_grad_cam", "GuidedGradCam", runs.guided_grad_cam,
           "Guided backpropagation times the positive part of LayerGradCam, enlarged.",
           "Selvaraju et al. 2017, arXiv 1610.02391"),
    Method("smooth_grad", "NoiseTunnel (SmoothGrad)", runs.smooth_grad,
           "Absolute mean gradient over noisy copies; noise is a share of the image's range.",
           "Smilkov et al. 2017, arXiv 1706.03825", {"n_samples": 16, "noise": 0.15}, one_by_one=True),
    Method("lrp", "LRP", runs.lrp, "The logit, handed down layer by layer in the proportions of what was added up.",
           "Bach et al. 2015, PLOS ONE 10(7)"),
    Method("occlusion", "Occlusion", runs.occlusion,
           "What the logit loses, on average, with a sliding window of a grid cell's size.",
           "Zeiler and Fergus 2014, arXiv 1311.2901", {"stride": None}, one_by_one=True),
    Method("feature_ablation", "FeatureAblation", runs.feature_ablation, "What the logit loses with each part.",
           "Captum", one_by_one=True),
    Method("kernel_shap", "KernelShap", runs.kernel_shap,
           "Shapley values of the parts, by weighted linear regression on random subsets.",
           "Lundberg and Lee 2017, arXiv 1705.07874", {"n_samples": 128}, one_by_one=True),
    Method("lime", "Lime", runs.lime, "Lasso on random subsets of the parts, weighted by their likeness to the image.",
           "Ribeiro et al. 2016, arXiv 1602.04938", {"n_samples": 128}, one_by_one=True),
    Method("shapley_value_sampling", "ShapleyValueSampling", runs.shapley,
           "Mean gain of each part over random orders of adding them.",
           "Strumbelj and Kononenko 2010, JMLR 11", {"n_samples": 4}, one_by_one=True),
    Method("random", "random (control)", runs.random, "Noise, each pixel for itself.", "control", is_control=True),
    Method("random_coarse", "random, coarse (control)", runs.random_coarse,
           "Noise on a grid as coarse as camhook's map, the fair control for coarse maps.", "control", is_control=True),
    Method("gaussian", "centred Gaussian (control)", runs.gaussian,
           "The same for each image: photographers put things in the middle.", "control", is_control=True),
)  # fmt: skip

METHODS: Mapping[str, Method] = MappingProxyType({each.name: each for each in _ALL})
"""All methods by name, in the order of a report."""
