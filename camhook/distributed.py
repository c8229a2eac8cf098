"""Which part of the work is this process's, and on which device, as torchrun or a cluster says by the environment."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from camhook.errors import CamhookError

__all__ = ["Share", "device_for"]

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """One of several processes that divide the work, each by itself.

    Attributes
    ----------
    rank, world : int
        Which one, of how many.
    local_rank, local_world : int
        The same, among those on this machine.

    Examples
    --------
    >>> Share.from_environment({"RANK": "1", "WORLD_SIZE": "3"}).of("abcdefg")
    ['b', 'e']
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Share:
        """Read ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``; without them, all is this process's.

        Raises
        ------
        CamhookError
            If they are no numbers, or there is no such rank.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        found = {name: environment[name] for name in names if name in environment}
        said = " ".join(f"{name}={value}" for name, value in found.items())
        try:
            numbers = {name: int(value) for name, value in found.items()}
        except ValueError as error:
            raise CamhookError(f"Found {said} in the environment; whole numbers were expected.") from error
        rank, world = numbers.get("RANK", 0), numbers.get("WORLD_SIZE", 1)
        if not 0 <= rank < world or (world > 1 and "RANK" not in numbers):
            raise CamhookError(
                f"Found {said} in the environment; RANK from 0 to WORLD_SIZE - 1 was expected. Set both, or neither."
            )
        return cls(rank, world, max(0, numbers.get("LOCAL_RANK", 0)), max(1, numbers.get("LOCAL_WORLD_SIZE", 1)))

    def of(self, items: Sequence[T]) -> list[T]:
        """Return every world-th of them, from the rank's on: no two shares have one in common."""
        return list(items[self.rank :: self.world])

    def workers(self) -> int:
        """Tell how many processes to read with, and how many to write with, on the cores that this one may use."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, cores // (2 * self.local_world))

    def wait(self) -> None:
        """Wait for the others where torchrun runs them: it stops them all as soon as one ends with an exit status."""
        if self.world == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
        dist.barrier()
        dist.destroy_process_group()


def device_for(wanted: str | None, share: Share) -> str:
    """Return the device to run on: what is wanted, else a GPU if there is one; each local rank has its own.

    Raises
    ------
    CamhookError
        If it is not there.
    """
    import torch

    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
        if str(device) == "cuda":  # without a number
            device = torch.device("cuda", share.local_rank % max(1, torch.cuda.device_count()))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise CamhookError(f"--device {wanted} cannot be used: {reason}. Pass cpu, cuda or cuda:N.") from error
    return str(device)


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
