"""Images kept aside, as rows: those of the lowest hash, so that neither order nor ranks decide which."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from camhook.errors import CamhookError
from camhook.fitting.rows import Rows, sample_hash

__all__ = ["HoldOut"]


class HoldOut:
    """At most `capacity` images out of those whose hash is in the lowest `share` of all hashes; on the CPU.

    Parameters
    ----------
    kept : Rows
        What is held out; to start with, none.
    share, capacity, seed
        As in `camhook.fitting.statistics.Statistics`.
    """

    def __init__(self, kept: Rows, share: float, capacity: int, seed: int) -> None:
        self.kept, self.capacity, self.seed = kept, capacity, seed
        self._limit = np.uint64(int(share * 2**64))

    def hash(self, indices: Tensor) -> npt.NDArray[np.uint64]:
        """Return the images' hashes."""
        return sample_hash(indices.numpy(), self.seed)

    def wants(self, indices: Tensor) -> Tensor:
        """Return which images may be held out, a mask."""
        return torch.from_numpy(self.hash(indices) < self._limit)

    def sorted(self) -> Rows:
        """Return what is held out, in the order of the hash."""
        return self.kept.take(torch.from_numpy(np.argsort(self.hash(self.kept.indices))))

    def offer(self, rows: Rows) -> Rows:
        """Hold out some of the rows, and return what found no place or lost its own.

        Raises
        ------
        CamhookError
            An image is held out already; nothing has changed then.
        """
        held = len(self.kept)
        order = self._ranked(torch.cat([self.kept.indices, rows.indices]))
        stay, leave = order[: self.capacity], order[self.capacity :]
        coming, leaving = rows.take(stay[stay >= held] - held), leave[leave < held]
        lost = Rows.joined([self.kept.take(leaving), rows.take(leave[leave >= held] - held)])
        for name, value in vars(self.kept).items():  # in place: a full hold-out is large, and few rows change
            value[leaving] = vars(coming)[name][: len(leaving)]
        if len(coming) > len(leaving):
            self.kept = Rows.joined([self.kept, coming.take(torch.arange(len(leaving), len(coming)))])
        return lost

    def all_reduce(self, device: torch.device, group: dist.ProcessGroup | None = None) -> Rows:
        """Hold out on every rank the same images of all ranks, and return those of this rank that lost their place.

        Only indices and the rows that stay are exchanged: no rank needs memory for more than `capacity` rows.
        """
        if not self.capacity:
            return self.kept
        mine = torch.full((self.capacity,), -1, device=device)
        mine[: len(self.kept)] = self.kept.indices.to(device)
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, mine, group=group)
        indices = torch.cat(gathered).cpu()
        indices = indices[indices >= 0]
        indices = indices[self._ranked(indices)[: self.capacity]]
        stays = torch.isin(self.kept.indices, indices)
        lost, stay = self.kept.take(~stays), self.kept.take(stays)
        place = {index: row for row, index in enumerate(indices.tolist())}
        rows = torch.tensor([place[index] for index in stay.indices.tolist()], dtype=torch.int64)
        columns = {}
        for name, value in vars(stay).items():  # each rank fills its rows in among zeros
            column = value.new_zeros(len(indices), *value.shape[1:])
            column[rows] = value
            column = column.to(device)
            dist.all_reduce(column, group=group)
            columns[name] = column.cpu()
        self.kept = Rows(**columns)
        return lost

    def _ranked(self, indices: Tensor) -> Tensor:
        hashes = self.hash(indices)
        if len(np.unique(hashes)) < len(hashes):
            raise CamhookError("An image was counted twice; number the images of the data, each once.")
        return torch.from_numpy(np.argsort(hashes))
