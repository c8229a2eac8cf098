"""What a probe is to learn: how many classes, called what, weighed how, and which of them the model knows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from camhook.errors import CamhookError, TargetError, UnsupportedModelError
from camhook.fitting.batches import Batch
from camhook.fitting.items import Source
from camhook.fitting.rows import Targets
from camhook.fitting.solvers import balanced_weights
from camhook.targets import ClassNames

__all__ = ["Goal", "goal_of", "known_classes"]


@dataclass(frozen=True)
class Goal:
    """What the probe learns.

    Attributes
    ----------
    kind
        See `camhook.fitting.rows.Targets`.
    num_classes, class_names
        Of the probe; names may be none.
    scores : bool
        Whether the model gives scores of its own.
    of_label, of_prediction : Tensor, optional
        From a label in the data, or the model's own class, to the probe's class; -1 where it has none. None: unknown.
    class_weights, sample_weights : Tensor, optional
        (K,) and (N,).
    """

    kind: Targets
    num_classes: int
    class_names: tuple[str, ...]
    scores: bool
    of_label: Tensor | None = None
    of_prediction: Tensor | None = None
    class_weights: Tensor | None = None
    sample_weights: Tensor | None = None

    @property
    def weighted(self) -> str:
        """What tells these weights from others; empty if there are none."""
        weights = [w for w in (self.class_weights, self.sample_weights) if w is not None]
        return hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights)).hexdigest()[:16] if weights else ""

    def weights(self, indices: list[int], labels: Tensor | None) -> Tensor | None:
        """Return the weights (B,) of images, or None where all are 1."""
        if self.class_weights is None and self.sample_weights is None:
            return None
        found = torch.ones(len(indices), dtype=torch.float64)
        if self.sample_weights is not None:
            if max(indices) >= len(self.sample_weights):
                raise CamhookError(f"Found {len(self.sample_weights)} sample weights and image {max(indices)}.")
            found *= self.sample_weights[indices]
        if self.class_weights is not None and labels is not None:
            found *= self.class_weights[labels.cpu()]
        return found


def goal_of(
    num_logits: int | None,
    names: ClassNames,
    source: Source,
    first: Batch,
    targets: Literal["labels", "logits"],
    class_names: Sequence[str] | None,
    num_classes: int | None,
    class_weight: Literal["balanced"] | Sequence[float] | Tensor | None,
    sample_weight: Sequence[float] | Tensor | None,
) -> Goal:
    """Tell what is to be learned, before any image but the first has been run.

    Parameters
    ----------
    num_logits, names
        How many scores the model gives, None if none; its classes.
    first : Batch
        Of one image.

    Raises
    ------
    CamhookError
        The data do not go with the targets, or a class has no images.
    """
    sample_weights = None if sample_weight is None else torch.as_tensor(sample_weight, dtype=torch.float64).cpu()
    said = tuple(map(str, class_names if class_names is not None else source.class_names))
    if targets == "logits":
        if num_logits is None:
            raise UnsupportedModelError(
                "This model has no head, so there are no scores to learn. Pass labelled images and targets='labels'."
            )
        if class_weight is not None:
            raise CamhookError("Found class_weight= for targets='logits', which have no classes; leave it out.")
        own = tuple(names.label(c) for c in range(num_logits)) if len(names) == num_logits else ()
        return Goal(
            "logits", num_logits, own, True, known_classes(said, names, num_logits), sample_weights=sample_weights
        )
    label = None if first.labels is None else first.labels[0]
    if label is None:
        raise CamhookError(
            "Found images without labels. Pass a folder of a folder a class, or pairs (image, label); or "
            "targets='logits', which learns the model's own scores."
        )
    kind: Targets = "labels" if label.ndim == 0 else "multilabel"
    count = _count(kind, label, said, num_classes, source.labels)
    if source.labels is not None and kind == "labels":
        _check_labels(source.labels, count, said)
    weights = _class_weights(class_weight, kind, source.labels, count)
    comparable = num_logits == count and (not said or not len(names) or known_classes(said, names, count) is not None)
    to_model = known_classes(said, names, count) if num_logits == count and said and len(names) else None
    of_prediction = torch.arange(count) if to_model is None else torch.argsort(to_model)
    return Goal(
        kind,
        count,
        said,
        num_logits is not None,
        None,
        of_prediction if comparable else None,
        weights,
        sample_weights,
    )


def known_classes(said: Sequence[str], names: ClassNames, num_classes: int) -> Tensor | None:
    """Return which class of the model each name means, by its name or WordNet number; None unless all are known.

    Examples
    --------
    >>> known_classes(["dog", "cat"], ClassNames(["cat, puss", "dog", "eel"]), 3).tolist()
    [1, 0]
    """
    if not said:
        return None
    found = [_index(name, names) for name in said]
    if None in found:
        found = _by_wordnet(said, num_classes)
    if None in found or len(set(found)) < len(found):
        return None
    return torch.tensor(found)


def _index(name: str, names: ClassNames) -> int | None:
    try:
        return names.index(name)
    except TargetError:
        return None


def _by_wordnet(said: Sequence[str], num_classes: int) -> list[int | None]:
    from timm.data import ImageNetInfo

    if num_classes != 1000:
        return [None]
    numbers = {name: index for index, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return [numbers.get(name) for name in said]


def _count(kind: Targets, label: Tensor, said: Sequence[str], num_classes: int | None, labels: Tensor | None) -> int:
    known = num_classes or len(said)
    if num_classes and said and num_classes != len(said):
        raise CamhookError(f"Found num_classes={num_classes} and {len(said)} class names; pass one of them.")
    if kind == "multilabel":
        if known and known != len(label):
            raise CamhookError(f"Found {len(label)} labels an image and {known} classes; pass 0 or 1 for each class.")
        return len(label)
    if label.is_floating_point() or label.dtype == torch.bool:
        raise CamhookError(f"Found labels of {label.dtype}, expected a class's number, or 0 or 1 for each class.")
    if not known and labels is None:
        raise CamhookError("How many classes there are is not known: pass class_names= or num_classes=.")
    return known or int(labels.max()) + 1 if labels is not None else known


def _check_labels(labels: Tensor, count: int, said: Sequence[str]) -> None:
    """Say before the pass what would be an error after it."""
    if not len(labels):
        raise CamhookError("Found no images: the data are empty.")
    if (labels < 0).any() or (labels >= count).any():
        found = f"Found labels from {labels.min()} to {labels.max()}"
        raise CamhookError(f"{found}, expected integers from 0 to {count - 1}; renumber them, or raise the classes.")
    counts = labels.bincount(minlength=count)
    if int((counts > 0).sum()) < 2:
        raise CamhookError("Found images of one class only, expected two or more; add images of what it is not.")
    if missing := (counts == 0).nonzero()[:, 0].tolist():
        listed = ", ".join(said[c] if said else str(c) for c in missing[:10]) + " ..." * (len(missing) > 10)
        raise CamhookError(f"Found no images for class {listed}; add some, or leave these classes out.")


def _class_weights(
    given: Literal["balanced"] | Sequence[float] | Tensor | None, kind: Targets, labels: Tensor | None, count: int
) -> Tensor | None:
    if given is None:
        return None
    if kind != "labels":
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
