"""Pooled features kept row by row, for solvers that need them all: in memory, or in files that are mapped to it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.distributed import Ranks
from camhook.errors import CamhookError, OutputError

__all__ = ["FeatureCache"]


class FeatureCache:
    """Row i holds image i; writing it again changes nothing, so a killed run may go on with the same folder.

    Parameters
    ----------
    size, num_features : int
        How many images N there are at most, and features C.
    num_targets : int, optional
        K, for targets (N, K); default one label an image.
    folder : path, optional
        Where to keep the rows as ``.npy`` files; default in memory.

    Attributes
    ----------
    features, targets, weights : Tensor
        (N, C) float32; (N,) int64 or (N, K) float32; (N,) float64, 0 for a row that was never written.

    Raises
    ------
    OutputError
        The folder cannot be written to.
    CamhookError
        It holds rows of another size.

    Examples
    --------
    >>> cache = FeatureCache(3, 2)
    >>> cache.write([2], torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    >>> cache.features[2].tolist(), cache.weights.tolist()
    ([1.0, 2.0], [0.0, 0.0, 1.0])
    """

    def __init__(
        self,
        size: int,
        num_features: int,
        *,
        num_targets: int | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._mapped: list[np.memmap[tuple[int, ...], np.dtype[np.generic]]] = []
        self.features = self._column("features", (size, num_features), np.dtype(np.float32))
        shape, kind = ((size,), np.int64) if num_targets is None else ((size, num_targets), np.float32)
        self.targets = self._column("targets", shape, np.dtype(kind))
        self.weights = self._column("weights", (size,), np.dtype(np.float64))

    def write(
        self, indices: npt.ArrayLike | Tensor, features: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> None:
        """Set the rows of images (B,): features (B, C), targets (B,) or (B, K), weights (B,) above 0, default 1."""
        index = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        self.features[index] = features.detach().to("cpu", torch.float32)
        self.targets[index] = targets.detach().to("cpu", self.targets.dtype)
        self.weights[index] = (torch.ones(len(index)) if weights is None else weights.detach()).to("cpu", torch.float64)

    def flush(self) -> None:
        """Have the disk hold all rows written so far; do this before a checkpoint says that they are done."""
        for mapped in self._mapped:
            mapped.flush()

    def share(self, ranks: Ranks) -> None:
        """Have all ranks hold the rows that each has written; every rank must call."""
        self.flush()
        ranks.wait()
        if self._folder is None:
            for column in (self.features, self.targets, self.weights):
                ranks.sum_(column)

    def _column(self, name: str, shape: tuple[int, ...], kind: np.dtype[np.generic]) -> Tensor:
        if self._folder is None:
            return torch.from_numpy(np.zeros(shape, kind))
        path = self._folder / f"{name}.npy"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                partial = path.with_suffix(".part")  # a run killed here leaves no file that is too short
                np.lib.format.open_memmap(partial, mode="w+", dtype=kind, shape=shape).flush()
                os.replace(partial, path)
            mapped = np.lib.format.open_memmap(path, mode="r+")
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be used: {error}. Choose another folder, or make room.") from error
        if mapped.shape != shape or mapped.dtype != kind:
            found = f"{mapped.dtype} {mapped.shape}"
            raise CamhookError(
                f"{path} holds {found}, expected {kind} {shape}; it is of other data: choose another folder."
            )
        self._mapped.append(mapped)
        return torch.from_numpy(mapped)
