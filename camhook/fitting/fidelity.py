"""Fidelity of a probe: accuracy, agreement with the model, R2 and calibration on images held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from camhook.errors import CamhookError
from camhook.fitting.rows import Rows

__all__ = ["Confidence", "Fidelity", "measure"]

Confidence = Literal["softmax", "sigmoid", "identity"]
"""From scores to probabilities; "identity" (clamped to 0..1) for least squares on labels of 0 and 1."""

_BINS = 15


@dataclass(frozen=True)
class Fidelity:
    """Measures on the images held out; None where there is nothing to compare with.

    Attributes
    ----------
    images : int
        How many were held out, with weight.
    top1, top5 : float
        Share of images whose true class (one of those, with several labels) has the highest score, or one of the five
        highest of more than five classes.
    agreement : float
        Share of images whose top class is the model's own.
    r2, r2_per_class : float, tuple of float
        1 - squared error / squared deviation from the mean, of the logits; NaN for a class whose logit never changes.
        The overall one sums both over classes first.
    calibration_error : float
        The expected calibration error: over 15 bins of confidence, the mean of |accuracy - confidence| weighted by
        images (Guo et al. 2017, arXiv 1706.04599). Against true classes where all are known, else the model's own.
    reliability : tuple of (confidence, accuracy, images)
        Of each bin that is not empty.
    """

    images: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    r2: float | None = None
    r2_per_class: tuple[float, ...] = ()
    calibration_error: float | None = None
    reliability: tuple[tuple[float, float, int], ...] = ()


def measure(scores: Tensor, held_out: Rows, *, logits: bool, confidence: Confidence = "softmax") -> Fidelity:
    """Compare scores (H, K) with the rows held out, whose targets are labels or the model's logits.

    Raises
    ------
    CamhookError
        If there is not one row of scores per image.

    Examples
    --------
    >>> rows = Rows.of(range(3), torch.zeros(3, 1), torch.tensor([0, 1, 1]), labels=torch.tensor([0, 1, 1]))
    >>> round(measure(torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), rows, logits=False).top1, 2)
    0.67
    """
    if scores.ndim != 2 or len(scores) != len(held_out):
        raise CamhookError(f"Found scores {tuple(scores.shape)}, expected ({len(held_out)}, K): one row per image.")
    used = held_out.weights > 0
    scores, rows = scores.detach().cpu().double()[used], held_out.take(used)
    if not len(rows):
        return Fidelity(0)
    ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices
    own = _one_hot(rows.predictions, scores.shape[1])
    several = not logits and rows.targets.ndim == 2
    true = rows.targets > 0 if several else _one_hot(rows.labels, scores.shape[1])
    truth = own if true is None else true
    top1, agreement = (None if known is None else _share(known.gather(1, ranked[:, :1])) for known in (true, own))
    chances = {"softmax": scores.softmax(1), "sigmoid": scores.sigmoid(), "identity": scores.clamp(0, 1)}[confidence]
    error, bins = (None, ()) if truth is None else _calibration(chances, truth)
    overall, per_class = _r2(scores, rows.targets) if logits else (None, ())
    return Fidelity(
        images=len(rows),
        top1=top1,
        top5=_share(true.gather(1, ranked).any(1)) if true is not None and scores.shape[1] > 5 else None,
        agreement=agreement,
        r2=overall,
        r2_per_class=per_class,
        calibration_error=error,
        reliability=bins,
    )


def _one_hot(classes: Tensor, count: int) -> Tensor | None:
    """Return (H, K) booleans, or None where a class is unknown or not one of these."""
    known = ((classes >= 0) & (classes < count)).all()
    return F.one_hot(classes, count).bool() if known else None


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def _calibration(probabilities: Tensor, truth: Tensor) -> tuple[float, tuple[tuple[float, float, int], ...]]:
    sure, top = probabilities.max(1)
    right = truth.gather(1, top[:, None])[:, 0].double()
    number = (sure * _BINS).long().clamp(max=_BINS - 1)
    bins = [(sure[number == b], right[number == b]) for b in number.unique().tolist()]
    found = tuple((s.mean().item(), r.mean().item(), len(s)) for s, r in bins)
    return sum(abs(accuracy - sure) * images for sure, accuracy, images in found) / len(truth), found


def _r2(scores: Tensor, targets: Tensor) -> tuple[float | None, tuple[float, ...]]:
    wrong = (targets - scores).square().sum(0)
    spread = (targets - targets.mean(0)).square().sum(0)
    per_class = torch.where(spread > 0, 1 - wrong / spread, torch.nan)
    return (1 - wrong.sum() / spread.sum()).item() if spread.sum() > 0 else None, tuple(per_class.tolist())
