"""Pooled features in memory or as shards in a folder; shards are safetensors files, written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camhook.distributed import Ranks
from camhook.errors import CamhookError, OutputError
from camhook.files import read_tensors, write_tensors
from camhook.fitting.rows import Rows

__all__ = ["FeatureStore"]

_KIND = "camhook features 1"
_NAME = "[0-9]*-[0-9]*.safetensors"  # its number, and the rank that wrote it
_COLUMNS = ("indices", "features", "targets", "labels", "predictions")
_CHUNK = 4096  # rows read at once of features that are in memory


class FeatureStore:
    """Rows of pooled features by the images' numbers, and the images that could not be read.

    A shard is written whole or not at all and never changed: a killed run loses the rows that waited to be written, and
    goes on with the images that are in no shard. Each rank writes its own. A shard takes the size of its features:
    4 bytes each in float32.

    Parameters
    ----------
    folder : path, optional
        Where the shards are; it is made with the first one. Default: rows stay in memory.
    run : mapping, optional
        What the rows depend on (model, layer, data, preprocessing), in types that JSON has: shards of another run are
        refused. Default: what the shards say.
    rank : int
        Of this process; part of the names of its shards.

    Attributes
    ----------
    skipped : dict
        (file, reason) by index, for images that could not be read.
    seconds : float
        How long it took to make the rows, on the first rank.

    Raises
    ------
    CamhookError
        If a shard is damaged, or of another run (what differs is listed).

    Examples
    --------
    >>> store = FeatureStore()
    >>> store.append(Rows.of([2], torch.tensor([[1.0, 2.0]]), torch.tensor([1])))
    >>> [rows.features.tolist() for rows in store.blocks()]
    [[[1.0, 2.0]]]
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, run: Mapping[str, Any] | None = None, rank: int = 0
    ) -> None:
        self.folder, self.rank = None if folder is None else Path(folder), rank
        self.run: dict[str, Any] | None = None if run is None else json.loads(json.dumps(run))  # JSON has no tuples
        self.skipped: dict[int, tuple[str, str]] = {}
        self.seconds = 0.0
        self._shards: dict[str, Path | Rows] = {}
        self._indices: list[Tensor] = []
        self._waiting: list[Rows] = []
        self._unwritten: dict[int, tuple[str, str]] = {}
        self._unwritten_seconds = 0.0
        if self.folder is not None and self.folder.exists():
            self._open(self.folder)

    @classmethod
    def of(cls, rows: Rows) -> FeatureStore:
        """Return a store in memory of rows that all ranks have."""
        store = cls()
        for start in range(0, len(rows), _CHUNK):
            part = rows.take(slice(start, start + _CHUNK))
            store._shards[f"{start:012d}"] = part
            store._indices.append(part.indices)
        return store

    @classmethod
    def opened(
        cls, folder: str | os.PathLike[str] | None, run: Mapping[str, Any], size: int, ranks: Ranks
    ) -> tuple[FeatureStore, npt.NDArray[np.bool_]]:
        """Return each rank's store, and which of the images (N,) are in that of any; every rank must call."""
        store = ranks.agreed(lambda: cls(folder, run, ranks.rank))
        done = torch.zeros(size, dtype=torch.uint8)
        done[ranks.agreed(store.indices)] = 1
        ranks.sum_(done)
        store.share_skipped(ranks)
        return store, done.bool().numpy()

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Return whether a folder holds shards."""
        return next(folder.glob(_NAME), None) is not None

    @property
    def waiting(self) -> int:
        """Bytes of features that are in memory and would be lost with the process."""
        return sum(rows.features.nbytes for rows in self._waiting)

    def indices(self) -> Tensor:
        """Return the numbers (N,) of all images here, with those that could not be read; twice is an error."""
        waiting = [rows.indices for rows in self._waiting]
        found = torch.cat([torch.tensor(list(self.skipped), dtype=torch.int64), *self._indices, *waiting])
        if len(found.unique()) < len(found):
            raise CamhookError(f"An image is in two shards of {self.folder}: two runs wrote to it. Pass another path.")
        return found

    def column(self, name: str) -> Tensor:
        """Return one column of all rows."""
        return torch.cat([vars(rows)[name] for rows in self.blocks(columns=("indices", name))])

    def append(self, rows: Rows) -> None:
        """Add rows of images that are not here."""
        self._waiting.append(rows.to("cpu"))

    def skip(self, index: int, file: str, reason: str) -> None:
        """Note an image that could not be read."""
        self.skipped[index] = self._unwritten[index] = file, reason

    def share_skipped(self, ranks: Ranks) -> None:
        """Note what all ranks could not read; every rank must call."""
        for skipped in ranks.gathered(self.skipped):
            self.skipped |= skipped

    def flush(self, seconds: float) -> None:
        """Write the rows that wait as a shard if there is a folder; making them took so many seconds.

        Raises
        ------
        OutputError
            If the folder cannot be written to.
        """
        self.seconds += seconds
        self._unwritten_seconds += seconds
        if self.folder is None or not (self._waiting or self._unwritten):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made: {error}. Choose another path.") from error
        number = 1 + max((int(name.split("-")[0]) for name in self._shards), default=0)
        path = self.folder / f"{number:06d}-{self.rank}.safetensors"
        rows = Rows.joined(self._waiting) if self._waiting else None
        tensors = {} if rows is None else {name: vars(rows)[name] for name in _COLUMNS}
        skipped = [[index, *said] for index, said in self._unwritten.items()]
        facts = {"run": self.run, "skipped": skipped}
        write_tensors(path, _KIND, tensors, {**facts, "seconds": 0.0 if self.rank else self._unwritten_seconds})
        self._shards[path.name] = path
        self._indices += [] if rows is None else [rows.indices]
        self._waiting, self._unwritten, self._unwritten_seconds = [], {}, 0.0

    def blocks(self, names: Collection[str] | None = None, columns: Sequence[str] = _COLUMNS) -> Iterator[Rows]:
        """Yield the rows of some shards, by name (default all), and those that wait; only some columns are read."""
        for name, shard in self._shards.items():
            if names is not None and name not in names:
                continue
            if isinstance(shard, Rows):
                yield shard
                continue
            tensors, _ = read_tensors(shard, _KIND, columns)
            if tensors:
                none = torch.zeros(len(tensors["indices"]), 0)
                yield Rows.of(**{"features": none, "targets": none, **tensors})
        yield from self._waiting

    def assigned(self, ranks: Ranks) -> list[str]:
        """Return the shards that this rank is to read: each goes to one rank that sees it; every rank must call."""
        seen_by: dict[str, list[int]] = {}
        for rank, names in enumerate(ranks.gathered(list(self._shards))):
            for name in names:
                seen_by.setdefault(name, []).append(rank)
        shared = enumerate(sorted(seen_by.items()))
        return [name for number, (name, seen) in shared if seen[number % len(seen)] == ranks.rank]

    def gathered(self, ranks: Ranks) -> list[Rows]:
        """Return all rows, in blocks, on the first rank, to which others send what it does not see; all ranks call."""
        first = ranks.gathered(list(self._shards))[0]
        if ranks.world == 1:
            return list(self.blocks())
        mine = self.assigned(ranks)
        sent = [] if ranks.rank == 0 else list(self.blocks([name for name in mine if name not in first]))
        received = [rows for each in ranks.gathered(sent) for rows in each]
        return [*self.blocks(), *received] if ranks.rank == 0 else []

    def check_run(self, run: Mapping[str, Any]) -> None:
        """Raise `CamhookError` if the shards were made by another run than one of these facts; rows in memory pass."""
        if self.run is not None and self.folder is not None:
            self._check(self.folder, {name: self.run.get(name) for name in run}, run)

    def _check(self, path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differing = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        if differing:
            listed = "; ".join(f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in differing)
            advice = "Run the earlier command again, or pass another folder."
            raise CamhookError(f"{path} is of another run ({listed}). {advice}")

    def _open(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CamhookError(
                f"{folder} is a file, expected a folder of feature shards. Earlier versions of camhook wrote such "
                "checkpoints, which cannot be continued. Pass another path; the images are then run again."
            )
        if self.rank == 0 and self.run is not None:  # else it is only read, perhaps while another process writes
            for partial in folder.glob(f".{_NAME}.part"):  # of a killed run
                partial.unlink(missing_ok=True)
        for path in sorted(folder.glob(_NAME)):
            tensors, facts = read_tensors(path, _KIND, ["indices"])
            self.run = facts["run"] if self.run is None else self.run
            self._check(path, facts["run"], self.run)
            self.skipped |= {index: (file, reason) for index, file, reason in facts["skipped"]}
            self.seconds += facts["seconds"]
            self._indices += tensors.values()
            self._shards[path.name] = path
