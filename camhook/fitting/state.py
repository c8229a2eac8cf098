"""State of a fit: moments of each cross-validation fold, and a bounded hold-out of whole rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from camhook.distributed import Ranks
from camhook.errors import CamhookError
from camhook.fitting.moments import Moments
from camhook.fitting.rows import Rows, TargetKind, check_counts, class_counts, sample_hash

__all__ = ["FitState"]

_BLOCK = 1024  # rows gathered before the matrix products: the Gram matrices are then read and written less often


class FitState:
    """Moments of each fold and rows held out, for the images seen so far; memory does not grow with the data.

    The fold of an image, and whether it is held out, depend on a hash of its number: the state is the same for any
    order, batch size and number of ranks.

    Parameters
    ----------
    num_features, num_targets : int
        C and K.
    targets : str
        See `camhook.fitting.rows.TargetKind`.
    folds, seed : int
        Parts of the cross-validation; seed of the hash.
    holdout, capacity : float, int
        Images whose hash is in the lowest ``holdout`` share are held out, at most the ``capacity`` lowest. Those beyond
        the capacity count in their fold, so that every image counts once.
    device : torch.device or str
        Where moments are summed, in float64 (which "mps" does not have).

    Examples
    --------
    >>> state = FitState(num_features=2, num_targets=3, holdout=0)
    >>> state.update(Rows.of([0, 1, 2], torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), torch.tensor([0, 1, 1])))
    >>> state.total().feature_mean.tolist(), state.total().class_counts.tolist()
    ([2.0, 3.0], [1, 2, 0])
    """

    def __init__(
        self,
        num_features: int,
        num_targets: int,
        *,
        targets: TargetKind = "labels",
        folds: int = 5,
        holdout: float = 0.1,
        capacity: int = 5000,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if targets not in get_args(TargetKind):
            raise CamhookError(f"Found targets={targets!r}, expected one of {', '.join(get_args(TargetKind))}.")
        if min(num_features, num_targets) < 1 or folds < 2 or not 0 <= holdout < 1 or capacity < 0:
            found = f"{num_features} features, {num_targets} targets, {folds=}, {holdout=}, {capacity=}"
            raise CamhookError(f"Found {found}; pass 1 or more, folds from 2, a hold-out from 0 to below 1.")
        self.seed, self.capacity, self.device = seed, capacity, torch.device(device)
        self._expected: dict[str, Any] = {"num_features": num_features, "num_targets": num_targets, "targets": targets}
        self._limit = np.uint64(int(holdout * 2**64))
        self._waiting: list[Rows] = []
        with torch.inference_mode(False):  # inference tensors could not be updated outside of it
            self._folds = [Moments.empty(num_features, num_targets, device) for _ in range(folds)]
            features, scores = (torch.zeros(0, n, dtype=torch.float64) for n in (num_features, num_targets))
            y = torch.zeros(0, dtype=torch.int64) if targets == "labels" else scores
            self._held_out = Rows.of(np.zeros(0, np.int64), features, y)

    @torch.no_grad()
    def update(self, rows: Rows) -> None:
        """Count a batch of images, each of which may count once; rows are summed up once there are enough.

        Raises
        ------
        CamhookError
            See `Rows.check`; or, when rows are summed up, if an image is held out twice.
        """
        with torch.inference_mode(False):
            self._waiting.append(rows.check(**self._expected).to(self.device, copy=True))
            if sum(map(len, self._waiting)) >= _BLOCK:
                self._sum_up()

    @property
    def folds(self) -> list[Moments]:
        """The moments of each fold, without the images held out."""
        self._sum_up()
        return self._folds

    @property
    def holdout(self) -> Rows:
        """The images held out, on the CPU, in the order of their hash."""
        self._sum_up()
        return self._held_out

    def total(self) -> Moments:
        """Return the moments of all folds together."""
        return Moments.merged(self.folds)

    def fold_of(self, indices: Tensor) -> npt.NDArray[np.int64]:
        """Return the fold (B,) of each image."""
        folds: npt.NDArray[np.int64] = (self._hash(indices) % np.uint64(len(self._folds))).astype(np.int64)
        return folds

    @torch.no_grad()
    def all_reduce(self, ranks: Ranks) -> None:
        """Count the images of all ranks; every rank must call. Of rows held out only those that stay are exchanged."""
        self._sum_up()
        if ranks.world == 1:
            return
        with torch.inference_mode(False):
            indices = torch.cat(ranks.gathered(self._held_out.indices))
            chosen = indices[self._order(indices)[: self.capacity]]
            stays = torch.isin(self._held_out.indices, chosen)
            lost = self._held_out.take(~stays)
            held_out = Rows.joined(ranks.gathered(self._held_out.take(stays)))
            self._held_out = held_out.take(self._order(held_out.indices))
            self._count(lost)
            for fold in self._folds:
                fold.all_reduce(ranks)

    def check_classes(self) -> None:
        """Raise `CamhookError` if a class has no images to fit on, or if there is one class only."""
        classes, kind = self._expected["num_targets"], self._expected["targets"]
        if kind != "logits":
            counts, held_out = self.total().class_counts, class_counts(self._held_out.targets, classes)
            check_counts(counts, single=kind == "labels", held_out=held_out)

    @torch.no_grad()
    def _sum_up(self) -> None:
        """Count the rows that wait."""
        if not any(map(len, self._waiting)):
            return
        with torch.inference_mode(False):
            rows = Rows.joined(self._waiting)
            rows = replace(rows, features=rows.features.double(), weights=rows.weights.double())
            if rows.targets.ndim == 2:
                rows = replace(rows, targets=rows.targets.double())
            chosen = torch.from_numpy(self._hash(rows.indices) < self._limit)
            self._count(self._hold_out(rows.take(chosen).to("cpu")))
            self._count(rows.take(~chosen))
            self._waiting = []

    def _hold_out(self, rows: Rows) -> Rows:
        """Hold out some of the rows, and return those beyond the capacity."""
        if not len(rows):
            return rows
        rows = Rows.joined([self._held_out, rows])
        order = self._order(rows.indices)
        self._held_out = rows.take(order[: self.capacity])
        return rows.take(order[self.capacity :])

    def _count(self, rows: Rows) -> None:
        folds = torch.from_numpy(self.fold_of(rows.indices))
        for number, fold in enumerate(self._folds):
            part = rows.take(folds == number).to(self.device)
            if len(part):
                targets = part.targets if part.targets.ndim == 2 else F.one_hot(part.targets, len(fold.square))
                fold.add(part.features, targets.double(), part.weights)

    def _hash(self, indices: Tensor) -> npt.NDArray[np.uint64]:
        return sample_hash(indices.numpy(), self.seed)

    def _order(self, indices: Tensor) -> Tensor:
        hashes = self._hash(indices)
        if len(np.unique(hashes)) < len(hashes):
            raise CamhookError("An image was counted twice; number the images of the data, each once.")
        return torch.from_numpy(np.argsort(hashes))
