"""Numerical classification of a tail: how its logits depend on positions, found on random features in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from camhook.adapters.base import Layout
from camhook.decompose.linear_tail import LinearTail, Run
from camhook.decompose.tail_inputs import FeatureMapInput
from camhook.errors import UnsupportedModelError

__all__ = ["BroadcastFeatures", "Head", "Refusal", "TailKind", "classify", "classify_general"]

TailKind = Literal["linear", "norm-linear", "mlp", "deep"]

_SAME = 1e-5  # outputs of a tail in float64 this close, relative to how much it varies, are the same


@dataclass(frozen=True)
class Head:
    """How logits depend on the positions of the features.

    Attributes
    ----------
    pooling
        ``"mean"``: only through their mean. ``"attention"``, ``"max"``, both joined by a plus: by attention weights or
        argmax, which are frozen. ``"flatten"``: each position has weights of its own. ``"general"``: convolutions mix
        positions on the way.
    tail
        What follows the pooling: ``"linear"`` (affine as it stands), ``"norm-linear"`` (affine with statistics frozen),
        ``"mlp"`` (affine, one layer of activations, affine), ``"deep"``.
    accepts_1x1
        The tail accepts the mean as a 1 x 1 grid; otherwise it is given the mean at every position.
    error
        The largest relative deviation in the checks that this rests on.
    reads_prefix
        Prefix tokens move the logits too, beside the mean.
    """

    pooling: str
    tail: TailKind
    accepts_1x1: bool
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


class BroadcastFeatures:
    """Features that are the same vector at every position, with given prefix tokens: what a mean over them sees."""

    def __init__(self, layout: Layout, grid_size: tuple[int, int], prefix: Tensor | None) -> None:
        self._layout, self._grid_size, self._prefix = layout, grid_size, prefix

    def __call__(self, vectors: Tensor) -> Tensor:
        """Lay out vectors (B, C) as features."""
        return self._layout.join(vectors[:, :, None, None].expand(-1, -1, *self._grid_size), self._prefix)


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
    allow_bypass: Callable[[], bool] = lambda: True,
) -> Head | Refusal:
    """Find out whether a tail pools features by their mean, and what follows.

    Parameters
    ----------
    run
        The tail, with real parameters.
    layout, shape, grid_size
        How the features are laid out, their shape (batch included) and their grid (h, w).
    allow_bypass
        Tells, after a run, whether it may be taken: False where a skip connection bypassed the features.
    """
    draw = _Draws()
    with torch.no_grad():
        positions, prefix = layout.split(draw(*shape), grid_size)
        other = positions + draw(*positions.shape) + draw(*positions.shape[:2], 1, 1)
        logits = run(layout.join(positions, prefix))
        if not allow_bypass():
            return Refusal("a skip connection bypasses it")
        if logits.ndim != 2:
            return Refusal(f"the tail gives a tensor of shape {tuple(logits.shape)} where (B, K) was expected")
        if logits.is_meta:  # nothing real came through to the end
            return Refusal("the logits do not depend on it")
        moved = run(layout.join(other, prefix))
        _refuse_probabilities(logits)
        spread = _distance(logits, moved)
        noise = _SAME * float(logits.abs().max())
        reads_prefix = False
        if prefix is not None:
            reads_prefix = _distance(logits, run(layout.join(positions, draw(*prefix.shape)))) > noise
        if not spread > noise:
            return Refusal("the tail does not read the spatial features", reads_prefix=reads_prefix)
        means = positions.mean((2, 3)), other.mean((2, 3))
        broadcast = BroadcastFeatures(layout, grid_size, prefix)
        error = 0.0
        for mean, expected in zip(means, (logits, moved), strict=True):
            error = max(error, _distance(run(broadcast(mean)), expected) / spread)
            if error > _SAME:
                return Refusal("the tail reads the positions other than through their mean", True, reads_prefix)
        single = BroadcastFeatures(layout, (1, 1), prefix)
        accepts_1x1 = _accepts(lambda: run(single(means[0])), logits, spread)
        if accepts_1x1:
            broadcast = single

    def run_mean(vectors: Tensor) -> Tensor:
        return run(broadcast(vectors))

    linear = LinearTail(run_mean, [means[0]], [torch.zeros_like(means[0])])
    tail, tail_error = _tail_kind(run_mean, linear, ([means[0]], logits), ([means[1]], moved), spread)
    return Head("mean", tail, accepts_1x1, max(error, tail_error), reads_prefix)


def classify_general(
    run: Run,
    names: Sequence[str],
    layouts: Sequence[Layout],
    shapes: Sequence[tuple[int, ...]],
    grid_sizes: Sequence[tuple[int, int]],
) -> Head | Refusal:
    """Find out what a tail does with features from one or several layers, however it reads their positions."""
    draw = _Draws()
    features = [[draw(*shape) for shape in shapes] for _ in range(2)]
    inputs = [
        FeatureMapInput(f, layout, grid) for f, layout, grid in zip(features[0], layouts, grid_sizes, strict=True)
    ]
    for layout, grid_size, first, other in zip(layouts, grid_sizes, *features, strict=True):
        # The prefix is no part of what is compared: both draws share the first one's.
        prefix = layout.split(first, grid_size)[1]
        other.copy_(layout.join(layout.split(other.clone(), grid_size)[0], prefix))
    linear = LinearTail(run, features[0], [each.baseline for each in inputs])
    logits = linear.logits
    if logits.is_meta or logits.ndim != 2:
        return Refusal("the logits do not depend on it")
    noise = _SAME * float(logits.abs().max())
    if not _distance(logits, linear.offset) > noise:
        return Refusal("all that depends on it is frozen (it makes attention weights)", True)
    with torch.no_grad():
        moved = run(*features[1])
        spread = _distance(logits, moved)
        if not spread > noise:
            return Refusal("the tail does not read the spatial features")
        for number, name in enumerate(names if len(names) > 1 else ()):
            one_moved = [features[number == each][each] for each in range(len(names))]
            if not _distance(logits, run(*one_moved)) > noise:
                return Refusal(f"the logits depend on {name} only through the other layers: name one of them alone")
        means = [_averaged(each, layout) for each, layout in zip(inputs, layouts, strict=True)]
        is_mean = _distance(run(*means), logits) < _SAME * spread
    tail, error = _tail_kind(run, linear, (features[0], logits), (features[1], moved), spread)
    kinds = [kind for kind in ("attention", "max") if kind in linear.kinds]
    pooling = "mean" if is_mean else "general" if "conv" in linear.kinds else "+".join(kinds) or "flatten"
    return Head(pooling, tail, False, error)


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


def _averaged(features: FeatureMapInput, layout: Layout) -> Tensor:
    positions, prefix = layout.split(features.value, features.grid_size)
    return layout.join(positions.mean((2, 3), keepdim=True).expand_as(positions), prefix)


def _tail_kind(
    run: Run,
    linear: LinearTail,
    start: tuple[Sequence[Tensor], Tensor],
    end: tuple[Sequence[Tensor], Tensor],
    spread: float,
) -> tuple[TailKind, float]:
    """Return the kind of a tail, and the deviation that it was judged by, relative to the spread of the logits."""
    errors = []
    with torch.no_grad():
        for share in (
            -1.5,
            0.4,
        ):  # an affine function keeps points of a line on a line, also beyond the two that span it
            between = [torch.lerp(a, b, share) for a, b in zip(start[0], end[0], strict=True)]
            expected = torch.lerp(start[1], end[1], share)
            errors.append(_distance(run(*between), expected) / (abs(share) * spread))
    if max(errors) < _SAME:
        return "linear", max(errors)
    changes = {number: change[None] for number, change in enumerate(linear.changes)}
    error = _distance(linear.offset + linear.responses(changes)[0], linear.logits) / spread
    kinds: dict[int, TailKind] = {0: "norm-linear", 1: "mlp"}
    return kinds.get(linear.degree, "deep") if error < _SAME else "deep", error


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def _accepts(run: Callable[[], Tensor], expected: Tensor, spread: float) -> bool:
    """Tell whether a tail runs on another grid than its own at all (it may insist on it), with the same result."""
    try:
        found = run()
    except (RuntimeError, ValueError, AssertionError):
        return False
    return found.shape == expected.shape and _distance(found, expected) < _SAME * spread
