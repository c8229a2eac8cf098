"""From decomposed logits to a result's fields: which classes, their maps and offsets, and how well these add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from camhook.decompose.decomposition import Decomposition
from camhook.decompose.maps import completeness_error, contrasted, rivals, tolerance
from camhook.errors import CompletenessError, TargetError
from camhook.targets import ClassNames, resolve_targets

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """Logits (B, K) of some images as they came, their decomposition, and what they are logits of."""

    logits: Tensor
    decomposition: Decomposition
    class_names: ClassNames
    explains: Literal["model", "probe"]
    head: str
    target_layer: str

    @torch.no_grad()
    def fields(
        self, target: Any, topk: int | None, contrast: str | Sequence[int | str] | None, *, strict: bool
    ) -> dict[str, Any]:
        """Return the fields of a `CAMResult` that concern maps and classes.

        Raises
        ------
        TargetError
            If a class does not exist.
        CompletenessError
            If a map misses its score by more than rounding, and `strict` is set.
        """
        with torch.autocast(self.logits.device.type, enabled=False):
            targets = resolve_targets(target, topk, self.logits, self.class_names)
            logits = self.logits.to(self.decomposition.logits.dtype)
            every = isinstance(target, str) and target == "all"
            maps, offset, scores = self._terms(logits, targets, every=every)
            if contrast is not None:
                others = self._others(contrast, logits, targets)
                against = [x.reshape(*others.shape, *x.shape[2:]) for x in self._terms(logits, others.flatten(1))]
                maps, offset, scores = map(contrasted, (maps, offset, scores), against)
            error = completeness_error(maps, offset, scores)
            allowed = tolerance(logits, self.logits.dtype, self.decomposition.dtype)[:, None]
        if strict and not bool((error <= allowed).all()):
            raise CompletenessError(
                f"A map misses the model's own score by {float(error.max()):.3g} logits, where "
                f"{float(allowed.min()):.3g} was allowed. Was the head changed after wrapping, or does the model's "
                "forward do more than its head? Wrap it again; without strict=True the map is returned with "
                "exact=False."
            )
        return {
            "maps": maps,
            "offset": offset,
            "target": targets,
            "logits": logits,
            "scores": scores,
            "completeness_error": error,
            "tolerance": allowed,
            "method": "cam" if self.explains == "model" else "probe",
            "explains": self.explains,
            "head": self.head,
            "target_layer": self.target_layer,
            "class_names": self.class_names,
            "contrast": "" if contrast is None else " against rivals" if contrast == "rivals" else " against others",
        }

    def maps(self, classes: Tensor, *, every: bool = False) -> Tensor:
        """Return the maps of classes (B, T), (B, T, h, w), in logits; `every`: these are all classes in order."""
        with torch.autocast(classes.device.type, enabled=False):
            return self.decomposition.all_maps() if every else self.decomposition.maps(classes)

    def _terms(self, logits: Tensor, classes: Tensor, *, every: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps, offsets and scores of classes (B, T); `every`: these are all classes in order."""
        return self.maps(classes, every=every), self.decomposition.offset(classes), logits.gather(1, classes)

    def _others(self, contrast: str | Sequence[int | str], logits: Tensor, targets: Tensor) -> Tensor:
        if logits.shape[1] < 2:
            raise TargetError("contrast= needs a model of at least two classes.")
        if isinstance(contrast, str) and contrast == "rivals":
            return rivals(logits, targets)
        listed = [contrast] if isinstance(contrast, str | int) else list(contrast)
        others = resolve_targets([listed] * len(logits), None, logits, self.class_names)
        return others[:, None].expand(-1, targets.shape[1], -1)
