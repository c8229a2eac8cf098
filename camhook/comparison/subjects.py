"""The explained model: logits, baselines, segments and channel-first features, as attribution methods need them.

Everything that a comparison reads of a `CAM` is read here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from camhook.cam import CAM
from camhook.comparison.baselines import Baseline, baseline_function
from camhook.comparison.segments import grid_cells, superpixels
from camhook.engine.hooks import replacing
from camhook.engine.inputs import size_of
from camhook.engine.plan import Features
from camhook.engine.points import FeaturePoint
from camhook.errors import CamhookError, TargetError, UnsupportedModelError
from camhook.images.preprocessing import ImageBatch
from camhook.metrics.arguments import checked_batch_size
from camhook.results.result import CAMResult
from camhook.targets import resolve_targets

__all__ = ["LogitsModel", "Segments", "Subject", "channel_first"]

Segments = Literal["grid", "superpixels"]


class LogitsModel(nn.Module):
    """A model that returns its logits (B, K) only, in eval mode and with frozen parameters."""

    def __init__(self, model: nn.Module, output: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.requires_grad_(False)
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.output(self.model(images))


class Subject:
    """A wrapped model with the options that all attribution methods share.

    Parameters
    ----------
    cam : CAM
        The wrapped model. Captum runs on a copy in eval mode, with in-place activations made out of place: the values
        are the same, and backward hooks work.
    baseline : str, float, Tensor or callable
        See `camhook.comparison.baselines.baseline_function`.
    segments : "grid" or "superpixels"
        What is removed as a whole: the cells of a grid, or superpixels.
    cells : int
        Cells per side of the grid; there are about cells**2 superpixels.
    batch_size : int, optional
        Images per forward pass, and in memory. Default 4 on a CPU, else 32.
    seed : int
        Seed of every method that draws random numbers.
    classifier : LogitsModel, optional
        A copy of the model that exists already.

    Raises
    ------
    CamhookError
        An option is out of range.
    """

    def __init__(
        self,
        cam: CAM,
        *,
        baseline: Baseline = "black",
        segments: Segments = "grid",
        cells: int = 7,
        batch_size: int | None = None,
        seed: int = 0,
        classifier: LogitsModel | None = None,
    ) -> None:
        if segments not in ("grid", "superpixels"):
            raise CamhookError(f"Found segments={segments!r}, expected 'grid' or 'superpixels'; pass one of those.")
        self.cam, self.segments, self.cells, self.seed = cam, segments, cells, seed
        self.batch_size = checked_batch_size(batch_size or (4 if cam.reader.reference.device.type == "cpu" else 32))
        self.baseline = baseline_function(baseline, cam.preprocessing)
        self.classifier = classifier or self._copied_model()
        self._features: dict[tuple[int, int], Features] = {}

    def _copied_model(self) -> LogitsModel:
        copied = copy.deepcopy(self.cam.reader.copied().model)
        for module in copied.modules():
            if getattr(module, "inplace", None) is True:
                module.__dict__["inplace"] = False
        return LogitsModel(copied, self.cam.reader.output)

    def renew(self) -> None:
        """Copy the model again: where Captum fails, it may leave hooks behind."""
        self.classifier = self._copied_model()

    def with_model(self, classifier: LogitsModel) -> Subject:
        """Return the same for a model with other weights."""
        return Subject(
            CAM(self.cam.reader.like(classifier.model)),
            baseline=self.baseline,
            segments=self.segments,
            cells=self.cells,
            batch_size=self.batch_size,
            seed=self.seed,
            classifier=classifier,
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.cam.reader.name

    def describe(self) -> str:
        """Describe where and how camhook reads its map."""
        return str(self.cam.describe())

    def inputs(self, images: Any) -> tuple[Tensor, ImageBatch | None]:
        """Return images as the model takes them and, if they were photos, their names and geometry.

        Raises
        ------
        ImageError
            They cannot be used as they are.
        UnsupportedModelError
            The CAM explains a probe, which Captum does not run.
        """
        pixels, batch = self.cam.inputs(images)
        if self.cam(pixels[:1]).explains != "model":
            raise UnsupportedModelError(
                "A probe's logits are not those of the model, which is what Captum explains. Wrap the model without "
                "the probe."
            )
        return pixels, batch

    def pictures(self, images: Tensor) -> list[Image.Image]:
        """Return preprocessed images (B, C, H, W) as pictures to draw on."""
        if self.cam.preprocessing is not None:
            return self.cam.preprocessing.photos_of(images)
        pixels = images.detach().float().cpu()
        pixels = pixels if pixels.shape[1] == 3 else pixels.mean(1, keepdim=True)
        low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        pixels = ((pixels - low) / (high - low).clamp_min(1e-12) * 255).round().byte().expand(-1, 3, -1, -1)
        return [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in pixels]

    def classes(self, given: Any, logits: Tensor, what: str = "target") -> Tensor:
        """Return one class index per image, (B,), from indices or names; the predicted ones for None.

        Raises
        ------
        TargetError
            There is not one per image, or a class does not exist.
        """
        found = resolve_targets(given, None, logits, self.cam.class_names)
        if found.shape[1] != 1:
            raise TargetError(
                f"Found {found.shape[1]} {what}s per image, expected one: a comparison explains one class per image."
            )
        return found[:, 0]

    def labels(self, classes: Tensor) -> tuple[str, ...]:
        """Return the names of classes."""
        return tuple(self.cam.class_names.label(index) for index in classes.tolist())

    def explain(self, images: Tensor, target: Tensor, contrast: str | None = None) -> CAMResult:
        """Return camhook's own map of one class per image."""
        return self.cam(images, target.tolist(), contrast=contrast)

    def grid_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (rows, columns) of camhook's map for images of this (height, width)."""
        return self.cam.reader.plan_for(size).grid_size

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, K), without a graph."""
        with torch.no_grad():
            return torch.cat([self.classifier(part) for part in images.split(self.batch_size)])

    def baseline_logits(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the target's logit at each image's baseline, (B,)."""
        return self.logits(self.baseline(images)).gather(1, target[:, None])[:, 0]

    def feature_mask(self, images: Tensor) -> Tensor:
        """Label the pixels of each image by segment: int64 (B, H, W), on the images' device."""
        if self.segments == "grid":
            return grid_cells(size_of(images), cells=self.cells).expand(len(images), -1, -1).to(images.device)
        return superpixels(images, count=self.cells**2).to(images.device)

    def features(self, images: Tensor, target: Tensor) -> Features:
        """Return the features that layer methods read: the first candidate with a gradient of the logit.

        That is where camhook reads its map. If the head reads class tokens only, it is the input of the last block in
        which they attend to patch tokens, since the patch tokens that leave it do not reach the head.

        Raises
        ------
        UnsupportedModelError
            There is none.
        """
        size = size_of(images)
        if size not in self._features:
            found = (f for f in self._candidates(size) if self._has_gradient(f, images[:1], int(target[0])))
            features = next(found, None)
            if features is None:
                raise UnsupportedModelError(
                    "No layer with positions was found at which the logit has a gradient, so that layer methods have "
                    "nothing to read. Leave them out."
                )
            self._features[size] = features
        return self._features[size]

    def _has_gradient(self, features: Features, image: Tensor, target: int) -> bool:
        seen: list[Tensor] = []
        try:
            with torch.enable_grad(), channel_first(self.classifier, features, size_of(image)) as view:
                view.register_forward_hook(lambda module, args, output: seen.append(output))
                logit = self.classifier(image.detach().requires_grad_())[0, target]
        except (AttributeError, TypeError, RuntimeError, ValueError, CamhookError):
            return False  # the value there is not a tensor of positions
        gradient = torch.autograd.grad(logit, seen[0], allow_unused=True)[0] if seen else None
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
def channel_first(classifier: LogitsModel, features: Features, size: tuple[int, int]) -> Iterator[nn.Module]:
    """Insert an identity layer that sees the features channel first, (B, C, h, w), in the next forward pass.

    The model computes the same values, and gradients pass through the layer.

    Parameters
    ----------
    size : (int, int)
        (height, width) of the model's input.

    Yields
    ------
    nn.Module
        The layer, for Captum's layer methods.
    """
    view, layout = nn.Identity(), features.layout

    def change(tensor: Tensor) -> Tensor:
        positions, prefix = layout.split(tensor, layout.grid_size(tuple(tensor.shape), size))
        # A copy, since a later layer may work in place.
        return layout.join(view(positions).clone(), prefix)

    with replacing(classifier.model, features.point, change):
        yield view
