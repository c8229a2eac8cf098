"""The metrics by name: what each needs, which way is better, how it is defined and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor

from camhook.errors import CamhookError
from camhook.metrics import extent, faithfulness, imputation, localisation, perturbation, robustness, sanity
from camhook.suggestions import hint

__all__ = ["METRICS", "Metric", "metric"]


@dataclass(frozen=True)
class Metric:
    """A metric as a table shows it.

    Calling it with all that is at hand, by name, passes on what it needs; options come after:
    ``metric("deletion")({"maps": maps, "images": images, "target": target, "model": model, "boxes": None}, steps=28)``.
    """

    name: str
    function: Callable[..., Tensor]
    higher_is_better: bool
    needs: tuple[str, ...]
    """Names of its arguments: maps, images, target, model, explain, explainer, boxes, masks, cells. ``"boxes|masks"``:
    the first of them that is there."""
    definition: str
    """One line, for a table's reader."""
    source: str
    per_image: bool = True
    """(B,) values; else one for all images together."""

    def __call__(self, inputs: Mapping[str, Any], **options: Any) -> Tensor:
        """Measure: (B,), or () where not ``per_image``.

        Raises
        ------
        CamhookError
            Something that the metric needs is missing, or an error of the metric itself.
        """
        given = {}
        for need in self.needs:
            name = next((name for name in need.split("|") if inputs.get(name) is not None), None)
            if name is None:
                wanted = " or ".join(need.split("|"))
                at_hand = ", ".join(name for name, value in inputs.items() if value is not None) or "nothing"
                raise CamhookError(
                    f"The metric {self.name!r} needs {wanted}, found {at_hand}. Pass {wanted}, or leave the metric out."
                )
            given[name] = inputs[name]
        return self.function(**given, **options)


_SCORED = ("maps", "images", "target", "model")
_PETSIUK = "Petsiuk et al. 2018, arXiv 1806.07421"
_CHATTOPADHYAY = "Chattopadhyay et al. 2018, arXiv 1710.11063"
_POPPI = "Poppi et al. 2021, arXiv 2104.10252"
_RONG = "Rong et al. 2022, arXiv 2202.00449"
_YEH = "Yeh et al. 2019, arXiv 1901.09392 (Captum's implementation)"
_CHOE = "Choe et al. 2020, arXiv 2001.07437 and 2007.04178"

_ALL = (
    Metric("insertion", perturbation.insertion, True, _SCORED,
           "Area under P(target) while the map's strongest pixels return to a blurred image.", _PETSIUK),
    Metric("deletion", perturbation.deletion, False, _SCORED,
           "Area under P(target) while the map's strongest pixels go to the baseline.", _PETSIUK),
    Metric("average_drop", faithfulness.average_drop, False, _SCORED,
           "Share of P(target) lost when the model sees the image times the map.", _CHATTOPADHYAY),
    Metric("increase_in_confidence", faithfulness.increase_in_confidence, True, _SCORED,
           "Share of images whose P(target) rises when the model sees the image times the map.", _CHATTOPADHYAY),
    Metric("average_gain", faithfulness.average_gain, True, _SCORED,
           "Share of 1 - P(target) gained when the model sees the image times the map.",
           "Zhang et al. 2024 (Opti-CAM), arXiv 2301.07002"),
    Metric("coherency", faithfulness.coherency, True, ("maps", "images", "target", "explain"),
           "(1 + Pearson's r) / 2 of the map and the map of the image times the map.", _POPPI),
    Metric("complexity", faithfulness.complexity, False, ("maps",),
           "Mean over positions of the map's positive part, scaled to 1.", _POPPI),
    Metric("adcc", faithfulness.adcc, True, (*_SCORED, "explain"),
           "Harmonic mean of coherency, 1 - complexity and 1 - average drop.", _POPPI),
    Metric("road", imputation.road, True, _SCORED,
           "(LeRF - MoRF) / 2 of P(target), 10..90% of the pixels removed by noisy linear imputation.", _RONG),
    Metric("road_lerf", partial(imputation.road, order="lerf"), True, _SCORED,
           "Mean P(target), the least relevant 10..90% of the pixels removed by noisy linear imputation.", _RONG),
    Metric("road_morf", partial(imputation.road, order="morf"), False, _SCORED,
           "Mean P(target), the most relevant 10..90% of the pixels removed by noisy linear imputation.", _RONG),
    Metric("infidelity", robustness.infidelity, False, _SCORED,
           "Mean squared miss, in logits, of the map's sum over a patch against what the patch's removal does, at the "
           "map's best scale.", _YEH),
    Metric("sensitivity_max", robustness.sensitivity_max, False, ("images", "target", "explain"),
           "Largest relative change of the map under noise of 0.02 on the input.", _YEH),
    Metric("completeness", faithfulness.completeness, False, _SCORED,
           "Absolute miss, in logits, of the map's total and offset against the model's logit.",
           "Sundararajan et al. 2017, arXiv 1703.01365"),
    Metric("randomisation", sanity.randomisation, False, ("images", "target", "model", "explainer"),
           "Mean Spearman correlation of absolute maps before and after weights are re-initialised from the head down.",
           "Adebayo et al. 2018, arXiv 1810.03292"),
    Metric("pointing_game", localisation.pointing_game, True, ("maps", "boxes|masks"),
           "Share of images whose map has its maximum in the object, or within the tolerance of it.",
           "Zhang et al. 2018, arXiv 1608.00507"),
    Metric("energy_inside", localisation.energy_inside, True, ("maps", "boxes|masks"),
           "Share of the positive evidence inside the object.", "Wang et al. 2020 (Score-CAM), arXiv 1910.01279"),
    Metric("max_box_acc", extent.max_box_acc, True, ("maps", "boxes"),
           "Share of images whose largest component's box has IoU 50% with a true box, at the best threshold.", _CHOE),
    Metric("max_box_acc_v2", extent.max_box_acc_v2, True, ("maps", "boxes"),
           "Mean over IoU 30, 50, 70% of the share of images with such a box of any component, at the best threshold.",
           _CHOE),
    Metric("pixel_average_precision", extent.pixel_average_precision, True, ("maps", "masks"),
           "Area under the precision-recall curve of the map's pixels against the mask, each image for itself.", _CHOE),
    Metric("pxap", extent.pxap, True, ("maps", "masks"),
           "Area under the precision-recall curve of all images' pixels together.", _CHOE, per_image=False),
    Metric("grid_pointing_game", localisation.grid_pointing_game, True, ("maps", "cells"),
           "Share of the positive evidence in the right cell of a mosaic of confident images.",
           "Rao et al. 2022, arXiv 2205.10435"),
)  # fmt: skip

METRICS: Mapping[str, Metric] = MappingProxyType({each.name: each for each in _ALL})
"""All metrics by name, in the order of a report."""


def metric(name: str) -> Metric:
    """Look a metric up.

    Raises
    ------
    CamhookError
        No metric has the name; near ones are listed.

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
