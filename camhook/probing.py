"""A probe in the place of the model's head: when its scores are explained, and their decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from camhook.decompose.decomposition import Decomposition
from camhook.engine.explanation import Explanation
from camhook.engine.features import backbone_fingerprint
from camhook.engine.reader import ModelReader
from camhook.errors import CamhookError
from camhook.fitting.probe import Probe
from camhook.targets import ClassNames

__all__ = ["check_method", "check_probe", "explains_probe", "probe_explanation", "probe_names"]

METHODS = ("auto", "cam", "probe")


def check_method(method: str) -> None:
    """Raise `CamhookError` if there is no such method."""
    if method not in METHODS:
        raise CamhookError(f"method={method!r}: one of {', '.join(METHODS)} was expected.")


def explains_probe(probe: Probe | None, method: str, *, has_head: bool) -> bool:
    """Return whether a method explains the scores of a probe, and not those of the model.

    Raises
    ------
    CamhookError
        If there is no such method, or no probe where it needs one.
    """
    check_method(method)
    if method == "probe" and probe is None:
        raise CamhookError("There is no probe: fit one, cam.fit(data), or pass probe= to wrap.")
    if method != "auto" or probe is None:
        return method == "probe"
    return probe.info.targets != "logits" or not has_head


def check_probe(probe: Probe, reader: ModelReader) -> None:
    """Raise `ProbeMismatchError` if a probe was not fitted on the features of this model."""
    encoder = reader.encoder
    probe.check(
        model=reader.name,
        target_layer=str(encoder.point),
        layout=encoder.layout.axes,
        num_features=encoder.num_channels,
        fingerprint=backbone_fingerprint(reader.model),
    )


def probe_names(probe: Probe | None, names: ClassNames) -> ClassNames:
    """Return the names of a probe's labels, or the model's where the probe was fitted on the model's scores."""
    return names if probe is None or probe.info.targets == "logits" else ClassNames(probe.info.class_names)


@torch.no_grad()
def probe_explanation(reader: ModelReader, probe: Probe | None, images: Tensor) -> Explanation:
    """Run the model once on images (B, C, H, W) and decompose a probe's scores of them."""
    assert probe is not None
    pooled, _ = reader.pooled(images, probe.info.pooling)
    with torch.autocast(images.device.type, enabled=False):
        decomposition = Decomposition(probe.scores, [pooled], dtype=pooled.positions.dtype)
        scores = probe.scores(pooled.value)
    names, head = probe_names(probe, reader.class_names), f"{probe.info.pooling}/linear"
    return Explanation(scores, decomposition, names, "probe", head, str(reader.encoder.point))
