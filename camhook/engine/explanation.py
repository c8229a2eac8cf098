"""From accounted logits to a result: which classes, their maps and offsets, and how well these add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from camhook.decompose.decomposition import Accounting
from camhook.decompose.maps import completeness_error, contrasted, rivals, tolerance
from camhook.errors import CamhookError, CompletenessError, TargetError
from camhook.targets import ClassNames, resolve_targets

__all__ = ["METHODS", "Accounted", "check_method"]

METHODS = ("auto", "cam", "probe")


def check_method(method: str) -> None:
    """Raise `CamhookError` if there is no such method."""
    if method not in METHODS:
        raise CamhookError(f"method={method!r}: one of {', '.join(METHODS)} was expected.")


@dataclass(frozen=True)
class Accounted:
    """The logits of some images, accounted for by positions, and what they are logits of.

    Attributes
    ----------
    logits : Tensor
        (B, K), as they came.
    """

    logits: Tensor
    account: Accounting
    class_names: ClassNames
    explains: Literal["model", "probe"]
    head: str
    target_layer: str

    def answer(
        self, target: Any, topk: int | None, contrast: str | Sequence[int | str] | None, *, strict: bool
    ) -> dict[str, Any]:
        """Return the fields of a `CAMResult` that tell of maps and classes.

        Raises
        ------
        TargetError
            If a class is asked for that there is not.
        CompletenessError
            If a map misses its score by more than rounding, and that is not allowed.
        """
        targets = resolve_targets(target, topk, self.logits, self.class_names)
        wide = self.logits.to(self.account.logits.dtype)

        def explained(classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            every = isinstance(target, str) and target == "all" and classes is targets
            maps = self.account.all_maps() if every else self.account.maps(classes)
            return maps, self.account.offset(classes), wide.gather(1, classes)

        maps, offset, scores = explained(targets)
        if contrast is not None:
            others = self._others(contrast, wide, targets)
            against = [x.reshape(*others.shape, *x.shape[2:]) for x in explained(others.flatten(1))]
            maps, offset, scores = map(contrasted, (maps, offset, scores), against)
        error = completeness_error(maps, offset, scores)
        allowed = tolerance(wide, self.logits.dtype, self.account.dtype)[:, None]
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
            "logits": wide,
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

    def _others(self, contrast: str | Sequence[int | str], logits: Tensor, targets: Tensor) -> Tensor:
        if logits.shape[1] < 2:
            raise TargetError("contrast= needs a model of at least two classes.")
        if isinstance(contrast, str) and contrast == "rivals":
            return rivals(logits, targets)
        listed = [contrast] if isinstance(contrast, str | int) else list(contrast)
        others = resolve_targets([listed] * len(logits), None, logits, self.class_names)
        return others[:, None].expand(-1, targets.shape[1], -1)
