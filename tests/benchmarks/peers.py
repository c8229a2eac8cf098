"""The tools that speed.py times: camhook and its peers, each used as its own documentation uses it.

A tool is a generator: given a subject and a number of classes it yields the maps class by class, each image's highest
score first, so that the clock can be read between classes. All that a tool needs is made inside (hooks are set and
removed), so that it leaves nothing behind on the model that another one would pay for. What differs between tools:

- camhook gives all classes asked for at once, and chooses them itself; maps on the model's grid, signed.
- grad-cam runs the model and a whole backward pass for every class; it upsamples to the input and rescales to 0..1.
- torchcam runs the model once; Grad-CAM then takes one backward pass through the tail for every class.
- Captum runs the model for every class. It is told the classes, which would cost its user one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

import camhook
from camhook.cli import check as checks
from camhook.demo import demo_model

__all__ = ["CAMHOOK", "CLASSES", "PEERS", "PLAIN", "CannotRun", "Subject", "tools"]

PLAIN, CAMHOOK = "plain forward", "camhook"
CLASSES = ("one", "ten", "all")
Steps = Iterator[Any]


class CannotRun(Exception):
    """This tool gives no map of this model; says why."""


@dataclass
class Subject:
    """A model in eval mode, wrapped, and preprocessed images for it."""

    name: str
    model: Any
    cam: camhook.CAM
    images: Tensor

    @classmethod
    def of(cls, name: str, batch_size: int, device: str = "cpu") -> Subject:
        """Make a timm model: real weights for EfficientNet-Lite0, else random ones, none of them zero."""
        torch.manual_seed(0)
        if name.removeprefix("tf_") == "efficientnet_lite0":
            name, model = "tf_efficientnet_lite0", demo_model()
        else:
            model = timm.create_model(name)
            checks.jitter(model)
        model.eval().to(device)
        cam = camhook.wrap(model)
        size = cam.describe().input_size
        return cls(name, model, cam, torch.randn(batch_size, 3, *size).to(device))

    def with_batch(self, batch_size: int) -> Subject:
        """Return the same model with so many images."""
        images = torch.randn(batch_size, *self.images.shape[1:], generator=torch.Generator().manual_seed(0))
        return Subject(self.name, self.model, self.cam, images.to(self.images.device))

    @property
    def is_vit(self) -> bool:
        """Whether the class is read off a class token, so that no one layer holds the features that are pooled."""
        return self.cam.describe().pooling == "attention"

    def layer(self) -> tuple[str, Callable[[Tensor], Tensor] | None]:
        """Return the layer peers read and how its output becomes (B, C, h, w): camhook's, or the documented one."""
        found = self.cam.describe()
        modules = dict(self.model.named_modules())
        if self.is_vit:  # grad-cam's documentation names this layer for ViT
            name, prefix, grid = f"blocks.{len(self.model.blocks) - 1}.norm1", found.num_prefix_tokens, found.grid_size
            return name, lambda x: x[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)
        if found.target_layer not in modules:
            raise CannotRun(f"camhook reads {found.target_layer}, which is no module")
        return found.target_layer, (lambda x: x.permute(0, 3, 1, 2)) if found.layout == "NHWC" else None

    def known_classes(self, count: int) -> Tensor:
        """Return each image's classes (B, count) of highest score."""
        with torch.inference_mode():
            classes: Tensor = self.model(self.images).topk(count, dim=1).indices
        return classes.clone()


def plain(subject: Subject, count: int) -> Steps:
    """Only run the model."""
    with torch.inference_mode():
        yield subject.model(subject.images)


def ours(subject: Subject, count: int) -> Steps:
    """Call camhook once."""
    total = subject.cam.describe().num_classes
    if count == 1:
        yield subject.cam(subject.images).maps
    elif count < total:
        yield subject.cam(subject.images, topk=count).maps
    else:
        yield subject.cam(subject.images, "all").maps


def grad_cam(subject: Subject, count: int) -> Steps:
    """Run pytorch_grad_cam.GradCAM; its first call finds the predicted class, its outputs tell the others."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer, reshape = subject.layer()
    model = subject.model
    with GradCAM(model=model, target_layers=[model.get_submodule(layer)], reshape_transform=reshape) as cam:
        yield cam(input_tensor=subject.images, targets=None)
        for classes in cam.outputs.topk(count, dim=1).indices.T.tolist()[1:]:
            yield cam(input_tensor=subject.images, targets=[ClassifierOutputTarget(c) for c in classes])


def torchcam_cam(subject: Subject, count: int) -> Steps:
    """Run torchcam's CAM: one forward pass, then one row of weights for each class."""
    from torchcam.methods import CAM

    found = subject.cam.describe()
    if (found.pooling, found.tail) != ("mean", "linear"):
        raise CannotRun("the head is not GAP + linear")
    layer, reshape = subject.layer()
    head: nn.Module = subject.model.get_classifier()
    with CAM(subject.model, layer, head, reshape_transform=reshape) as extract:
        with torch.inference_mode():
            scores = subject.model(subject.images)
        for classes in scores.topk(count, dim=1).indices.T.tolist():
            yield extract(classes)[0]


def torchcam_grad_cam(subject: Subject, count: int) -> Steps:
    """Run torchcam's GradCAM: one forward pass, then one backward pass through the tail for each class."""
    from torchcam.methods import GradCAM

    layer, reshape = subject.layer()
    with GradCAM(subject.model, layer, reshape_transform=reshape) as extract:
        scores = subject.model(subject.images)
        for i, classes in enumerate(scores.topk(count, dim=1).indices.T.tolist()):
            yield extract(classes, scores, retain_graph=i < count - 1)[0]


def captum_grad_cam(subject: Subject, count: int, known: Tensor | None = None) -> Steps:
    """Run Captum's LayerGradCam, which runs the model for each class; it takes channels first, and nothing else."""
    from captum.attr import LayerGradCam

    layer, reshape = subject.layer()
    if reshape is not None:
        raise CannotRun("it averages over all but the second axis, and takes no reshape_transform")
    attribution = LayerGradCam(subject.model, subject.model.get_submodule(layer))
    known = subject.known_classes(count) if known is None else known
    for classes in known.T:
        yield attribution.attribute(subject.images, classes).detach()


PEERS: dict[str, Callable[..., Steps]] = {
    "grad-cam GradCAM": grad_cam,
    "torchcam CAM": torchcam_cam,
    "torchcam GradCAM": torchcam_grad_cam,
    "Captum LayerGradCam": captum_grad_cam,
}


def tools(subject: Subject) -> dict[str, Callable[[int], Steps]]:
    """Return every tool by name, ready to run on the subject with a number of classes."""
    known = subject.known_classes(min(10, subject.cam.describe().num_classes))

    def bound(run: Callable[..., Steps]) -> Callable[[int], Steps]:
        if run is captum_grad_cam:  # knows its classes beforehand
            return lambda count: run(subject, count, known[:, :count])
        return lambda count: run(subject, count)

    return {name: bound(run) for name, run in {PLAIN: plain, CAMHOOK: ours, **PEERS}.items()}
