"""Does a map hang on what the model learned? Weights are randomised from the head down, on a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from camhook.errors import CamhookError
from camhook.metrics.agreement import rank_correlation
from camhook.metrics.inputs import Maps, Target, as_images, as_maps, as_target, in_batches
from camhook.metrics.randomising import layers_below, layers_from_the_head, reset

__all__ = ["Randomisation", "cascading_randomisation", "randomisation"]

Explainer = Callable[[nn.Module, Tensor, Tensor], Maps]
"""A model, images (N, C, H, W) and targets (N,) to maps (N, H, W)."""


class Randomisation(NamedTuple):
    """What `cascading_randomisation` found."""

    layers: tuple[tuple[str, ...], ...]
    """The layers that each stage re-initialised on top of the stages before, from the head down: S tuples of names."""
    correlation: Tensor
    """Spearman's rank correlation of absolute maps with the trained model's, (B, S)."""


def cascading_randomisation(
    images: Tensor,
    target: Target,
    model: nn.Module,
    explainer: Explainer,
    *,
    stages: int | Sequence[Sequence[str]] = 8,
    batch_size: int = 32,
    seed: int = 0,
) -> Randomisation:
    """Re-initialise a copy of the model from the head down, and see whether the maps notice (Adebayo et al. 2018).

    An explanation of the *model* falls towards 0; an edge detector stays near 1. Layers are taken in the reverse of the
    order in which they run. ``reset_parameters`` where a layer has it, else a normal of the parameter's own mean and
    deviation. The model itself, its hooks, and the random state stay as they are.

    Parameters
    ----------
    images, target
        As in `sensitivity_max`.
    model
        In eval mode.
    explainer
        ``explainer(model, images, target)``: the method that is checked, for a given model.
    stages
        How many equal groups of layers, at most one each; or the groups themselves, as names of modules (all below
        one are meant), head first.
    batch_size
        How many pictures are explained at a time.
    seed
        Of the new weights.

    Raises
    ------
    CamhookError
        The model is in training mode or has no parameters, a name is no module of it, or shapes do not fit together.

    Examples
    --------
    >>> model, images = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 2)).eval(), torch.rand(1, 1, 4, 4)
    >>> cascading_randomisation(images, 0, model, lambda model, images, target: images[:, 0])
    Randomisation(layers=(('2',), ('0',)), correlation=tensor([[1., 1.]], dtype=torch.float64))
    """
    if model.training:
        raise CamhookError("Found a model in training mode, expected one that gives the same twice: call model.eval().")
    images = as_images(images)
    classes = as_target(target, len(images)).to(images.device)

    def explained(network: nn.Module) -> Tensor:
        batches = in_batches(images, classes, batch_size)
        return torch.cat([as_maps(explainer(network, *batch)) for batch in batches]).abs()

    network = copy.deepcopy(model)
    if isinstance(stages, int):
        layers = layers_from_the_head(network, images[:1])
        count = min(max(stages, 1), len(layers))
        bounds = [round(stage * len(layers) / count) for stage in range(count + 1)]
        groups = [layers[low:high] for low, high in pairwise(bounds)]
    else:
        groups = [layers_below(network, names) for names in stages]
    original, correlations = explained(model), []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for names in groups:
            for name in names:
                reset(network.get_submodule(name))
            correlations.append(rank_correlation(explained(network), original))
    return Randomisation(tuple(tuple(names) for names in groups), torch.stack(correlations, dim=1))


def randomisation(
    images: Tensor,
    target: Target,
    model: nn.Module,
    explainer: Explainer,
    *,
    stages: int | Sequence[Sequence[str]] = 8,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Mean over stages of `cascading_randomisation`, (B,): how little a map notices new weights; lower is better."""
    found = cascading_randomisation(images, target, model, explainer, stages=stages, batch_size=batch_size, seed=seed)
    return found.correlation.mean(1)
