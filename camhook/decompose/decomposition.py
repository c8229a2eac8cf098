"""Decomposition of logits into maps over positions plus an offset."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camhook.decompose.linear_tail import LinearTail, Run
from camhook.decompose.maps import joined
from camhook.decompose.tail_inputs import TailInput

__all__ = ["Decomposition"]

_CLASSES = 32  # per batched backward pass through the tail
_POSITIONS = 64  # per batched forward pass of changes,
_SCORES = 2**18  # or fewer, so that a pass has no more scores per image than this, but not fewer than eight


class Decomposition:
    """Logits of a batch as mean of maps plus offset: ``logits = maps.mean((2, 3)) + offset``, per class.

    Parameters
    ----------
    tail
        The tail, from the values of its inputs to logits (B, K).
    inputs
        What the tail reads.
    dtype
        The coarsest type in which they were captured.
    secant_dtype
        See `LinearTail`.
    """

    def __init__(
        self, tail: Run, inputs: Sequence[TailInput], *, dtype: torch.dtype, secant_dtype: torch.dtype | None = None
    ) -> None:
        self.inputs = list(inputs)
        self.dtype = dtype
        self._grid_sizes = sorted({each.grid_size for each in self.inputs})
        values, baselines = [each.value for each in inputs], [each.baseline for each in inputs]
        self._tail = LinearTail(tail, values, baselines, secant_dtype=secant_dtype)

    @property
    def logits(self) -> Tensor:
        """The logits (B, K) as the tail alone gives them."""
        return self._tail.logits

    def offset(self, targets: Tensor) -> Tensor:
        """Return the logits of classes ``targets`` (B, T) at the baseline, (B, T): what belongs to no position."""
        return self._tail.offset.gather(1, targets)

    def multipliers(self, targets: Tensor) -> list[Tensor]:
        """Return the multipliers of classes ``targets`` (B, T) for each input, (B, T, ...): the weights of the maps."""
        return self._tail.multipliers(targets)

    def maps(self, targets: Tensor) -> Tensor:
        """Return the maps of classes ``targets`` (B, T), (B, T, h, w), in logits."""
        if targets.shape[1] <= _CLASSES:
            return self._by_class(targets)
        if self._by_position(targets.shape[1]):
            maps = self._all_by_position()
            return maps.gather(1, targets[..., None, None].expand(-1, -1, *maps.shape[2:]))
        return torch.cat([self._by_class(each) for each in targets.split(_CLASSES, 1)], 1)

    def all_maps(self) -> Tensor:
        """Return the maps of all classes in order, (B, K, h, w), in logits."""
        batch, count = self.logits.shape
        if self._by_position(count):
            return self._all_by_position()
        return self.maps(torch.arange(count, device=self.logits.device).expand(batch, -1))

    def _by_position(self, classes: int) -> bool:
        """Tell whether a pass per position, for all classes at once, is cheaper than one per class."""
        positions = max(height * width for height, width in self._grid_sizes)
        return classes > _CLASSES and (classes > positions or self._tail.is_recorded)

    def _by_class(self, targets: Tensor) -> Tensor:
        multipliers = self.multipliers(targets)
        return joined([each.maps(m) for each, m in zip(self.inputs, multipliers, strict=True)])

    @torch.no_grad()
    def _all_by_position(self) -> Tensor:
        return joined([self._contributions(grid_size) for grid_size in self._grid_sizes])

    def _contributions(self, grid_size: tuple[int, int]) -> Tensor:
        """Return what the positions of a grid contribute to all classes, (B, K, h, w), a chunk at a time."""
        inputs = {number: each for number, each in enumerate(self.inputs) if each.grid_size == grid_size}
        offset, count = self._tail.offset, grid_size[0] * grid_size[1]
        maps = offset.new_empty((*offset.shape, count))
        chunk = min(_POSITIONS, max(8, _SCORES // offset.shape[1]))
        for start in range(0, count, chunk):
            stop = min(start + chunk, count)
            changes = {number: each.contributions(start, stop) for number, each in inputs.items()}
            maps[..., start:stop] = self._tail.responses(changes).permute(1, 2, 0)
        return maps.view(*offset.shape, *grid_size)
