"""What a tail does with the features, found out by trying it on random features in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from camhook.adapters.base import Layout
from camhook.decompose.linear_tail import FrozenTail
from camhook.decompose.tail_inputs import FeatureSource
from camhook.errors import UnsupportedModelError

__all__ = ["Embedding", "Head", "Refusal", "Run", "TailKind", "classify", "classify_general"]

Run = Callable[..., Tensor]
"""A tail: from features, all batched along the first axis, to logits (B, K)."""

TailKind = Literal["linear", "norm-linear", "mlp", "deep"]

_SAME = 1e-5  # outputs of a tail in float64 this close, relative to how much it varies, are the same


@dataclass(frozen=True)
class Head:
    """How a tail turns features into logits.

    Attributes
    ----------
    pooling
        ``"mean"``: the tail reads the positions only through their mean. ``"attention"``, ``"max"``, both joined by a
        plus: by attention weights or winners, which are held. ``"flatten"``: each position has weights of its own.
        ``"general"``: convolutions mix positions on the way.
    tail
        What follows the pooling: ``"linear"`` (affine as it stands), ``"norm-linear"`` (affine with statistics held),
        ``"mlp"`` (affine, one layer of activations, affine), ``"deep"``.
    collapses
        The tail takes the mean as a grid of one position; otherwise it is given the mean at every position.
    widens
        The tail takes more vectors than there are images; not so where something else of the image meets them.
    error
        The largest relative deviation in the checks that this rests on.
    reads_prefix
        Prefix tokens move the logits too, beside the mean.
    """

    pooling: str
    tail: TailKind
    collapses: bool
    widens: bool
    error: float
    reads_prefix: bool = False

    def __str__(self) -> str:
        return f"{self.pooling}/{self.tail}"


@dataclass(frozen=True)
class Refusal:
    """Why a head does not pool features by their mean, and what it reads of them all the same."""

    reason: str
    reads_positions: bool = False
    reads_prefix: bool = False


class Embedding:
    """Features that are the same vector at every position, all else about them fixed: what a mean over them sees."""

    def __init__(self, layout: Layout, cell: tuple[int, int], prefix: Tensor | None) -> None:
        self._layout, self._cell, self._prefix = layout, cell, prefix

    def __call__(self, vectors: Tensor) -> Tensor:
        """Lay out vectors (n * B, C), those of one image in a row, as features."""
        prefix = self._prefix
        if prefix is not None and prefix.shape[0] != vectors.shape[0]:
            prefix = prefix.repeat_interleave(vectors.shape[0] // prefix.shape[0], 0)
        return self._layout.join(vectors[:, :, None, None].expand(-1, -1, *self._cell), prefix)


class _Draws:
    """Random features, the same ones each time."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(1)

    def __call__(self, *size: int) -> Tensor:
        return 3 * torch.randn(size, generator=self._generator, dtype=torch.float64)


def classify(
    run: Run,
    layout: Layout,
    shape: tuple[int, ...],
    grid_size: tuple[int, int],
    *,
    is_alone: Callable[[], bool] = lambda: True,
) -> Head | Refusal:
    """Find out whether a tail pools features by their mean, and what follows.

    Parameters
    ----------
    run
        The tail, with real parameters.
    layout, shape, grid_size
        How the features are laid out, their shape (batch included) and their grid (h, w).
    is_alone
        Tells, after a run, whether the tail took in nothing of the image but these features.
    """
    draw = _Draws()
    with torch.no_grad():
        positions, prefix = layout.split(draw(*shape), grid_size)
        other = positions + draw(*positions.shape) + draw(*positions.shape[:2], 1, 1)
        logits = run(layout.join(positions, prefix))
        if not is_alone():
            return Refusal("something comes round it")
        if logits.ndim != 2:
            return Refusal(f"the tail gives a tensor of shape {tuple(logits.shape)} where (B, K) was expected")
        if logits.is_meta:  # nothing real came through to the end
            return Refusal("the logits do not come from it")
        moved = run(layout.join(other, prefix))
        _refuse_probabilities(logits)
        spread = float((logits - moved).abs().max())
        noise = _SAME * float(logits.abs().max())
        if prefix is not None:
            swung = run(layout.join(positions, draw(*prefix.shape)))
            reads_prefix = float((logits - swung).abs().max()) > noise
        else:
            reads_prefix = False
        if not spread > noise:
            return Refusal("the tail does not read the spatial features", reads_prefix=reads_prefix)
        means = positions.mean((2, 3)), other.mean((2, 3))
        embed = Embedding(layout, grid_size, prefix)
        error = 0.0
        for mean, expected in zip(means, (logits, moved), strict=True):
            error = max(error, _deviation(run(embed(mean)), expected, spread))
            if error > _SAME:
                break
        if error > _SAME:
            return Refusal("the tail reads the positions other than through their mean", True, reads_prefix)
        collapsed = Embedding(layout, (1, 1), prefix)
        collapses = _gives(lambda: run(collapsed(means[0])), logits, spread)
        if collapses:
            embed = collapsed

    def run_mean(vectors: Tensor) -> Tensor:
        return run(embed(vectors))

    frozen = FrozenTail(run_mean, [means[0]], [torch.zeros_like(means[0])])
    tail, tail_error = _tail_kind(run_mean, frozen, ([means[0]], logits), ([means[1]], moved), spread)
    widened = means[0].repeat_interleave(3, 0)
    widens = _gives(lambda: frozen(widened, straight=True, repeats=3), logits.repeat_interleave(3, 0), spread)
    return Head("mean", tail, collapses, widens, max(error, tail_error), reads_prefix)


def classify_general(
    run: Run, layouts: Sequence[Layout], shapes: Sequence[tuple[int, ...]], grid_sizes: Sequence[tuple[int, int]]
) -> Head | Refusal:
    """Find out what a tail does with features from one or several places, however it reads their positions."""
    draw = _Draws()
    features = [[draw(*shape) for shape in shapes] for _ in range(2)]
    sources = [FeatureSource(f, layout, grid) for f, layout, grid in zip(features[0], layouts, grid_sizes, strict=True)]
    for source, other in zip(sources, features[1], strict=True):
        # The prefix is no part of what is told apart: both draws share the first one's.
        prefix = source.layout.split(source.features, source.grid_size)[1]
        other.copy_(source.layout.join(source.layout.split(other.clone(), source.grid_size)[0], prefix))
    frozen = FrozenTail(run, features[0], [source.rest for source in sources])
    logits = frozen.logits
    if logits.is_meta or logits.ndim != 2:
        return Refusal("the logits do not come from it")
    if not float((logits - frozen.offset).abs().max()) > _SAME * float(logits.abs().max()):
        return Refusal("all that it gives is held still (it makes attention weights)", True)
    with torch.no_grad():
        moved = run(*features[1])
        spread = float((logits - moved).abs().max())
        if not spread > _SAME * float(logits.abs().max()):
            return Refusal("the tail does not read the spatial features")
        means = [_averaged(source) for source in sources]
        is_mean = _deviation(run(*means), logits, spread) < _SAME
    error = _deviation(frozen(*features[0], straight=True), logits, spread)
    if error > _SAME:
        return Refusal("the tail does something on the way that cannot be held still", True)
    tail, tail_error = _tail_kind(run, frozen, (features[0], logits), (features[1], moved), spread)
    kinds = [kind for kind in ("attention", "max") if kind in frozen.kinds]
    pooling = "mean" if is_mean else "general" if "conv" in frozen.kinds else "+".join(kinds) or "flatten"
    parts = [source.alone(0, 2) for source in sources]
    try:
        widens = len(frozen(*parts, straight=True, repeats=2)) == 2 * len(logits)
    except (RuntimeError, ValueError, AssertionError):
        widens = False
    return Head(pooling, tail, False, widens, max(error, tail_error))


def _refuse_probabilities(logits: Tensor) -> None:
    steps = {
        "softmax": bool((logits >= 0).all() & ((logits.sum(1) - 1).abs() < _SAME).all()),
        "log-softmax": bool((logits.logsumexp(1).abs() < _SAME).all()),
    }
    if logits.shape[1] > 1 and any(steps.values()):
        step = next(step for step, found in steps.items() if found)
        raise UnsupportedModelError(
            f"The model ends in a {step}, so it gives (log-)probabilities where logits were expected. Wrap it without "
            "that step: model[:-1], or torch.nn.Identity() in the step's place. Or, if it returns logits too, pass "
            "output= to wrap."
        )


def _averaged(source: FeatureSource) -> Tensor:
    positions, prefix = source.layout.split(source.features, source.grid_size)
    return source.layout.join(positions.mean((2, 3), keepdim=True).expand_as(positions), prefix)


def _tail_kind(
    run: Run,
    frozen: FrozenTail,
    start: tuple[Sequence[Tensor], Tensor],
    end: tuple[Sequence[Tensor], Tensor],
    spread: float,
) -> tuple[TailKind, float]:
    """Tell what a tail is by whether it bends, and with what held, between and beyond two sets of features."""

    def between(share: float) -> list[Tensor]:
        return [torch.lerp(a, b, share) for a, b in zip(start[0], end[0], strict=True)]

    @torch.no_grad()
    def curvature(function: Run, first: Tensor | None = None, last: Tensor | None = None) -> float:
        # An affine function keeps what lies on a line on a line, also beyond the two points that span it.
        first = function(*between(0)) if first is None else first
        last = function(*between(1)) if last is None else last
        return max(_deviation(function(*between(t)), torch.lerp(first, last, t), abs(t) * spread) for t in (-1.5, 0.4))

    if (error := curvature(run, start[1], end[1])) < _SAME:
        return "linear", error
    if (error := curvature(lambda *features: frozen(*features, straight=False), start[1])) < _SAME:
        return "norm-linear", error
    error = curvature(lambda *features: frozen(*features, straight=True), start[1])
    return "deep" if frozen.is_bent(0.37) else "mlp", error


def _deviation(found: Tensor, expected: Tensor, spread: float) -> float:
    return float((found - expected).abs().max()) / spread


def _gives(run: Callable[[], Tensor], expected: Tensor, spread: float) -> bool:
    """Tell whether a tail runs on other shapes than its own at all (it may insist on them), and to what result."""
    try:
        found = run()
    except (RuntimeError, ValueError, AssertionError):
        return False
    return found.shape == expected.shape and _deviation(found, expected, spread) < _SAME
