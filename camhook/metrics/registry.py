"""Registry of the metrics: arguments, direction, definition and source of each, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor

from camhook.errors import CamhookError
from camhook.metrics import faithfulness, imputation, localisation, perturbation, robustness, sanity, wsol
from camhook.suggestions import hint

__all__ = ["METRICS", "Metric", "metric"]


@dataclass(frozen=True)
class Metric:
    """A metric with its description.

    Calling it with a mapping of arguments passes on those that it needs; options follow:
    ``metric("deletion")({"maps": maps, "images": images, "target": target, "model": model, "boxes": None}, steps=28)``.
    """

    name: str
    function: Callable[..., Tensor]
    higher_is_better: bool
    needs: tuple[str, ...]  # required arguments; "boxes|masks" is the first of the two that is given
    definition: str
    source: str
    per_image: bool = True  # it returns (B,) values, else one for all images together

    def __call__(self, inputs: Mapping[str, Any], **options: Any) -> Tensor:
        """Return (B,) values, or () if not ``per_image``.

        Raises
        ------
        CamhookError
            A required argument is missing, or the metric itself raises one.
        """
        if missing := self.missing(inputs):
            given = ", ".join(name for name, value in inputs.items() if value is not None) or "nothing"
            raise CamhookError(
                f"The metric {self.name!r} needs {missing}, found {given}. Pass {missing}, or leave the metric out."
            )
        names = [next(name for name in need.split("|") if inputs.get(name) is not None) for need in self.needs]
        return self.function(**{name: inputs[name] for name in names}, **options)

    def missing(self, inputs: Mapping[str, Any]) -> str:
        """Return the first required argument that is missing, such as ``"boxes or masks"``; empty if there is none."""
        needs = (need.split("|") for need in self.needs)
        return next((" or ".join(names) for names in needs if all(inputs.get(name) is None for name in names)), "")


_SCORED = ("maps", "images", "target", "model")
_PETSIUK = "Petsiuk et al. 2018, arXiv 1806.07421"
_CHATTOPADHYAY = "Chattopadhyay et al. 2018, arXiv 1710.11063"
_POPPI = "Poppi et al. 2021, arXiv 2104.10252"
_RONG = "Rong et al. 2022, arXiv 2202.00449"
_YEH = "Yeh et al. 2019, arXiv 1901.09392 (Captum's implementation)"
_CHOE = "Choe et al. 2020, arXiv 2001.07437 and 2007.04178"

_ALL = (
    Metric("insertion", perturbation.insertion, True, _SCORED,
           "Area under P(target) while pixels are inserted into the blurred image, highest values first.", _PETSIUK),
    Metric("deletion", perturbation.deletion, False, _SCORED,
           "Area under P(target) while pixels are replaced by the baseline, highest values first.", _PETSIUK),
    Metric("average_drop", faithfulness.average_drop, False, _SCORED,
           "Relative drop of P(target) when the image is multiplied by the map.", _CHATTOPADHYAY),
    Metric("increase_in_confidence", faithfulness.increase_in_confidence, True, _SCORED,
           "Share of images whose P(target) rises when the image is multiplied by the map.", _CHATTOPADHYAY),
    Metric("average_gain", faithfulness.average_gain, True, _SCORED,
           "Gain of P(target), relative to 1 - P(target), when the image is multiplied by the map.",
           "Zhang et al. 2024 (Opti-CAM), arXiv 2301.07002"),
    Metric("coherency", faithfulness.coherency, True, ("maps", "images", "target", "explain"),
           "(1 + Pearson's r) / 2 of the map and the map of the image times the map.", _POPPI),
    Metric("complexity", faithfulness.complexity, False, ("maps",),
           "Mean over positions of the map's positive part, scaled to a maximum of 1.", _POPPI),
    Metric("adcc", faithfulness.adcc, True, (*_SCORED, "explain"),
           "Harmonic mean of coherency, 1 - complexity and 1 - average drop.", _POPPI),
    Metric("road", imputation.road, True, _SCORED,
           "(LeRF - MoRF) / 2 of P(target), 10..90% of the pixels removed by noisy linear imputation.", _RONG),
    Metric("road_lerf", partial(imputation.road, order="lerf"), True, _SCORED,
           "Mean P(target), the least relevant 10..90% of the pixels removed by noisy linear imputation.", _RONG),
    Metric("road_morf", partial(imputation.road, order="morf"), False, _SCORED,
           "Mean P(target), the most relevant 10..90% of the pixels removed by noisy linear imputation.", _RONG),
    Metric("infidelity", robustness.infidelity, False, _SCORED,
           "Mean squared error, in logits, of the map's sum over a square against the logit's drop without it, at its "
           "best scale.", _YEH),
    Metric("sensitivity_max", robustness.sensitivity_max, False, ("images", "target", "explain"),
           "Largest relative change of the map under uniform noise of at most 0.02 on the input.", _YEH),
    Metric("completeness", faithfulness.completeness, False, _SCORED,
           "Absolute error, in logits, of the map's total plus offset against the model's logit.",
           "Sundararajan et al. 2017, arXiv 1703.01365"),
    Metric("randomisation", sanity.randomisation, False, ("images", "target", "model", "explainer"),
           "Mean rank correlation of absolute maps before and after layers are re-initialised from the head down.",
           "Adebayo et al. 2018, arXiv 1810.03292"),
    Metric("pointing_game", localisation.pointing_game, True, ("maps", "boxes|masks"),
           "Share of images whose map has its maximum within the tolerance of the object.",
           "Zhang et al. 2018, arXiv 1608.00507"),
    Metric("energy_inside", localisation.energy_inside, True, ("maps", "boxes|masks"),
           "Share of the map's positive part inside the object.", "Wang et al. 2020 (Score-CAM), arXiv 1910.01279"),
    Metric("max_box_acc", wsol.max_box_acc, True, ("maps", "boxes"),
           "Share of images with IoU 50% of the largest component's box and a true box, at the best threshold.", _CHOE),
    Metric("max_box_acc_v2", wsol.max_box_acc_v2, True, ("maps", "boxes"),
           "Mean over IoU 30, 50, 70% of the share of images with such a box of any component, at the best threshold.",
           _CHOE),
    Metric("pixel_average_precision", wsol.pixel_average_precision, True, ("maps", "masks"),
           "Average precision of the map's pixels against the mask, per image.", _CHOE),
    Metric("pxap", wsol.pxap, True, ("maps", "masks"),
           "Average precision of the pixels of all images together.", _CHOE, per_image=False),
    Metric("grid_pointing_game", localisation.grid_pointing_game, True, ("maps", "cells"),
           "Share of the map's positive part in the class's cell of a mosaic of confident images.",
           "Rao et al. 2022, arXiv 2205.10435"),
)  # fmt: skip

METRICS: Mapping[str, Metric] = MappingProxyType({each.name: each for each in _ALL})
"""All metrics by name, in the order of reports."""


def metric(name: str) -> Metric:
    """Return a metric by name.

    Raises
    ------
    CamhookError
        No metric has the name; similar names are listed.

    Examples
    --------
    >>> metric("deletion").higher_is_better
    False
    >>> metric("delektion")
    Traceback (most recent call last):
    camhook.errors.CamhookError: No metric is named 'delektion'. Did you mean deletion?
    """
    if name in METRICS:
        return METRICS[name]
    raise CamhookError(f"No metric is named {name!r}. {hint(str(name), METRICS)}")
