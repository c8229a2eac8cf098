"""Measuring attribution methods on the same images by the same metrics, with time and GPU memory."""

from __future__ import annotations

import inspect
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from camhook.comparison.attributions import attribute, notes
from camhook.comparison.captum_methods import Attribution
from camhook.comparison.methods import METHODS
from camhook.comparison.metric_inputs import Mosaics
from camhook.comparison.subjects import LogitsModel, Subject
from camhook.errors import CamhookError
from camhook.metrics import Metric

__all__ = ["Cost", "Measured", "Measurement", "MethodError", "metered"]

_CACHED = 64  # batches of maps


class MethodError(CamhookError):
    """A method cannot be applied to the model; the message says why."""


@dataclass
class Cost:
    """Cost of the work in a `metered` block."""

    seconds: float = 0.0  # wall time
    peak_bytes: int | None = None  # CUDA memory at the peak beyond that at the start; None on other devices


@contextmanager
def metered(device: torch.device) -> Iterator[Cost]:
    """Measure time and, on CUDA, peak memory of the block.

    Examples
    --------
    >>> with metered(torch.device("cpu")) as cost:
    ...     _ = torch.zeros(1000)
    >>> cost.seconds > 0, cost.peak_bytes
    (True, None)
    """
    cost, on_cuda, before = Cost(), device.type == "cuda", 0
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    started = time.perf_counter()
    try:
        yield cost
    finally:
        if on_cuda:
            torch.cuda.synchronize(device)
            cost.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        cost.seconds = time.perf_counter() - started


@dataclass(frozen=True)
class Measured:
    """Result of one method."""

    maps: Tensor  # (B, H, W), float32
    values: dict[str, Tensor]  # by metric: (n,), or () for a metric of all images together
    seconds: float  # per image
    peak_bytes: int | None  # as in `Cost`
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Measurement:
    """Model, images, targets and metrics by which each method is measured."""

    subject: Subject
    given: Mapping[str, Any]  # arguments of the metrics: images, target, and boxes and masks if given
    classes: Tensor  # (B,), the target on the images' device
    metrics: Sequence[Metric]
    mosaics: Mosaics | None  # for grid_pointing_game
    steps: int  # of insertion and deletion
    options: Mapping[str, Mapping[str, Any]]  # by name of a method or metric

    @cached_property
    def _common_options(self) -> dict[str, Any]:
        """Options of metrics that hold for all that take them."""
        subject, images = self.subject, self.given["images"]
        return {
            "steps": self.steps, "batch_size": subject.batch_size, "seed": subject.seed,
            "baseline": subject.baseline(images),
        }  # fmt: skip

    def measure(self, name: str, done: Callable[[int], object]) -> Measured:
        """Run one method and measure it; a metric that fails is noted.

        Raises
        ------
        MethodError
            The method cannot be applied to the model.
        """
        images, own = self.given["images"], self.options.get(name)
        # Captum rejects a model by any type of error; of camhook's own methods only CamhookErrors are expected.
        expected: type[Exception] = Exception if METHODS[name].kind == "captum" else CamhookError
        try:
            with metered(images.device) as cost:
                found = attribute(self.subject, name, images, self.classes, options=own, done=done)
            remarks = list(notes(self.subject, name, images, self.classes, found))
        except expected as error:
            self.subject.renew()
            raise MethodError(_reason(error)) from error
        explain = _cached(lambda x, t: attribute(self.subject, name, x, t, options=own).maps)
        values: dict[str, Tensor] = {}
        failed: dict[str, list[str]] = {}
        for each in self.metrics:
            runs_it_again = not {"explain", "explainer", "cells"}.isdisjoint(each.needs)
            failure: type[Exception] = expected if runs_it_again else CamhookError
            try:
                value = self._value(each, name, found, explain)
            except failure as error:
                failed.setdefault(_reason(error), []).append(each.name)
            else:
                if value is not None:
                    values[each.name] = value
            done(1)
        remarks += [f"Could not be measured: {', '.join(names)}. {reason}" for reason, names in failed.items()]
        return Measured(
            maps=found.maps.float(),
            values=values,
            seconds=cost.seconds / len(images),
            peak_bytes=cost.peak_bytes,
            notes=tuple(remarks),
        )

    def _value(self, each: Metric, name: str, found: Attribution, explain: Callable[..., Tensor]) -> Tensor | None:
        own = self.options.get(name)
        if each.name == "grid_pointing_game":
            assert self.mosaics is not None
            maps = attribute(self.subject, name, self.mosaics.images, self.mosaics.target, options=own).maps
            return each({"maps": maps, "cells": self.mosaics.cells})
        taken = inspect.signature(each.function).parameters
        extra = {key: value for key, value in self._common_options.items() if key in taken}
        maps = found.maps
        if each.name == "insertion":
            del extra["baseline"]  # it starts from its own blur
        if each.name == "completeness":
            if found.total is None:
                return None
            maps = found.total[:, None, None]
            extra |= {"total": "sum", "offset": found.offset}
        inputs = {
            **self.given,
            "model": self.subject.classifier,
            "maps": maps,
            "explain": explain,
            "explainer": self._explainer(name, own),
        }
        return each(inputs, **{**extra, **self.options.get(each.name, {})})

    def _explainer(self, name: str, own: Mapping[str, Any] | None) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        subjects: dict[nn.Module, Subject] = {self.subject.classifier: self.subject}

        def explainer(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
            assert isinstance(model, LogitsModel)
            if model not in subjects:
                subjects[model] = self.subject.with_model(model)
            return attribute(subjects[model], name, images, target, options=own).maps

        return explainer


def _cached(explain: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Cache the latest maps, since several metrics explain the same masked images."""
    known: dict[tuple[int, ...], Tensor] = {}

    def explained(images: Tensor, target: Tensor) -> Tensor:
        key = (zlib.crc32(images.detach().cpu().contiguous().numpy().tobytes()), len(images), *target.tolist())
        if key not in known:
            if len(known) > _CACHED:
                known.clear()
            known[key] = explain(images, target.to(images.device))
        return known[key]

    return explained


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"
