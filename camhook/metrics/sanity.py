"""Model-parameter randomisation test (Adebayo et al. 2018, "Sanity checks for saliency maps")."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from camhook.errors import CamhookError
from camhook.metrics.agreement import rank_correlation
from camhook.metrics.arguments import as_images, as_maps, as_target, in_batches
from camhook.metrics.types import Explainer, Target

__all__ = ["Randomisation", "cascading_randomisation", "layers_below", "layers_from_the_head", "randomisation"]


class Randomisation(NamedTuple):
    """Result of `cascading_randomisation` in S stages, from the head down."""

    layers: tuple[tuple[str, ...], ...]  # S times the layers that are re-initialised in addition to those before
    correlation: Tensor  # (B, S), Spearman's rank correlation of absolute maps with those of the trained model


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
    """Compare maps before and after layers are re-initialised from the head down, cumulatively.

    Adebayo et al. 2018. An explanation of the model falls towards 0, an edge detector stays near 1. Layers are taken in
    the reverse of their order of execution, and re-initialised by ``reset_parameters`` where there is one, else by a
    normal distribution of the parameter's own mean and standard deviation. It works on a copy: the model, its hooks and
    the random state are not changed.

    Parameters
    ----------
    images : Tensor (B, C, H, W)
        Preprocessed, as the model takes them.
    target : int, or sequence (B,)
        The explained class, which stays the same.
    model : nn.Module
        In eval mode.
    explainer : callable
        ``explainer(model, images, target)``: the method under test, for any model; returns maps (N, H, W).
    stages : int, or sequence of sequences of str
        Number of stages (at most one per layer), or the modules of each stage by name, including all inside them, from
        the head down.
    batch_size : int
        Images per call of the explainer.
    seed : int
        Seed of the new weights.

    Returns
    -------
    Randomisation

    Raises
    ------
    CamhookError
        The model is in training mode or has no parameters, a name is not a module of it, or shapes do not fit.

    Examples
    --------
    >>> model, images = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 2)).eval(), torch.rand(1, 1, 4, 4)
    >>> cascading_randomisation(images, 0, model, lambda model, images, target: images[:, 0])
    Randomisation(layers=(('2',), ('0',)), correlation=tensor([[1., 1.]], dtype=torch.float64))
    """
    if model.training:
        raise CamhookError("Found a model in training mode, expected deterministic logits: call model.eval().")
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
                _reset(network.get_submodule(name))
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
    """Compute the mean over stages of `cascading_randomisation`'s correlation, (B,), float64; lower is better.

    Parameters and errors as in `cascading_randomisation`.
    """
    found = cascading_randomisation(images, target, model, explainer, stages=stages, batch_size=batch_size, seed=seed)
    return found.correlation.mean(1)


def layers_from_the_head(network: nn.Module, images: Tensor) -> list[str]:
    """List the modules that own parameters, last executed first; one that is never called counts with its parent.

    `nn.MultiheadAttention`, for one, uses its output layer's weights without calling it.
    """
    called: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: called.append(name))
        for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    first = {name: place for place, name in reversed(list(enumerate(called)))}

    def place(name: str) -> int:
        while name not in first:
            name = name.rpartition(".")[0]
        return first[name]

    owners = [name for name, module in network.named_modules() if _owns_parameters(module)][::-1]
    if not owners:
        raise CamhookError("Found a model without parameters, expected some to randomise; leave this test out.")
    return sorted(owners, key=place, reverse=True)


def layers_below(network: nn.Module, names: Sequence[str]) -> list[str]:
    """List the modules that own parameters among these modules and all inside them.

    Raises
    ------
    CamhookError
        A name is not a module, or it has no parameters.
    """
    found: list[str] = []
    for name in names:
        below = [
            inner
            for inner, module in network.named_modules()
            if (inner == name or inner.startswith(f"{name}.") or not name) and _owns_parameters(module)
        ]
        if not below:
            known = ", ".join(inner for inner, _ in network.named_children())
            raise CamhookError(f"Found no parameters in a module {name!r}, expected a name such as {known}.")
        found += below
    return found


def _owns_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _reset(module: nn.Module) -> None:
    """Re-initialise a module's own parameters."""
    reset_parameters = getattr(module, "reset_parameters", None)
    if callable(reset_parameters):
        reset_parameters()
        return
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            deviation = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
            parameter.normal_(float(parameter.mean()), float(deviation))
