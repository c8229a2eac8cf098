"""Registry of the attribution methods: title, definition and source of each, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from camhook.comparison import captum_methods as run
from camhook.comparison.captum_methods import Attribution
from camhook.errors import CamhookError
from camhook.suggestions import hint

__all__ = ["METHODS", "Method", "chosen_methods", "method"]


@dataclass(frozen=True)
class Method:
    """An attribution method."""

    name: str
    title: str  # in Captum or in the literature
    run: Callable[..., Attribution]  # of subject, images (B, C, H, W), target (B,), and options with a default
    definition: str
    source: str
    kind: Literal["camhook", "captum", "control"] = "captum"
    one_by_one: bool = False  # it runs the model many times per image, and is given one image at a time

    @property
    def is_control(self) -> bool:
        """Whether it does not depend on the model."""
        return self.kind == "control"

    @property
    def options(self) -> dict[str, Any]:
        """The options it takes, with their defaults."""
        parameters = inspect.signature(self.run).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY}


def method(name: str) -> Method:
    """Return a method by name.

    Raises
    ------
    CamhookError
        No method has the name; similar names are listed.

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


def chosen_methods(names: str | Sequence[str] | None) -> list[str]:
    """Return names of methods, controls last: those given, ``"all"``, or for None all but the two slowest.

    Examples
    --------
    >>> chosen_methods(["saliency", "cam"])
    ['saliency', 'cam', 'random', 'random_coarse', 'gaussian']
    """
    if names is None:
        names = [name for name in METHODS if name not in ("lime", "shapley_value_sampling")]
    elif isinstance(names, str):
        names = list(METHODS) if names == "all" else [names]
    wanted = [method(name).name for name in dict.fromkeys(names)]
    return [n for n in wanted if not METHODS[n].is_control] + [n for n in METHODS if METHODS[n].is_control]


_ALL = (
    Method("cam", "camhook", run.cam,
           "Contribution of each position to the logit: the mean of the map plus the offset is the logit.",
           "Zhou et al. 2016, arXiv 1512.04150, extended to any head", kind="camhook"),
    Method("cam_rivals", "camhook against rivals", run.cam_rivals,
           "camhook's map minus the mean of those of the ten other classes with the highest logits.",
           "camhook", kind="camhook"),
    Method("layer_grad_cam", "LayerGradCam", run.grad_cam,
           "Feature maps weighted by the mean gradient of the logit, channel first, without ReLU.",
           "Selvaraju et al. 2017, arXiv 1610.02391"),
    Method("saliency", "Saliency", run.saliency, "Absolute gradient of the logit.",
           "Simonyan et al. 2014, arXiv 1312.6034"),
    Method("input_x_gradient", "InputXGradient", run.input_x_gradient, "Input times gradient of the logit.",
           "Shrikumar et al. 2016, arXiv 1605.01713"),
    Method("integrated_gradients", "IntegratedGradients", run.integrated_gradients,
           "Difference from the baseline times the mean gradient on the straight path from it.",
           "Sundararajan et al. 2017, arXiv 1703.01365", one_by_one=True),
    Method("deep_lift", "DeepLift", run.deep_lift,
           "Difference from the baseline, propagated by each activation's multiplier (rescale rule).",
           "Shrikumar et al. 2017, arXiv 1704.02685"),
    Method("gradient_shap", "GradientShap", run.gradient_shap,
           "Mean gradient at random points between the baseline and noisy copies, times the difference.",
           "Lundberg and Lee 2017, arXiv 1705.07874", one_by_one=True),
    Method("guided_backprop", "GuidedBackprop", run.guided_backprop,
           "Gradient with its negative part set to zero at each nn.ReLU.", "Springenberg et al. 2015, arXiv 1412.6806"),
    Method("guided_grad_cam", "GuidedGradCam", run.guided_grad_cam,
           "Guided backpropagation times the positive part of LayerGradCam, upsampled.",
           "Selvaraju et al. 2017, arXiv 1610.02391"),
    Method("smooth_grad", "NoiseTunnel (SmoothGrad)", run.smooth_grad,
           "Absolute mean gradient over noisy copies; noise is a share of the image's range.",
           "Smilkov et al. 2017, arXiv 1706.03825", one_by_one=True),
    Method("lrp", "LRP", run.lrp,
           "Layer-wise relevance propagation: the logit, passed back layer by layer in proportion to contributions.",
           "Bach et al. 2015, PLOS ONE 10(7)"),
    Method("occlusion", "Occlusion", run.occlusion,
           "Mean drop of the logit under a sliding window of a grid cell's size.",
           "Zeiler and Fergus 2014, arXiv 1311.2901", one_by_one=True),
    Method("feature_ablation", "FeatureAblation", run.feature_ablation, "Drop of the logit when a segment is removed.",
           "Captum", one_by_one=True),
    Method("kernel_shap", "KernelShap", run.kernel_shap,
           "Shapley values of segments, by weighted linear regression on random subsets.",
           "Lundberg and Lee 2017, arXiv 1705.07874", one_by_one=True),
    Method("lime", "Lime", run.lime, "Lasso on random subsets of segments, weighted by similarity to the image.",
           "Ribeiro et al. 2016, arXiv 1602.04938", one_by_one=True),
    Method("shapley_value_sampling", "ShapleyValueSampling", run.shapley_value_sampling,
           "Shapley values of segments: mean gain over random orders of adding them.",
           "Strumbelj and Kononenko 2010, JMLR 11", one_by_one=True),
    Method("random", "random (control)", run.random, "Independent noise for each pixel.", "control", kind="control"),
    Method("random_coarse", "random, coarse (control)", run.random_coarse,
           "Noise on a grid as coarse as camhook's map: the fair control for coarse maps.", "control", kind="control"),
    Method("gaussian", "centred Gaussian (control)", run.gaussian,
           "The same for each image: the photographer's centre bias.", "control", kind="control"),
)  # fmt: skip

METHODS: Mapping[str, Method] = MappingProxyType({each.name: each for each in _ALL})
"""All methods by name, in the order of reports."""
