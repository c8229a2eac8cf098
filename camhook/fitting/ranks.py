"""One process, or several that torch.distributed holds together: what each has, summed over all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks"]

T = TypeVar("T")


class Ranks:
    """The ranks that fit together; a single one where torch.distributed does not run.

    Parameters
    ----------
    device
        Where tensors have to be to be exchanged (NCCL knows CUDA only).

    Examples
    --------
    >>> ranks = Ranks("cpu")
    >>> ranks.rank, ranks.world, ranks.summed([1.0, 0.0])
    (0, 1, [1.0, 0.0])
    """

    def __init__(self, device: torch.device | str) -> None:
        running = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if running else 0
        self.world = dist.get_world_size() if running else 1
        self.device = torch.device(device)

    def summed(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over ranks; every rank must call."""
        if self.world == 1:
            return list(values)
        return self.sum_(torch.tensor(values, dtype=torch.float64)).tolist()

    def sum_(self, value: Tensor) -> Tensor:
        """Sum a tensor over ranks, in place if it is where ranks exchange; every rank must call."""
        if self.world == 1:
            return value
        there = value.to(self.device)
        dist.all_reduce(there)
        return value.copy_(there)

    def gathered(self, value: T) -> list[T]:
        """Return what each rank has, in their order; every rank must call."""
        if self.world == 1:
            return [value]
        found: list[T] = [value] * self.world
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Go on when all ranks are here."""
        if self.world > 1:
            dist.barrier()
