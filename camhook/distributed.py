"""Ranks of a job that several processes share: read from the environment, or in a torch.distributed process group."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from camhook.errors import CamhookError

__all__ = ["Ranks"]

T = TypeVar("T")

_CPU = torch.device("cpu")
_PATIENCE = datetime.timedelta(days=30)  # ranks that only wait for each other at the end may be days apart


@dataclass(frozen=True)
class Ranks:
    """One process's place among those that share a job.

    `from_environment` is enough to divide items, without any communication. `summed`, `sum_` and `gathered` need the
    process group that `joined` or the caller has initialised; a single rank needs none.

    Attributes
    ----------
    rank, world : int
        Index of this process and number of processes.
    local_rank, local_world : int
        The same among the processes on this machine.
    device : torch.device
        Where tensors are exchanged: a GPU for NCCL.

    Examples
    --------
    >>> Ranks.from_environment({"RANK": "1", "WORLD_SIZE": "3"}).of("abcdefg")
    ['b', 'e']
    >>> Ranks().summed([1.0, 0.0])
    [1.0, 0.0]
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = _CPU

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """Read ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``; a single rank if they are not set.

        Raises
        ------
        CamhookError
            If they are not integers, or RANK is not in range.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        found = {name: environment[name] for name in names if name in environment}
        shown = " ".join(f"{name}={value}" for name, value in found.items())
        try:
            numbers = {name: int(value) for name, value in found.items()}
        except ValueError as error:
            raise CamhookError(f"Found {shown} in the environment; whole numbers were expected.") from error
        rank, world = numbers.get("RANK", 0), numbers.get("WORLD_SIZE", 1)
        if not 0 <= rank < world or (world > 1 and "RANK" not in numbers):
            raise CamhookError(
                f"Found {shown} in the environment; RANK from 0 to WORLD_SIZE - 1 was expected. Set both, or neither."
            )
        return cls(rank, world, max(0, numbers.get("LOCAL_RANK", 0)), max(1, numbers.get("LOCAL_WORLD_SIZE", 1)))

    @classmethod
    def of_process_group(cls, device: torch.device | str = _CPU) -> Ranks:
        """Return the rank in the default process group; a single rank where none is initialised."""
        if not _initialised():
            return cls(device=torch.device(device))
        return cls(dist.get_rank(), dist.get_world_size(), device=torch.device(device))

    @contextmanager
    def joined(
        self, device: torch.device | str = _CPU, *, timeout: datetime.timedelta | None = None
    ) -> Iterator[Ranks]:
        """Initialise the default process group and destroy it afterwards; NCCL on a GPU, else gloo.

        An initialised group is used as it is, and a single rank needs none.

        Parameters
        ----------
        device
            Where tensors are exchanged.
        timeout
            Of the group's operations; default torch's own.

        Yields
        ------
        Ranks
            These ranks, which can exchange tensors and objects.
        """
        device = torch.device(device)
        if _initialised():
            yield replace(self, rank=dist.get_rank(), world=dist.get_world_size(), device=device)
            return
        if self.world == 1:
            yield replace(self, device=device)
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        try:
            yield replace(self, device=device)
        finally:
            dist.destroy_process_group()

    def of(self, items: Sequence[T]) -> list[T]:
        """Return every world-th item, from the rank-th on: each item belongs to exactly one rank."""
        return list(items[self.rank :: self.world])

    def workers(self) -> int:
        """Return how many processes should read, and how many should write, on the cores that this rank may use."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, cores // (2 * self.local_world))

    def device_for(self, wanted: str | None) -> str:
        """Return the device to run on: the wanted one, by default a GPU if there is one.

        ``"cuda"`` without an index is the GPU of this local rank.

        Raises
        ------
        CamhookError
            If the device is not available.
        """
        try:
            device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
            if str(device) == "cuda":
                device = torch.device("cuda", self.local_rank % max(1, torch.cuda.device_count()))
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise CamhookError(f"--device {wanted} cannot be used: {reason}. Pass cpu, cuda or cuda:N.") from error
        return str(device)

    def summed(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over ranks; every rank must call."""
        if self.world == 1:
            return list(values)
        return self.sum_(torch.tensor(values, dtype=torch.float64)).tolist()

    def sum_(self, value: Tensor) -> Tensor:
        """Sum a tensor over ranks in place, and return it; every rank must call."""
        if self.world == 1:
            return value
        there = value.to(self.device)
        dist.all_reduce(there)
        return value.copy_(there)

    def gathered(self, value: T) -> list[T]:
        """Return the value of each rank, in the order of ranks; every rank must call."""
        if self.world == 1:
            return [value]
        found: list[T] = [value] * self.world
        dist.all_gather_object(found, value)
        return found

    def agreed(self, compute: Callable[[], T], *, first_only: bool = False) -> T:
        """Compute on every rank, or on the first for all, and raise any rank's error on each; every rank must call."""
        found: T | None = None
        error: CamhookError | None = None
        if self.rank == 0 or not first_only:
            try:
                found = compute()
            except CamhookError as raised:
                error = raised
        if first := next(filter(None, self.gathered(error)), None):
            raise first
        return cast(T, self.gathered(found)[0] if first_only else found)

    def wait(self) -> None:
        """Wait until all ranks are here (a barrier); every rank must call.

        Without a process group, ranks under torchrun join one for this moment, since torchrun kills all ranks as soon
        as one ends with an error; ranks that were started one by one do not wait.
        """
        if self.world == 1:
            return
        if _initialised():
            dist.barrier()
        elif "TORCHELASTIC_RUN_ID" in os.environ:
            with self.joined(timeout=_PATIENCE):
                dist.barrier()


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
