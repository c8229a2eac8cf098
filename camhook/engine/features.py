"""What a probe needs of a model: is it the one that it was fitted on, and its features."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from camhook.adapters.timm import head_names, is_encoder, model_name
from camhook.engine.plan import Features
from camhook.fingerprints import fingerprint
from camhook.fitting.probe import Probe
from camhook.targets import ClassNames

__all__ = ["backbone_fingerprint", "check_probe", "probe_names", "run_encoder"]


def backbone_fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights without its head's, which its features do not depend on."""
    return fingerprint(model, skip=head_names(model))


def check_probe(probe: Probe, model: nn.Module, encoder: Features) -> None:
    """Raise `ProbeMismatchError` if a probe was not fitted on these features of this model."""
    layout = encoder.layout.axes
    probe.check(
        model=model_name(model),
        target_layer=str(encoder.point),
        layout=layout,
        num_features=encoder.shape[1 if layout == "NCHW" else -1],
        fingerprint=backbone_fingerprint(model),
    )


def probe_names(probe: Probe | None, names: ClassNames) -> ClassNames:
    """Return the class names of a probe: those of its labels, or the model's where it learned the model's scores."""
    return names if probe is None or probe.info.targets == "logits" else ClassNames(probe.info.class_names)


def run_encoder(model: Any, images: Tensor) -> Any:
    """Run a model; of an encoder that refuses to classify, run what there is."""
    return model.forward_features(images) if is_encoder(model) else model(images)
