"""Images as rows of pooled features and targets, checked; and the hash of an image's number that sorts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.errors import CamhookError

__all__ = ["Rows", "Targets", "sample_hash"]

Targets = Literal["labels", "multilabel", "logits"]
"""Labels (B,) of one class an image, 0 or 1 for each class (B, K), or any scores (B, K)."""


def sample_hash(indices: npt.ArrayLike, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Hash indices (N,) to (N,) uint64, one to one: SplitMix64 (Steele et al. 2014, doi 10.1145/2660193.2660195).

    Examples
    --------
    >>> sample_hash([0, 1]).tolist()
    [16294208416658607535, 7960286522194355700]
    """
    words: npt.NDArray[np.uint64] = (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    words = words + np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


@dataclass(frozen=True)
class Rows:
    """Images, row by row: pooled features and what they should give.

    Attributes
    ----------
    indices, weights
        (H,).
    features
        (H, C).
    targets
        (H,) int64 labels or (H, K) scores, as they were given.
    labels, predictions
        (H,) int64: the true class and the model's own top class, -1 where unknown.
    """

    indices: Tensor
    features: Tensor
    targets: Tensor
    weights: Tensor
    labels: Tensor
    predictions: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, rows: Tensor) -> Rows:
        """Return some of the rows, by a mask or by position."""
        return Rows(**{name: value[rows.to(value.device)] for name, value in vars(self).items()})

    def to(self, device: torch.device | str, *, copy: bool = False) -> Rows:
        """Return the rows on another device; the indices stay on the CPU."""
        moved = {name: value.to(device, copy=copy) for name, value in vars(self).items()}
        return replace(Rows(**moved), indices=self.indices)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return the rows of all parts, one after the other."""
        return cls(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})

    @classmethod
    def checked(
        cls,
        settings: Mapping[str, Any],
        indices: npt.ArrayLike | Tensor,
        features: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        labels: Tensor | None,
        predictions: Tensor | None,
    ) -> Rows:
        """Return a batch as rows; see `Statistics.update`, whose settings decide what fits."""
        kind, c, k = (settings[name] for name in ("targets", "num_features", "num_targets"))
        indices = indices.cpu() if isinstance(indices, Tensor) else indices
        index = torch.tensor(np.asarray(indices), dtype=torch.int64)  # a copy: the caller may go on with theirs
        labels = targets if kind == "labels" else labels
        unknown = torch.full(index.shape, -1)
        given = {
            "features": (features, (len(index), c)),
            "targets": (targets, (len(index),) if kind == "labels" else (len(index), k)),
            "weights": (torch.ones(len(index)) if weights is None else weights, (len(index),)),
            "labels": (unknown if labels is None else labels, (len(index),)),
            "predictions": (unknown if predictions is None else predictions, (len(index),)),
        }
        for name, (value, shape) in given.items():
            if tuple(value.shape) != shape:
                raise CamhookError(
                    f"Found {name} of shape {tuple(value.shape)}, expected {shape}; pass one row an image."
                )
        weights = given["weights"][0]
        if not ((weights >= 0) & weights.isfinite()).all():
            raise CamhookError("Found weights that are negative or not finite, expected 0 or more; mend or drop them.")
        if kind == "labels" and (targets.is_floating_point() or ((targets < 0) | (targets >= k)).any()):
            found = f"Found labels {targets.dtype} from {targets.min()} to {targets.max()}"
            raise CamhookError(f"{found}, expected integers from 0 to {k - 1}; renumber them, or raise the classes.")
        if kind == "multilabel" and not ((targets == 0) | (targets == 1)).all():
            raise CamhookError("Found multi-label targets other than 0 and 1; pass 1 for each class in the image.")
        if len(index) and index.min() < 0:
            raise CamhookError(f"Found image number {index.min()}, expected 0 or more; count them from 0.")
        columns = {name: value.detach() for name, (value, _) in given.items()}
        for name in ("labels", "predictions", *(["targets"] if kind == "labels" else [])):
            columns[name] = columns[name].long()
        return cls(index, **columns)
