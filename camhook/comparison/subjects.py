"""A model as explanations get it: a copy for Captum, with baselines, parts and channel-first features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camhook.cam import CAM
from camhook.comparison.baselines import Reference, reference
from camhook.comparison.superpixels import grid_cells, superpixels
from camhook.engine.copies import SharedCopy
from camhook.engine.hooks import replacing
from camhook.engine.inputs import size_of
from camhook.engine.plan import Features
from camhook.engine.points import FeaturePoint
from camhook.errors import CamhookError, UnsupportedModelError
from camhook.metrics.arguments import checked_batch_size

__all__ = ["Scorer", "Segments", "Subject", "viewing"]

Segments = Literal["grid", "superpixels"]


class Scorer(nn.Module):
    """A model that returns logits (B, K) and nothing else."""

    def __init__(self, model: nn.Module, output: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.output(self.model(images))


class Subject:
    """A wrapped model and what all explanations of it have in common.

    Parameters
    ----------
    cam
        The wrapped model. Captum runs on a copy in eval mode whose in-place activations are done out of place, which
        computes the same and is what backward hooks need.
    baseline
        What removed pixels become; see `camhook.comparison.baselines.reference`.
    segments, cells
        What is removed as one: the cells of a grid of so many a side, or about cells**2 superpixels.
    batch_size
        How many pictures the model sees, and memory holds, at a time. Default 4 on a CPU (more are slower), else 32.
    seed
        Of whatever a method draws.
    """

    def __init__(
        self,
        cam: CAM,
        *,
        baseline: str | float | Tensor = "black",
        segments: Segments = "grid",
        cells: int = 7,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if segments not in ("grid", "superpixels"):
            raise CamhookError(f"Found segments={segments!r}, expected 'grid' or 'superpixels'; pass one of those.")
        self.cam, self.segments, self.cells = cam, segments, cells
        on_cpu = next(cam.model.parameters(), torch.zeros(())).device.type == "cpu"
        self.batch_size, self.seed = checked_batch_size(batch_size or (4 if on_cpu else 32)), seed
        self.reference: Reference = reference(cam, baseline)
        self._layers: dict[tuple[int, int], Features] = {}

    @cached_property
    def scorer(self) -> Scorer:
        """The copy that Captum runs on."""
        copied = copy.deepcopy(SharedCopy(self.cam.model).module())
        for module in copied.modules():
            if getattr(module, "inplace", None) is True:
                module.__dict__["inplace"] = False
        return Scorer(copied, self.cam.reader.output).requires_grad_(False)

    def renew(self) -> None:
        """Make another copy for Captum, which may leave hooks behind where it fails."""
        self.__dict__.pop("scorer", None)

    def of(self, scorer: Scorer) -> Subject:
        """Return the same for another model of this architecture, such as a randomised copy."""
        other = copy.copy(self)
        other.scorer = scorer
        other.cam = CAM(self.cam.reader.like(scorer.model))
        return other

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, K), without a graph."""
        with torch.no_grad():
            return torch.cat([self.scorer(part) for part in images.split(self.batch_size)])

    def baseline_scores(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the target's logit at each image's baseline, (B,)."""
        return self.logits(self.reference(images)).gather(1, target[:, None])[:, 0]

    def parts(self, images: Tensor) -> Tensor:
        """Return numbers of the parts that are removed as one: int64 (B, H, W), on the images' device."""
        if self.segments == "grid":
            return grid_cells(size_of(images), cells=self.cells).expand(len(images), -1, -1).to(images.device)
        return superpixels(images, count=self.cells**2).to(images.device)

    def features(self, images: Tensor, target: Tensor) -> Features:
        """Return where layer methods read: the first place at which the score has a gradient.

        That is where camhook reads its map; if class tokens are all that the head reads, the input of the last block in
        which they read patches, since nothing comes of the patches that it gives.
        """
        size = size_of(images)
        if size not in self._layers:
            for features in self._candidates(size):
                if self._has_gradient(features, images[:1], int(target[0])):
                    self._layers[size] = features
                    break
            else:
                raise UnsupportedModelError(
                    "No layer with positions was found at which the score has a gradient, so that layer methods have "
                    "nothing to read. Leave them out."
                )
        return self._layers[size]

    def _has_gradient(self, features: Features, image: Tensor, target: int) -> bool:
        seen: list[Tensor] = []
        try:
            with torch.enable_grad(), viewing(self.scorer, features, size_of(image)) as view:
                view.register_forward_hook(lambda module, args, output: seen.append(output))
                score = self.scorer(image.detach().requires_grad_())[0, target]
        except (AttributeError, TypeError, RuntimeError, ValueError, CamhookError):
            return False  # what goes in there is no tensor of positions
        gradient = torch.autograd.grad(score, seen[0], allow_unused=True)[0] if seen else None
        return gradient is not None and bool(gradient.any())

    def _candidates(self, size: tuple[int, int]) -> Iterator[Features]:
        plan = self.cam.reader.plan_for(size)
        yield from sorted(plan.features, key=lambda each: -each.grid_size[0] * each.grid_size[1])
        if plan.encoder is not None:
            yield plan.encoder
        if plan.tokens is None or not plan.tokens.readers:
            return
        block, layout, grid_size = plan.tokens.readers[-1], plan.tokens.layout, plan.tokens.calls[-1].grid_size
        module = self.cam.model.get_submodule(block)
        while isinstance(module, nn.Sequential) and len(module):
            block, module = f"{block}.{len(module) - 1}", module[-1]
        shape = (2, *plan.tokens.shape)
        if isinstance(getattr(module, "norm1", None), nn.Module):
            yield Features(FeaturePoint(f"{block}.norm1"), layout, shape, grid_size)
        yield Features(FeaturePoint(block, "input"), layout, shape, grid_size)


@contextmanager
def viewing(scorer: Scorer, features: Features, size: tuple[int, int]) -> Iterator[nn.Module]:
    """Have a layer that sees these features channel first, (B, C, h, w), in the next forward pass within the block.

    The model computes the same as without; gradients go through the layer.

    Parameters
    ----------
    size
        (height, width) of the model's input.
    """
    view, layout = nn.Identity(), features.layout

    def change(tensor: Tensor) -> Tensor:
        positions, prefix = layout.split(tensor, layout.grid_size(tuple(tensor.shape), size))
        # A copy, since a later step may work in place.
        return layout.join(view(positions).clone(), prefix)

    with replacing(scorer.model, features.point, change):
        yield view
