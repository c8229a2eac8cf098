"""Targets of a probe: its classes and their names, the weights of images, and which classes the model shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from camhook.adapters.timm import imagenet_index
from camhook.errors import CamhookError, TargetError, UnsupportedModelError
from camhook.fitting.rows import Rows, TargetKind, check_counts, check_labels, class_counts
from camhook.targets import ClassNames

__all__ = ["Targets", "balanced_weights", "find_targets", "known_classes"]

_UNKNOWN = torch.zeros(0, dtype=torch.int64)
ClassWeight = Literal["balanced"] | Sequence[float] | Tensor | None


@dataclass(frozen=True)
class Targets:
    """What the probe learns from rows of features.

    Attributes
    ----------
    kind, num_classes, class_names
        See `camhook.fitting.rows.TargetKind`; K; one name per class, or none.
    labels : Tensor, optional
        (N,) or (N, K), where the data's labels are known: they count, not those that were stored with the features.
    of_label, of_prediction : Tensor
        From a label in the data, or from the model's top class, to the probe's class; empty where that is not known.
    class_weights, sample_weights : Tensor, optional
        (K,) and (N,).
    """

    kind: TargetKind
    num_classes: int
    class_names: tuple[str, ...]
    labels: Tensor | None = None
    of_label: Tensor = _UNKNOWN
    of_prediction: Tensor = _UNKNOWN
    class_weights: Tensor | None = None
    sample_weights: Tensor | None = None

    def of(self, rows: Rows) -> Rows:
        """Return stored rows with the targets, classes and weights to fit with.

        Raises
        ------
        CamhookError
            If there is no weight for an image.
        """
        targets, labels = rows.targets, rows.labels
        if self.labels is not None:
            known = self.labels[rows.indices].to(targets.device)
            targets = targets if self.kind == "logits" else known
            labels = known if known.ndim == 1 else labels
        weights = rows.weights
        if self.sample_weights is not None:
            if (last := int(rows.indices.max())) >= len(self.sample_weights):
                raise CamhookError(
                    f"Found {len(self.sample_weights)} sample weights and image {last}; pass one per image."
                )
            weights = weights * self.sample_weights[rows.indices].to(weights.device)
        if self.class_weights is not None:
            weights = weights * _translated(targets, self.class_weights, missing=0.0)
        if self.kind == "logits":
            labels, predictions = _translated(labels, self.of_label), targets.argmax(1)
        else:
            labels = targets if self.kind == "labels" else torch.full_like(rows.predictions, -1)
            predictions = _translated(rows.predictions, self.of_prediction)
        return replace(rows, targets=targets, labels=labels, predictions=predictions, weights=weights)


def find_targets(
    *,
    kind: Literal["labels", "logits"],
    first: Tensor | None,
    labels: Tensor | None,
    num_logits: int | None,
    model_names: ClassNames,
    data_names: Sequence[str],
    num_classes: int | None = None,
    class_weight: ClassWeight = None,
    sample_weight: Sequence[float] | Tensor | None = None,
    size: int | None = None,
) -> Targets:
    """Find out what is to be learned, before any image but the first has been run.

    Parameters
    ----------
    kind, num_classes, class_weight, sample_weight
        As in `camhook.fitting.fit.fit`, where ``kind`` is ``targets``.
    first, labels : Tensor, optional
        The label of the first image, () or (K,), and of all (N,) or (N, K), where they are known.
    num_logits, size : int, optional
        How many logits the model gives; number of images N.
    model_names, data_names
        The classes of the model and of the data.

    Raises
    ------
    CamhookError
        If the data do not go with the targets, or a class has no images.
    """
    sample_weights = None if sample_weight is None else torch.as_tensor(sample_weight, dtype=torch.float64).cpu()
    if sample_weights is not None and size is not None and size > len(sample_weights):
        raise CamhookError(f"Found {len(sample_weights)} sample weights and image {size - 1}; pass one per image.")
    names = tuple(map(str, data_names))
    if kind == "logits":
        if num_logits is None:
            raise UnsupportedModelError(
                "This model has no head, so there are no scores to learn. Pass labelled images and targets='labels'."
            )
        if class_weight is not None:
            raise CamhookError("Found class_weight= for targets='logits', which have no classes; leave it out.")
        own = tuple(model_names.label(c) for c in range(num_logits)) if len(model_names) == num_logits else ()
        found = known_classes(names, model_names, num_logits)
        of_label = _UNKNOWN if found is None else found
        return Targets("logits", num_logits, own, labels, of_label, sample_weights=sample_weights)
    if first is None:
        raise CamhookError(
            "Found images without labels. Pass a folder with a folder of images per class, or pairs (image, label); or "
            "targets='logits', which learns the model's own logits."
        )
    count = _count(first, names, num_classes, labels)
    single = first.ndim == 0
    if labels is not None and single:  # so that this is said before the epoch
        check_labels(labels, count)
        check_counts(class_counts(labels, count), single=True, names=names)
    shared = known_classes(names, model_names, count) if num_logits == count and names and len(model_names) else None
    comparable = num_logits == count and (shared is not None or not names or not len(model_names))
    of_prediction = torch.arange(count) if shared is None else torch.argsort(shared)
    return Targets(
        kind="labels" if single else "multilabel",
        num_classes=count,
        class_names=names,
        labels=labels,
        of_prediction=of_prediction if comparable else _UNKNOWN,
        class_weights=_class_weights(class_weight, labels, count, single=single),
        sample_weights=sample_weights,
    )


def known_classes(names: Sequence[str], model_names: ClassNames, num_classes: int) -> Tensor | None:
    """Return which class of the model each name means, by its name or WordNet number; None unless all are known.

    Examples
    --------
    >>> known_classes(["dog", "cat"], ClassNames(["cat, puss", "dog", "eel"]), 3).tolist()
    [1, 0]
    """
    if not names:
        return None
    try:
        found: list[int | None] = [model_names.index(name) for name in names]
    except TargetError:
        found = imagenet_index(names) if num_classes == 1000 else [None]
    return None if None in found or len(set(found)) < len(found) else torch.tensor(found)


def balanced_weights(class_counts: Tensor) -> Tensor:
    """Return a weight (K,) for each class, N / (K n_k), so that all weigh the same; 0 for a class without images.

    Examples
    --------
    >>> balanced_weights(torch.tensor([1, 3])).tolist()
    [2.0, 0.6666666666666666]
    """
    counts = class_counts.double()
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp(min=1)), 0.0)


def _translated(classes: Tensor, table: Tensor, missing: float = -1) -> Tensor:
    """Return the entry of each class (B,) in a table (K,), and another number for classes that are not in it."""
    padded = torch.cat([table, table.new_full((1,), missing)]).to(classes.device)
    return padded[torch.where((classes >= 0) & (classes < len(table)), classes, len(table)).long()]


def _count(first: Tensor, names: Sequence[str], num_classes: int | None, labels: Tensor | None) -> int:
    known = num_classes or len(names)
    if num_classes and names and num_classes != len(names):
        raise CamhookError(f"Found num_classes={num_classes} and {len(names)} class names; pass one of them.")
    if first.ndim:
        if known and known != len(first):
            raise CamhookError(f"Found {len(first)} labels an image and {known} classes; pass 0 or 1 for each class.")
        return len(first)
    if first.is_floating_point() or first.dtype == torch.bool:
        raise CamhookError(f"Found labels of {first.dtype}, expected a class's number, or 0 or 1 for each class.")
    if not known and labels is None:
        raise CamhookError("How many classes there are is not known: pass class_names= or num_classes=.")
    return known if labels is None else known or int(labels.max()) + 1


def _class_weights(given: ClassWeight, labels: Tensor | None, count: int, *, single: bool) -> Tensor | None:
    if given is None:
        return None
    if not single:
        raise CamhookError("Found class_weight= for several labels an image; pass sample_weight= in its place.")
    if isinstance(given, str):
        if given != "balanced":
            raise CamhookError(f"Found class_weight={given!r}, expected 'balanced' or a weight for each class.")
        if labels is None:
            raise CamhookError(
                "Found class_weight='balanced' for data whose labels are not known before they are read. Pass a weight "
                "for each class, or a Dataset with .targets."
            )
        return balanced_weights(labels.bincount(minlength=count))
    weights = torch.as_tensor(given, dtype=torch.float64).cpu()
    if weights.shape != (count,) or not ((weights >= 0) & weights.isfinite()).all():
        raise CamhookError(f"Found class weights {tuple(weights.shape)}, expected ({count},), finite and 0 or more.")
    return weights
