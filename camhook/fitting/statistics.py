"""What a fit has to remember of its images: moments of each fold, and a bounded hold-out of whole rows.

Memory does not grow with the data. Which fold an image counts in, and whether it is held out, is a hash of its index:
the same for any order, any batch size and any number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from camhook.errors import CamhookError
from camhook.fitting.holdout import HoldOut
from camhook.fitting.moments import Moments
from camhook.fitting.rows import Rows, Targets

__all__ = ["Statistics"]

_BLOCK = 1024  # rows gathered before the matrix products: the Gram matrices are then read and written less often


class Statistics:
    """All that a ridge probe needs of the images it has seen.

    Parameters
    ----------
    num_features, num_targets
        C and K.
    targets
        What the probe learns; see `camhook.fitting.rows.Targets`.
    folds
        How many parts cross-validation has.
    holdout, capacity
        Images whose hash is in the lowest `holdout` share are held out, at most the `capacity` lowest. What more data
        pushes out of the hold-out counts in its fold: every image counts once.
    seed
        Of the hash.
    device
        Where moments are summed; needs float64 (so not "mps").

    Examples
    --------
    >>> statistics = Statistics(num_features=2, num_targets=3, holdout=0)
    >>> statistics.update([0, 1, 2], torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), torch.tensor([0, 1, 1]))
    >>> statistics.total().feature_mean.tolist(), statistics.total().class_counts.tolist()
    ([2.0, 3.0], [1, 2, 0])
    """

    def __init__(
        self,
        num_features: int,
        num_targets: int,
        *,
        targets: Targets = "labels",
        folds: int = 5,
        holdout: float = 0.1,
        capacity: int = 5000,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if targets not in get_args(Targets):
            raise CamhookError(f"Found targets={targets!r}, expected one of {', '.join(get_args(Targets))}.")
        if min(num_features, num_targets) < 1 or folds < 2 or not 0 <= holdout < 1 or capacity < 0:
            found = f"{num_features} features, {num_targets} targets, {folds=}, {holdout=}, {capacity=}"
            raise CamhookError(f"Found {found}; pass 1 or more, folds from 2, a hold-out from 0 to below 1.")
        self.settings: dict[str, Any] = {
            "num_features": num_features,
            "num_targets": num_targets,
            "targets": targets,
            "folds": folds,
            "holdout": holdout,
            "capacity": capacity,
            "seed": seed,
        }
        self.device = torch.device(device)
        self._waiting: list[Rows] = []
        self._torn = False
        with torch.inference_mode(False):  # such tensors could not be added to outside of it
            self._folds = [Moments.empty(num_features, num_targets, device) for _ in range(folds)]
            whole = torch.zeros(0, dtype=torch.int64)
            features, scores = (torch.zeros(0, n, dtype=torch.float64) for n in (num_features, num_targets))
            y, weights = whole if targets == "labels" else scores, torch.zeros(0, dtype=torch.float64)
            none = Rows(whole, features, y, weights, labels=whole, predictions=whole)
            self._held = HoldOut(none, holdout, capacity, seed)

    def update(
        self,
        indices: npt.ArrayLike | Tensor,
        features: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        predictions: Tensor | None = None,
    ) -> None:
        """Count a batch of images; sums are made once enough have come, or when something is read.

        Parameters
        ----------
        indices
            (B,), the images' numbers in the data, from 0; one counts once.
        features
            (B, C), pooled.
        targets
            (B,) integers for "labels", else (B, K).
        weights
            (B,) of 0 or more; default 1.
        labels, predictions
            (B,) the true class and the model's own top class, where known: kept with the hold-out. With targets
            "labels", `labels` are the targets.

        Raises
        ------
        CamhookError
            Shapes do not fit, labels or weights are out of range (here), or values are not finite (when summed up).
        """
        with torch.inference_mode(False), torch.no_grad():
            rows = Rows.checked(self.settings, indices, features, targets, weights, labels, predictions)
            self._waiting.append(rows.to(self.device, copy=True))
            if sum(map(len, self._waiting)) >= _BLOCK:
                self._sum_up()

    @property
    def folds(self) -> list[Moments]:
        """The moments of each fold."""
        self._sum_up()
        return self._folds

    @property
    def holdout(self) -> Rows:
        """The images held out, in the order of their hash."""
        self._sum_up()
        return self._held.sorted()

    def total(self) -> Moments:
        """Return the moments of all folds together."""
        return Moments.pooled(self.folds)

    def merge(self, other: Statistics) -> None:
        """Count another's images too: what it has seen must be other images.

        Raises
        ------
        CamhookError
            The two were made with different settings, or hold out the same image.
        """
        if differing := [f"{k}={v!r}" for k, v in other.settings.items() if self.settings[k] != v]:
            raise CamhookError(f"Statistics with other settings cannot be merged: {', '.join(differing)} differ.")
        with torch.inference_mode(False), torch.no_grad():
            self._sum_up()
            theirs, held_out = other.folds, other.holdout
            with self._changing():
                self._count(self._held.offer(held_out))
                for fold, their in zip(self._folds, theirs, strict=True):
                    fold.merge(Moments(**{name: value.to(self.device) for name, value in vars(their).items()}))

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Statistics:
        """Return the statistics of all ranks' images, the same on each; every rank must call, also one without images.

        Where torch.distributed does not run, this is a copy.
        """
        with torch.inference_mode(False), torch.no_grad():
            result = Statistics(**self.settings, device=self.device)
            result.load_state_dict(self.state_dict())
            if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
                result._count(result._held.all_reduce(self.device, group))
                for fold in result._folds:
                    fold.all_reduce(group)
            return result

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors by name, as copies on the CPU; with `settings` they are the whole state."""
        state = {
            f"folds.{name}": torch.stack([vars(fold)[name] for fold in self.folds]).cpu()
            for name in vars(self.folds[0])
        }
        return state | {f"holdout.{name}": value.clone() for name, value in vars(self.holdout).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; of the same settings.

        Raises
        ------
        CamhookError
            A tensor is missing or has another shape.
        """
        own = self.state_dict()
        for name, value in own.items():
            skip = int(name.startswith("holdout."))  # how many are held out is free
            if name not in state or state[name].shape[skip:] != value.shape[skip:] or state[name].dtype != value.dtype:
                found = f"{state[name].dtype} {tuple(state[name].shape)}" if name in state else "nothing"
                expected = f"{value.dtype} {tuple(value.shape)}"
                raise CamhookError(f"Found {found} for {name}, expected {expected}; load it with its own settings.")
        for number, fold in enumerate(self._folds):
            for name, value in vars(fold).items():
                value.copy_(state[f"folds.{name}"][number])
        self._held.kept = Rows(**{name: state[f"holdout.{name}"].clone() for name in vars(self._held.kept)})
        self._waiting = []

    def check_classes(self) -> None:
        """Raise a CamhookError if a class has no images to fit on, or if there is one class only."""
        classes, targets = self.settings["num_targets"], self.settings["targets"]
        if targets == "logits":
            return
        counts = self.total().class_counts
        missing = (counts == 0).nonzero()[:, 0].tolist()
        if targets == "labels" and (classes == 1 or len(missing) == classes - 1):
            raise CamhookError("Found images of one class only, expected two or more; add images of what it is not.")
        if missing:
            held = self._held.kept.targets
            held_counts = held.bincount(minlength=classes) if held.ndim == 1 else (held > 0).sum(0)
            listed = ", ".join(f"{c} ({held_counts[c]} held out)" if held_counts[c] else f"{c}" for c in missing[:10])
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            advice = "add images, leave these classes out, or lower the hold-out's share"
            raise CamhookError(f"Found no images to fit on for class {listed}{more}; {advice}.")

    def _sum_up(self) -> None:
        """Count the rows that wait; on an error they go on waiting and nothing was counted."""
        if self._torn:
            raise CamhookError("The sums were interrupted half-way and are of no use; go on from the last checkpoint.")
        if not any(map(len, self._waiting)):
            return
        with torch.inference_mode(False), torch.no_grad():
            rows = Rows.joined(self._waiting)
            rows = replace(rows, features=rows.features.double(), weights=rows.weights.double())
            if rows.targets.is_floating_point() or rows.targets.ndim == 2:
                rows = replace(rows, targets=rows.targets.double())
            for name in ("features", "targets"):
                broken = ~vars(rows)[name].isfinite().reshape(len(rows), -1).all(1)
                if broken.any():
                    listed = ", ".join(map(str, rows.take(broken).indices[:5].tolist()))
                    found = f"Found {name} that are NaN or infinite in {int(broken.sum())} images (first: {listed})"
                    raise CamhookError(f"{found}; run the model in float32 or bfloat16, or leave these images out.")
            chosen = self._held.wants(rows.indices)
            with self._changing():
                self._count(self._held.offer(rows.take(chosen).to("cpu")))
                self._count(rows.take(~chosen))
                self._waiting = []

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Remember if this is not gone through to its end; a refusal comes before anything has changed."""
        self._torn = True
        try:
            yield
        except CamhookError:
            self._torn = False
            raise
        self._torn = False

    def _count(self, rows: Rows) -> None:
        folds = self._held.hash(rows.indices) % np.uint64(len(self._folds))
        for number, fold in enumerate(self._folds):
            part = rows.take(torch.from_numpy(folds == number)).to(self.device)
            if len(part):
                fold.add(part.features, part.targets, part.weights)
