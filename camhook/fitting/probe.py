"""Probe: a linear head on frozen, pooled features, its file, and the check that it belongs to a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import Tensor

from camhook.errors import CamhookError, OutputError, ProbeMismatchError
from camhook.files import read_tensors, write_tensors, written_by_camhook

__all__ = ["Probe", "ProbeInfo"]

_KIND = "camhook probe 1"
_FILE = "probe.safetensors"
_CARD = """---
{{ card_data }}
---

# A camhook probe for {{ info.model }}

A linear head on the frozen features of `{{ info.model }}` at `{{ info.target_layer }}` ({{ info.layout }}, pooled by
{{ info.pooling }}), fitted to {{ info.targets }} by {{ info.solver }}: {{ classes }} classes, {{ features }} features.
It tells where in a picture the score of a class comes from.

| fidelity | |
|---|---|
{% for name, value in fidelity %}| {{ name }} | {{ value }} |
{% endfor %}
"""


@dataclass(frozen=True)
class ProbeInfo:
    """What a probe was fitted on, and how.

    Attributes
    ----------
    model, target_layer, layout, pooling : str
        The backbone's name, the layer whose features are pooled, their axes ("NCHW", "NHWC", "NLC"), "gap" or
        "attention".
    targets, solver, penalty
        "labels", "multilabel" or "logits"; "ridge" or "logistic"; the penalty used.
    class_names, preprocessing
        One per class, or none; of the images, timm's data config.
    fidelity : mapping
        Measures on images held out, by name; see `camhook.fitting.reports.FitReport.summary`.
    fingerprint : str
        Hash of the backbone's weights; see `camhook.fingerprints.fingerprint`.
    """

    model: str
    target_layer: str
    layout: str
    pooling: str = "gap"
    targets: str = "labels"
    solver: str = "ridge"
    penalty: float = 0.0
    class_names: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""


class Probe(
    ModelHubMixin, library_name="camhook", tags=["class-activation-map", "explainability"], model_card_template=_CARD
):
    """A linear head: scores = weight @ pooled features + bias.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are huggingface_hub's own.

    Parameters
    ----------
    weight, bias : Tensor
        (K, C) and (K,); kept as float32, on the CPU.
    info : ProbeInfo

    Raises
    ------
    CamhookError
        If shapes do not fit, or values are not finite.

    Examples
    --------
    >>> probe = Probe(torch.eye(2), torch.tensor([0.0, 1.0]), ProbeInfo("resnet18", "layer4", "NCHW"))
    >>> probe.scores(torch.tensor([[3.0, 4.0]])).tolist()
    [[3.0, 5.0]]
    >>> probe.check(target_layer="layer3", num_features=2)
    Traceback (most recent call last):
    camhook.errors.ProbeMismatchError: This probe belongs elsewhere: it was fitted at layer 'layer4', found ...
    """

    def __init__(self, weight: Tensor, bias: Tensor, info: ProbeInfo) -> None:
        fits = weight.ndim == 2 and bias.shape == weight.shape[:1]
        if not fits or not (weight.isfinite().all() and bias.isfinite().all()):
            found = f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)}"
            raise CamhookError(f"Found {found}, or values that are not finite; expected (K, C) and (K,), all finite.")
        if info.class_names and len(info.class_names) != len(weight):
            found = f"{len(info.class_names)} class names for {len(weight)} classes"
            raise CamhookError(f"Found {found}; name all or none.")
        self.weight = weight.detach().to("cpu", torch.float32, copy=True)
        self.bias = bias.detach().to("cpu", torch.float32, copy=True)
        self.info = info

    def __str__(self) -> str:
        info = self.info
        measured = ", ".join(f"{name} {value:.3g}" for name, value in info.fidelity.items() if name != "images")
        images = info.fidelity.get("images", 0)
        fidelity = f"on {images:,} images held out: {measured or 'nothing was measured'}" if images else "not measured"
        place = f"{info.model} at {info.target_layer}, {info.solver} on {info.targets}, pooled by {info.pooling}"
        return f"Probe of {self.num_classes:,} classes on {place}; {fidelity}"

    @property
    def num_classes(self) -> int:
        """How many classes K it scores."""
        return self.weight.shape[0]

    @property
    def num_features(self) -> int:
        """How many features C it reads."""
        return self.weight.shape[1]

    def scores(self, pooled: Tensor) -> Tensor:
        """Return the scores (B, K) of pooled features (B, C), on their device and in their precision."""
        return pooled @ self.weight.to(pooled).T + self.bias.to(pooled)

    def check(
        self,
        *,
        model: str | None = None,
        target_layer: str | None = None,
        layout: str | None = None,
        pooling: str | None = None,
        num_features: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Compare what it was fitted on with what it is to be used with, as far as given; a model's name may differ.

        Raises
        ------
        ProbeMismatchError
            If something differs; all that differs is listed.
        """
        info = self.info
        compared: list[tuple[str, Any, Any]] = [
            ("at layer", info.target_layer, target_layer),
            ("on features laid out as", info.layout, layout),
            ("on features pooled by", info.pooling, pooling),
            ("on a number of features of", self.num_features, num_features),
            ("on weights with fingerprint", info.fingerprint, fingerprint),
        ]
        differing = [(what, mine, found) for what, mine, found in compared if found is not None and found != mine]
        if differing and model is not None and model != info.model:
            differing.insert(0, ("on model", info.model, model))
        if differing:
            listed = "; ".join(f"{what} {mine!r}, found {found!r}" for what, mine, found in differing)
            advice = "Wrap the model it was fitted on, with the same weights in the same precision, or fit a new probe."
            raise ProbeMismatchError(f"This probe belongs elsewhere: it was fitted {listed}. {advice}")

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write it to a file; an earlier probe is replaced, another file only with ``overwrite``.

        Raises
        ------
        OutputError
            If another file is there, or the path cannot be written to.
        """
        if not overwrite and Path(path).exists() and not written_by_camhook(Path(path), kind=_KIND):
            raise OutputError(f"{path} is there already and is no probe. Choose another path.")
        write_tensors(path, _KIND, {"weight": self.weight, "bias": self.bias}, asdict(self.info))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read it from a file.

        Raises
        ------
        CamhookError
            If the file does not exist, is damaged or is no probe.
        """
        tensors, facts = read_tensors(path, _KIND)
        missing = {"weight", "bias"} - tensors.keys() | {"model", "target_layer", "layout"} - facts.keys()
        if missing:
            raise CamhookError(f"{os.fspath(path)} lacks {', '.join(sorted(missing))}; fit and save the probe again.")
        known = {f.name: facts[f.name] for f in fields(ProbeInfo) if f.name in facts}  # later versions may have more
        known["class_names"] = tuple(known.get("class_names", ()))
        return cls(tensors["weight"], tensors["bias"], ProbeInfo(**known))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory / _FILE)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Probe:
        if Path(model_id).is_dir():
            return cls.load(Path(model_id) / _FILE)
        download = ("revision", "cache_dir", "force_download", "local_files_only", "token")  # others: of config.json
        return cls.load(hf_hub_download(model_id, _FILE, **{name: options[name] for name in download}))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """Return the card that goes with it to the Hub."""
        fidelity = self.info.fidelity.items()
        numbers = [(name, f"{value:.4g}") for name, value in fidelity if isinstance(value, float | int)]
        about = {"info": self.info, "fidelity": numbers, "classes": self.num_classes, "features": self.num_features}
        return super().generate_model_card(*args, **about, **kwargs)
