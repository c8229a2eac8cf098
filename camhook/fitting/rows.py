"""Rows of pooled features with targets and weights, one per image; and the hash of an image's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.errors import CamhookError

__all__ = ["Rows", "TargetKind", "check_counts", "check_labels", "class_counts", "sample_hash"]

TargetKind = Literal["labels", "multilabel", "logits"]
"""One class per image, labels (B,); 0 or 1 per class, (B, K); or the model's logits (B, K)."""


def sample_hash(indices: npt.ArrayLike, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Hash indices (N,) to (N,) uint64, one to one: SplitMix64 (Steele et al. 2014, doi 10.1145/2660193.2660195).

    Examples
    --------
    >>> sample_hash([0, 1]).tolist()
    [16294208416658607535, 7960286522194355700]
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    words: npt.NDArray[np.uint64] = (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * golden
    words = words + np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


@dataclass(frozen=True)
class Rows:
    """Images as rows: pooled features and what the probe should make of them.

    Attributes
    ----------
    indices : Tensor
        (B,) int64, on the CPU: the images' numbers in the data.
    features, targets : Tensor
        (B, C); and (B,) int64 labels, or (B, K).
    weights : Tensor
        (B,), 0 or more.
    labels, predictions : Tensor
        (B,) int64: the true class and the model's own top class, -1 where unknown.
    """

    indices: Tensor
    features: Tensor
    targets: Tensor
    weights: Tensor
    labels: Tensor
    predictions: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @classmethod
    def of(
        cls,
        indices: npt.ArrayLike | Tensor,
        features: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        predictions: Tensor | None = None,
    ) -> Rows:
        """Return rows with default weights of 1, and unknown classes where none are given."""
        indices = indices.cpu() if isinstance(indices, Tensor) else indices
        index = torch.tensor(np.asarray(indices), dtype=torch.int64)  # a copy: the caller may reuse theirs
        weights = torch.ones(len(index), dtype=torch.float64) if weights is None else weights
        labels, predictions = (torch.full(index.shape, -1) if v is None else v for v in (labels, predictions))
        return cls(index, *(v.detach() for v in (features, targets, weights, labels, predictions)))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return the rows of all parts, one after the other."""
        return cls(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})

    def take(self, rows: Tensor | slice) -> Rows:
        """Return some of the rows, by a mask, by position, or a slice."""
        place = (lambda value: rows.to(value.device)) if isinstance(rows, Tensor) else (lambda value: rows)
        return Rows(**{name: value[place(value)] for name, value in vars(self).items()})

    def to(self, device: torch.device | str, *, copy: bool = False) -> Rows:
        """Return the rows on another device; the indices stay on the CPU."""
        moved = {name: value.to(device, copy=copy) for name, value in vars(self).items()}
        return replace(Rows(**moved), indices=self.indices)

    def check(self, *, num_features: int, num_targets: int, targets: TargetKind) -> Rows:
        """Return the rows with integers as int64.

        Raises
        ------
        CamhookError
            If a shape does not fit, values are not finite, a label is out of range, or a weight is negative.
        """
        count = len(self)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("weights", "labels", "predictions"), (count,))
        shapes |= {"features": (count, num_features), "targets": (count, num_targets)[: 1 + (targets != "labels")]}
        for name, shape in shapes.items():
            if (given := tuple(vars(self)[name].shape)) != shape:
                raise CamhookError(f"Found {name} of shape {given}, expected {shape}; pass one row per image.")
        for name in ("features", "targets"):
            finite = vars(self)[name].isfinite()
            broken = ~(finite if finite.ndim == 1 else finite.all(1))
            if broken.any():
                numbers = ", ".join(map(str, self.indices[broken.cpu()][:5].tolist()))
                found = f"Found {name} that are NaN or infinite for {int(broken.sum())} images (numbers {numbers})"
                raise CamhookError(f"{found}. Leave them out, or run the model in float32 or bfloat16.")
        if not ((self.weights >= 0) & self.weights.isfinite()).all():
            raise CamhookError("Found weights that are negative or not finite, expected 0 or more; mend or drop them.")
        if targets != "logits":
            check_labels(self.targets, num_targets)
        if count and self.indices.min() < 0:
            raise CamhookError(f"Found image number {self.indices.min()}, expected 0 or more; count them from 0.")
        whole = ("labels", "predictions", *(["targets"] if targets == "labels" else []))
        return replace(self, **{name: vars(self)[name].long() for name in whole})


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise `CamhookError` unless labels (B,) are integers from 0 to num_classes - 1, or labels (B, K) 0 or 1."""
    if labels.ndim == 2 and not ((labels == 0) | (labels == 1)).all():
        raise CamhookError("Found multi-label targets other than 0 and 1; pass 1 for each class in the image.")
    if labels.ndim == 1 and (labels.is_floating_point() or ((labels < 0) | (labels >= num_classes)).any()):
        kind = f" {labels.dtype}" if labels.is_floating_point() else ""
        found = f"Found labels{kind} from {labels.min()} to {labels.max()}"
        advice = "renumber them, or raise the number of classes"
        raise CamhookError(f"{found}, expected integers from 0 to {num_classes - 1}; {advice}.")


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Return how many images have each class (K,), of labels (B,) or (B, K)."""
    return labels.bincount(minlength=num_classes) if labels.ndim == 1 else (labels > 0).sum(0)


def check_counts(counts: Tensor, *, single: bool, names: Sequence[str] = (), held_out: Tensor | None = None) -> None:
    """Raise `CamhookError` if classes (K,) have no images, or one class is all there is where each image has one."""
    missing = (counts == 0).nonzero()[:, 0].tolist()
    if single and len(missing) >= len(counts) - 1:
        raise CamhookError("Found images of one class only, expected two or more; add images of what it is not.")
    if missing:
        listed = [names[c] if names else str(c) for c in missing[:10]]
        what, advice = "no images", "add images, or leave these classes out"
        if held_out is not None:
            listed = [f"{c} ({held_out[c]} held out)" if held_out[c] else f"{c}" for c in missing[:10]]
            what, advice = "no images to fit on", f"{advice}, or lower the hold-out's share"
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise CamhookError(f"Found {what} for class {', '.join(listed)}{more}; {advice}.")
