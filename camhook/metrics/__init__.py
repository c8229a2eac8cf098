"""Metrics of attribution maps: faithfulness, perturbation, localisation, robustness, sanity checks and agreement.

Plain functions of maps (B, H, W), signed, at the images' size; images (B, C, H, W), preprocessed; a target; and a model
that is any function of images to logits (B, K). A metric returns one float64 value per image, (B,), so that means and
bootstrap intervals are the caller's. `METRICS` lists them by name; `CONTROLS` lists control maps that do not depend on
the model, with which any table of results should be compared.

Examples
--------
>>> from camhook import metrics
>>> metrics.energy_inside(metrics.random_maps(1, (64, 64)), [[0, 0, 32, 32]]).round(decimals=2)
tensor([0.2500], dtype=torch.float64)
"""

from __future__ import annotations

from camhook.metrics.agreement import rank_correlation, top_overlap
from camhook.metrics.controls import CONTROLS, gaussian_maps, random_maps
from camhook.metrics.faithfulness import (
    adcc,
    average_drop,
    average_gain,
    coherency,
    completeness,
    complexity,
    increase_in_confidence,
)
from camhook.metrics.imputation import imputed, road
from camhook.metrics.localisation import box_masks, energy_inside, grid_pointing_game, mosaics, pointing_game
from camhook.metrics.perturbation import blurred, deletion, insertion, perturbation_curve
from camhook.metrics.registry import METRICS, Metric, metric
from camhook.metrics.robustness import infidelity, sensitivity_max
from camhook.metrics.sanity import Randomisation, cascading_randomisation, randomisation
from camhook.metrics.wsol import max_box_acc, max_box_acc_v2, pixel_average_precision, pxap

__all__ = [
    "CONTROLS",
    "METRICS",
    "Metric",
    "Randomisation",
    "adcc",
    "average_drop",
    "average_gain",
    "blurred",
    "box_masks",
    "cascading_randomisation",
    "coherency",
    "completeness",
    "complexity",
    "deletion",
    "energy_inside",
    "gaussian_maps",
    "grid_pointing_game",
    "imputed",
    "increase_in_confidence",
    "infidelity",
    "insertion",
    "max_box_acc",
    "max_box_acc_v2",
    "metric",
    "mosaics",
    "perturbation_curve",
    "pixel_average_precision",
    "pointing_game",
    "pxap",
    "random_maps",
    "randomisation",
    "rank_correlation",
    "road",
    "sensitivity_max",
    "top_overlap",
]
