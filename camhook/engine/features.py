"""Pooled features of a frozen model, on which probes are fitted, and facts about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camhook.adapters.libraries import head_modules
from camhook.adapters.timm import forward
from camhook.engine.copies import MetaCopy
from camhook.engine.hooks import hooked
from camhook.engine.inputs import check_tensor, size_of
from camhook.engine.points import FeaturePoint
from camhook.engine.reader import ModelReader
from camhook.fingerprints import fingerprint
from camhook.targets import ClassNames

__all__ = ["FeatureFacts", "PooledFeatures", "backbone_fingerprint", "head_parameters"]


def backbone_fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights without its head's, which its features do not depend on."""
    return fingerprint(model, skip=head_modules(model))


def head_parameters(model: nn.Module, point: FeaturePoint, input_shape: tuple[int, ...]) -> int:
    """Count the parameters that a model uses after a feature point and not before: those of its head.

    It is run on a copy on the meta device; the live model is not.
    """
    copy, calls = MetaCopy(model).module, 0
    before: set[int] = set()
    after: dict[int, Tensor] = {}

    def at_point(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def used(module: nn.Module, *_: Any) -> None:
        own = {id(p): p for p in module.parameters(recurse=False)}
        if calls > point.call:
            after.update(own)
        else:
            before.update(own)

    hooks: list[tuple[str, str, Callable[..., Any]]] = [(point.module, point.side, at_point)]
    hooks += [(name, "input", used) for name, module in copy.named_modules() if list(module.parameters(False))]
    images = torch.empty(input_shape, dtype=torch.float64, device="meta")
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), hooked(copy, hooks):
        forward(copy, images)
    return sum(p.numel() for key, p in after.items() if key not in before)


@dataclass
class FeatureFacts:
    """What a probe is fitted on.

    Attributes
    ----------
    model, target_layer, layout, pooling : str
        The model's name, the layer whose features are pooled, their axes ("NCHW", "NHWC", "NLC"), "gap" or "attention".
    fingerprint : str
        Hash of the backbone's weights.
    precision : str
        That of autocast, "None" without.
    preprocessing : dict
        Of photos: timm's data config; empty if it is not known.
    num_features : int
        C.
    num_logits, head_parameters : int or None
        How many logits the model gives, and how many parameters it uses after the features; None without a head.
    class_names : ClassNames
        Of the model's own classes.
    """

    model: str
    target_layer: str
    layout: str
    pooling: str
    fingerprint: str
    precision: str
    preprocessing: Mapping[str, Any]
    num_features: int
    num_logits: int | None
    head_parameters: int | None
    class_names: ClassNames


class PooledFeatures:
    """Pooled features of a wrapped model, which is frozen: nothing of it changes. A probe is fitted on them.

    Parameters
    ----------
    reader : ModelReader
        The wrapped model.
    pooling : str
        ``"gap"``: the mean over positions; ``"attention"``: weighted by the class token's last attention.
    autocast : torch.dtype, optional
        Run the model in this precision.
    channels_last : bool
        Give the model its images in that memory format.

    Attributes
    ----------
    device : torch.device
        Where the model is.
    preprocessing : Preprocessing or None
        Of photos, if it is known.
    """

    def __init__(
        self,
        reader: ModelReader,
        pooling: str = "gap",
        *,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        self._reader, self._pooling, self._autocast = reader, pooling, autocast
        self._format = torch.channels_last if channels_last else torch.preserve_format
        self._seen: set[tuple[int, int]] = set()
        self.device: torch.device = reader.reference.device
        self.preprocessing = reader.preprocessing

    def facts(self, size: Sequence[int] | None) -> FeatureFacts:
        """Return what is extracted from images of that (height, width); None: of the model's own.

        The model is not run.

        Raises
        ------
        UnsupportedModelError
            If there are no features to pool, or not in that way.
        """
        reader, config = self._reader, {} if self.preprocessing is None else self.preprocessing.config
        plan = reader.plan if size is None else reader.plan_for((size[0], size[1]))
        encoder, has_head = reader.encoder, plan.head is not None
        plan.for_probe(encoder, self._pooling)
        shape = (2, reader.in_chans, *plan.input_size)
        return FeatureFacts(
            model=reader.name,
            target_layer=str(encoder.point),
            layout=encoder.layout.axes,
            pooling=self._pooling,
            fingerprint=backbone_fingerprint(reader.model),
            precision=str(self._autocast),
            preprocessing={name: value for name, value in config.items() if name != "is_training"},
            num_features=encoder.num_channels,
            num_logits=plan.num_classes if has_head else None,
            head_parameters=head_parameters(reader.model, encoder.point, shape) if has_head else None,
            class_names=reader.class_names,
        )

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the model once.

        Parameters
        ----------
        images : Tensor (B, C_in, H, W)
            Preprocessed; on any device.

        Returns
        -------
        features : Tensor (B, C)
        logits : Tensor (B, K) or None
            None for a model without a head.

        Raises
        ------
        ImageError
            If the model cannot take these images.
        """
        reader, reference, size = self._reader, self._reader.reference, size_of(images)
        if images.is_floating_point():
            images = images.to(self.device, reference.dtype, non_blocking=True, memory_format=self._format)
        check_tensor(images, reader.in_chans, reference)
        # What a model keeps on its own at its first pass must be tensors that it can be trained with afterwards.
        with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
            pooled, returned = reader.pooled(images, self._pooling, inference=size in self._seen)
        self._seen.add(size)
        if reader.plan_for(size).head is None:
            return pooled.value, None
        with torch.inference_mode(False), torch.no_grad():
            logits = reader.logits_of(returned)
            return pooled.value, (logits.clone() if logits.is_inference() else logits).float()
