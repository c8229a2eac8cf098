"""The logits of some images, accounted for by positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camhook.decompose.linear_tail import FrozenTail
from camhook.decompose.maps import joined
from camhook.decompose.tail_inputs import Source
from camhook.engine.head import Run

__all__ = ["Accounting"]

_FEW_CLASSES = 32  # up to so many, one backward pass through the tail for each is the cheaper way
_TOGETHER = 64  # otherwise the tail is run on so many positions of each image at once,
_SCORES = 2**18  # or fewer, so that they have no more scores than this together, but not on fewer than eight


class Accounting:
    """What every position adds to the logits of the images at hand.

    Parameters
    ----------
    run
        The live tail.
    sources
        What it is a function of.
    widens
        Whether it can be run on more than one set of features for each image.
    dtype
        The coarsest type in which they were captured.
    """

    def __init__(self, run: Run, sources: Sequence[Source], *, widens: bool, dtype: torch.dtype) -> None:
        self.sources = list(sources)
        self.dtype = dtype
        self.widens = widens
        self._frozen = FrozenTail(run, [s.full for s in sources], [s.rest for s in sources], at_once=widens)

    @property
    def logits(self) -> Tensor:
        """The logits as the tail alone gives them."""
        return self._frozen.logits

    def offset(self, targets: Tensor) -> Tensor:
        """Return the wanted logits of the rest alone, which belongs to no position; targets and result are (B, T)."""
        return self._frozen.offset.gather(1, targets)

    def slopes(self, targets: Tensor) -> list[Tensor]:
        """Return how each wanted logit goes up with each source, (B, T, ...): effective weights."""
        return self._frozen.slopes(targets)

    def maps(self, targets: Tensor) -> Tensor:
        """Return the wanted classes' maps, (B, T, h, w); the mean of one plus its offset is the logit."""
        if targets.shape[1] <= _FEW_CLASSES or not self.widens:
            slopes = self.slopes(targets)
            return joined([source.maps(of_source) for source, of_source in zip(self.sources, slopes, strict=True)])
        maps = self.all_maps()
        return maps.gather(1, targets[..., None, None].expand(-1, -1, *maps.shape[2:]))

    def all_maps(self) -> Tensor:
        """Return the maps of all classes in order, (B, K, h, w)."""
        if not self.widens:
            count = self._frozen.offset.shape[1]
            return self.maps(
                torch.arange(count, device=self._frozen.offset.device).expand(len(self._frozen.offset), -1)
            )
        return joined([self._maps_of_all(grid_size) for grid_size in sorted({s.grid_size for s in self.sources})])

    @torch.no_grad()
    def _maps_of_all(self, grid_size: tuple[int, int]) -> Tensor:
        """Run the affine tail on what each position of a grid adds by itself: all classes at once, (B, K, h, w)."""
        count, offset = grid_size[0] * grid_size[1], self._frozen.offset
        maps = offset.new_empty((*offset.shape, count))  # filled bit by bit: of many classes, twice that is too much
        together = min(_TOGETHER, max(8, _SCORES // offset.shape[1]))
        for start in range(0, count, together):
            stop = min(start + together, count)
            given = [
                s.alone(start, stop) if s.grid_size == grid_size else s.rest.repeat_interleave(stop - start, 0)
                for s in self.sources
            ]
            logits = self._frozen(*given, straight=True, repeats=stop - start)
            maps[..., start:stop] = (logits.unflatten(0, (offset.shape[0], -1)) - offset[:, None]).mT
        return maps.view(*offset.shape, *grid_size)
