"""Images through the frozen model: pooled features and, if it has a head, its scores; counted batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camhook.engine.features import run_encoder
from camhook.engine.hooks import evaluating, hooked
from camhook.engine.inputs import check_tensor, size_of
from camhook.errors import CamhookError
from camhook.fitting.batches import Batch
from camhook.fitting.caches import FeatureCache
from camhook.fitting.goals import Goal
from camhook.fitting.items import Pooled, Source
from camhook.fitting.tally import Tally

if TYPE_CHECKING:
    from camhook.engine.reader import ModelReader

__all__ = ["Frozen", "head_parameters", "learner", "sizes_of"]


class Frozen:
    """A model whose pooled features a probe reads; nothing of it changes.

    Parameters
    ----------
    cam, pool, autocast, channels_last
        As in `camhook.fitting.fit.fit`.

    Attributes
    ----------
    device, num_features
    """

    def __init__(self, cam: ModelReader, pool: str, autocast: torch.dtype | None, channels_last: bool) -> None:
        self._cam, self._pool, self._autocast = cam, pool, autocast
        self._format = torch.channels_last if channels_last else torch.preserve_format
        self._like = next((p for p in cam.model.parameters() if p.is_floating_point()), torch.zeros(()))
        self._seen: set[tuple[int, int]] = set()
        self.device = self._like.device

    @property
    def num_features(self) -> int:
        """C."""
        encoder = self._cam.encoder
        return encoder.shape[1 if encoder.layout.axes == "NCHW" else -1]

    def prepared(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) as the model takes them."""
        if images.is_floating_point():
            images = images.to(self.device, self._like.dtype, non_blocking=True, memory_format=self._format)
        check_tensor(images, self._cam.in_chans, self._like)
        return images

    def has_head(self, images: Tensor) -> bool:
        """Tell whether the model gives scores for such images."""
        return self._cam.plan_for(size_of(images)).head is not None

    def run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return pooled features (B, C) and, if the model has a head, its scores (B, K)."""
        size = size_of(images)
        # What a model keeps on its own at its first pass must be tensors that it can be trained with afterwards.
        inference = size in self._seen
        with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
            source, returned = self._cam.pooled(images, self._pool, inference=inference)
        self._seen.add(size)
        if not self.has_head(images):
            return source.value, None
        with torch.inference_mode(False), torch.no_grad():
            logits = self._cam.logits_of(returned)
            return source.value, (logits.clone() if logits.is_inference() else logits).float()


def learner(
    frozen: Frozen, tally: Tally, goal: Goal, rows: FeatureCache | None, source: Any
) -> Callable[[Batch], None]:
    """Return what counts a batch: as statistics and, if the solver needs them, as rows."""

    def learn(batch: Batch) -> None:
        assert batch.images is not None
        labels, logits = batch.labels, None
        if isinstance(source, Pooled):
            features = batch.images.detach()
            if goal.kind == "logits":
                logits, labels = labels, None
        else:
            features, logits = frozen.run(frozen.prepared(batch.images))
        _check_finite(features, batch, "features")
        targets = logits if goal.kind == "logits" else labels
        if targets is None:
            raise CamhookError(f"Found no label for image {batch.indices[0]}; give each image one.")
        if goal.kind == "logits":
            _check_finite(targets, batch, "scores")
        weights = goal.weights(batch.indices, labels)
        if isinstance(source, Pooled):
            given = source.weights[batch.indices].double().cpu()
            weights = given if weights is None else weights * given
        tally.own.update(
            batch.indices,
            features,
            targets.to(features.device),
            None if weights is None else weights.to(features.device),
            labels=_translated(labels, goal.of_label) if goal.kind == "logits" else None,
            predictions=None
            if logits is None
            else _translated(logits.argmax(1), goal.of_prediction)
            if goal.kind != "logits"
            else logits.argmax(1),
        )
        if rows is not None:
            rows.write(batch.indices, features, targets, weights)

    return learn


def sizes_of(frozen: Frozen, source: Source, first: Batch, targets: str) -> tuple[int, int | None, int | None]:
    """Return how many features and scores there are, and how many parameters make the latter of the former."""
    assert first.images is not None
    if isinstance(source, Pooled):
        if (found := first.images.shape[1]) != frozen.num_features:
            raise CamhookError(f"Found {found} pooled features, expected the model's {frozen.num_features}.")
        scores = None if targets == "labels" or source.targets.ndim != 2 else source.targets.shape[1]
        return found, scores, None
    images = frozen.prepared(first.images)
    features, logits = frozen.run(images)
    if logits is None:
        return features.shape[1], None, None
    return features.shape[1], logits.shape[1], head_parameters(frozen, images)


def head_parameters(frozen: Frozen, images: Tensor) -> int:
    """Count the parameters that a model uses after the features that a probe reads: its head."""
    cam = frozen._cam
    point, calls = cam.encoder.point, 0
    before: set[int] = set()
    after: dict[int, Tensor] = {}

    def at_point(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def used(module: Any, *_: Any) -> None:
        own = {id(p): p for p in module.parameters(recurse=False)}
        if calls > point.call:
            after.update(own)
        else:
            before.update(own)

    hooks: list[tuple[str, str, Callable[..., Any]]] = [(point.module, point.side, at_point)]
    hooks += [(name, "input", used) for name, module in cam.model.named_modules() if list(module.parameters(False))]
    with torch.no_grad(), evaluating(cam.model), hooked(cam.model, hooks):
        run_encoder(cam.model, images)
    return sum(p.numel() for key, p in after.items() if key not in before)


def _translated(classes: Tensor | None, table: Tensor | None) -> Tensor | None:
    if classes is None or table is None or classes.ndim != 1:
        return None
    return table.to(classes.device)[classes.long()]


def _check_finite(values: Tensor, batch: Batch, what: str) -> None:
    if not values.is_floating_point() or bool(values.isfinite().all()):
        return
    broken = ~values.isfinite().flatten(1).all(1)
    listed = ", ".join(str(batch.indices[i]) for i in broken.nonzero()[:5, 0].tolist())
    raise CamhookError(
        f"Found {what} that are NaN or infinite for {int(broken.sum())} images (numbers {listed}). Look at these "
        "images, or run the model in float32 or bfloat16."
    )
