"""What the tail does with the features: found out numerically at wrap time, accounted for at call time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from camhook.adapters.base import Layout
from camhook.frozen import FrozenTail
from camhook.maps import class_maps

__all__ = ["Accounting", "Head", "TailKind", "classify"]

Run = Callable[[Tensor], Tensor]
"""A tail: from features, batched along the first axis, to logits (B, K)."""

TailKind = Literal["linear", "norm-linear", "mlp", "deep"]

_SAME = 1e-5  # outputs of a tail in float64 this close, relative to how much it varies, are the same
_FEW_CLASSES = 32  # up to so many, one backward pass through the tail for each is the cheaper way
_NODES = (8, 16, 32, 64, 128, 256)
_DEEP_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Head:
    """How a tail turns features into logits.

    Attributes
    ----------
    pooling
        ``"mean"``: the tail reads the positions only through their mean.
    tail
        What follows the pooling: ``"linear"`` (affine as it stands), ``"norm-linear"`` (affine with norms held still),
        ``"mlp"`` (affine, one activation, affine: the path integral is closed), ``"deep"`` (integrated numerically).
    collapses
        The tail takes the mean as a grid of one position; otherwise it is given the mean at every position.
    widens
        The tail takes more vectors than there are images; not so where something else of the image meets them.
    error
        The largest relative deviation in the checks that this rests on.
    """

    pooling: Literal["mean"]
    tail: TailKind
    collapses: bool
    widens: bool
    error: float

    def __str__(self) -> str:
        return f"{self.pooling}/{self.tail}"


class _Embedding:
    """Features that are the same vector at every position, all else about them fixed: what a mean over them sees."""

    def __init__(self, layout: Layout, cell: tuple[int, int], prefix: Tensor | None) -> None:
        self._layout, self._cell, self._prefix = layout, cell, prefix

    def __call__(self, vectors: Tensor) -> Tensor:
        """Lay out vectors (n * B, C), those of one image in a row, as features."""
        prefix = self._prefix
        if prefix is not None and len(prefix) != len(vectors):
            prefix = prefix.repeat_interleave(len(vectors) // len(prefix), 0)
        return self._layout.join(vectors[:, :, None, None].expand(-1, -1, *self._cell), prefix)


def classify(run: Run, layout: Layout, shape: tuple[int, ...], grid_size: tuple[int, int]) -> Head | str:
    """Find out what a tail does, by trying it on random features in float64.

    Parameters
    ----------
    run
        The tail, with real parameters.
    layout, shape, grid_size
        How the features are laid out, their shape (batch included) and their grid (h, w).

    Returns
    -------
    Head or str
        What was found, or in words why it is nothing that a map can be made of.
    """
    generator = torch.Generator().manual_seed(1)

    def draw(*size: int) -> Tensor:
        return 3 * torch.randn(size, generator=generator, dtype=torch.float64)

    def try_out(features: Tensor) -> Tensor:
        return run(features.clone())  # a tail may begin with an in-place step

    with torch.no_grad():
        positions, prefix = layout.split(draw(*shape), grid_size)
        other = positions + draw(*positions.shape) + draw(*positions.shape[:2], 1, 1)
        logits, moved = try_out(layout.join(positions, prefix)), try_out(layout.join(other, prefix))
        if logits.ndim != 2:
            return f"the tail gives a tensor of shape {tuple(logits.shape)} where (B, K) was expected"
        if logits.is_meta:  # nothing real came through to the end
            return "the logits do not come from it"
        spread = float((logits - moved).abs().max())
        if not spread > _SAME * float(logits.abs().max()):
            return "the tail does not read the spatial features (a class token, perhaps)"
        means = positions.mean((2, 3)), other.mean((2, 3))
        embed = _Embedding(layout, grid_size, prefix)
        error = max(_deviation(try_out(embed(m)), y, spread) for m, y in zip(means, (logits, moved), strict=True))
        if error > _SAME:
            return "the tail reads the positions other than through their mean"
        collapsed = _Embedding(layout, (1, 1), prefix)
        collapses = _gives(lambda: try_out(collapsed(means[0])), logits, spread)
        if collapses:
            embed = collapsed
    frozen = FrozenTail(run, embed(means[0]), embed(torch.zeros_like(means[0])))
    tail, tail_error = _tail_kind(try_out, frozen, embed, means, spread)
    widened = embed(means[0].repeat_interleave(3, 0))
    widens = _gives(lambda: frozen(widened, secants=True, repeats=3), logits.repeat_interleave(3, 0), spread)
    return Head("mean", tail, collapses, widens, max(error, tail_error))


def _tail_kind(
    run: Run, frozen: FrozenTail, embed: _Embedding, vectors: tuple[Tensor, Tensor], spread: float
) -> tuple[TailKind, float]:
    start, end = vectors

    def curvature(function: Run) -> float:
        # An affine function keeps what lies on a line on a line, also beyond the two points that span it.
        with torch.no_grad():
            first, last = function(embed(start)), function(embed(end))
            return max(
                _deviation(function(embed(torch.lerp(start, end, t))), torch.lerp(first, last, t), abs(t) * spread)
                for t in (-1.5, 0.4, 2.5)
            )

    if (error := curvature(run)) < _SAME:
        return "linear", error
    if (error := curvature(lambda features: frozen(features, secants=False))) < _SAME:
        return "norm-linear", error
    if (error := curvature(lambda features: frozen(features, secants=True))) < _SAME and not frozen.bends(
        embed(0.37 * start), 0.37
    ):
        return "mlp", error
    return "deep", 0.0


def _deviation(found: Tensor, expected: Tensor, spread: float) -> float:
    return float((found - expected).abs().max()) / spread


def _gives(run: Callable[[], Tensor], expected: Tensor, spread: float) -> bool:
    """Tell whether a tail runs on other shapes than its own at all (it may insist on them), and to what result."""
    try:
        found = run()
    except (RuntimeError, ValueError, AssertionError):
        return False
    return found.shape == expected.shape and _deviation(found, expected, spread) < _SAME


class Accounting:
    """The logits of some images, accounted for by positions.

    Parameters
    ----------
    head, run, layout
        What the tail does, the live tail, and how the features are laid out.
    features
        As captured, detached; half precision is widened to float32.
    grid_size
        Grid (h, w) of the features.

    Attributes
    ----------
    positions : Tensor
        The features as (B, C, h, w).
    dtype : torch.dtype
        What the features were captured in.
    """

    def __init__(self, head: Head, run: Run, layout: Layout, features: Tensor, grid_size: tuple[int, int]) -> None:
        positions, prefix = layout.split(features, grid_size)
        if features.dtype in (torch.float16, torch.bfloat16):
            positions, prefix = positions.float(), None if prefix is None else prefix.float()
        self.positions = positions
        self.dtype = features.dtype
        self._head = head
        self._vectors = positions.mean((2, 3))
        self._embed = _Embedding(layout, (1, 1) if head.collapses else grid_size, prefix)
        self._frozen = FrozenTail(run, self._embed(self._vectors), self._embed(torch.zeros_like(self._vectors)))

    def offset(self, targets: Tensor) -> Tensor:
        """Return the wanted logits of the rest alone, which belongs to no position; targets and result are (B, T)."""
        return self._frozen.offset.gather(1, targets)

    def weights(self, targets: Tensor) -> Tensor:
        """Return the effective weight of every channel for each wanted class, (B, T, C)."""
        if self._head.tail == "deep":
            return self._integrated_weights(targets)
        return self._slopes(self._vectors, targets, secants=True)

    def maps(self, targets: Tensor) -> Tensor:
        """Return the wanted classes' maps, (B, T, h, w); the mean of one plus its offset is the logit."""
        if self._head.tail == "deep" or targets.shape[1] <= _FEW_CLASSES or not self._head.widens:
            return class_maps(self.weights(targets), self.positions)
        return self._maps_of_all().gather(1, targets[..., None, None].expand(-1, -1, *self.positions.shape[2:]))

    def _slopes(self, vectors: Tensor, targets: Tensor, *, secants: bool) -> Tensor:
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            logits = self._frozen(self._embed(vectors), secants=secants).gather(1, targets)
            slopes = [torch.autograd.grad(one.sum(), vectors, retain_graph=True)[0] for one in logits.unbind(1)]
        return torch.stack(slopes, 1)

    def _integrated_weights(self, targets: Tensor) -> Tensor:
        """Average the slopes over the straight path from the rest to the features, with as many nodes as it takes."""
        frozen = self._frozen
        expected = (frozen.logits - frozen.offset).gather(1, targets)
        limit = _DEEP_TOLERANCE * frozen.logits.abs().max()
        for count in _NODES:
            weights = torch.zeros(())
            for node, share in zip(*np.polynomial.legendre.leggauss(count), strict=True):
                weights = weights + share / 2 * self._slopes((1 + node) / 2 * self._vectors, targets, secants=False)
            if (torch.einsum("btc,bc->bt", weights, self._vectors) - expected).abs().max() <= limit:
                break
        return weights

    def _maps_of_all(self) -> Tensor:
        """Run the affine tail on each position's own features: all classes at once, (B, K, h, w)."""
        grid_size = self.positions.shape[2:]
        each = self.positions.flatten(2).transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            logits = self._frozen(self._embed(each), secants=True, repeats=grid_size.numel())
        logits = logits.view(len(self.positions), grid_size.numel(), -1) - self._frozen.offset[:, None]
        return logits.transpose(1, 2).reshape(len(logits), -1, *grid_size)
