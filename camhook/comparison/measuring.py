"""Run one explanation after the other on the same images, and measure each by all metrics."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from camhook.comparison.attributions import METHODS, Attributed, attribute
from camhook.comparison.diagnosis import diagnosed
from camhook.comparison.metering import metered
from camhook.comparison.mosaics import Mosaics
from camhook.comparison.subjects import Scorer, Subject
from camhook.errors import CamhookError
from camhook.metrics import Metric

__all__ = ["Measuring"]

_KEPT = 64  # batches of maps


class Measuring:
    """What is at hand for all methods, and what was found so far."""

    def __init__(
        self,
        subject: Subject,
        given: Mapping[str, Any],
        classes: Tensor,
        measures: Sequence[Metric],
        mosaic: Mosaics | None,
        steps: int,
        options: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.subject, self.given, self.classes, self.measures = subject, given, classes, measures
        self.mosaic, self.options = mosaic, options
        ground = subject.reference(given["images"])
        self.common = {"steps": steps, "batch_size": subject.batch_size, "seed": subject.seed, "baseline": ground}
        self.maps: dict[str, Tensor] = {}
        self.values: dict[str, dict[str, Tensor]] = {}
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, int | None] = {}
        self.notes: dict[str, tuple[str, ...]] = {}
        self.failures: dict[str, str] = {}

    def measure(self, name: str, done: Callable[[int], object]) -> None:
        """Run one method and measure it; what does not work is noted."""
        images, own = self.given["images"], self.options.get(name)
        # Captum refuses a model with whatever error is at hand; a fault of our own is to be seen.
        refusal: type[Exception] = Exception if METHODS[name].is_captums else CamhookError
        try:
            with metered(images.device) as cost:
                found = attribute(self.subject, name, images, self.classes, options=own, done=done)
            notes = list(diagnosed(self.subject, name, images, self.classes, found))
        except refusal as error:
            self.failures[name] = _reason(error)
            self.subject.renew()  # the copy may still carry Captum's hooks
            return
        self.maps[name], self.seconds[name] = found.maps.float(), cost.seconds / len(images)
        self.memory[name], self.values[name] = cost.peak_bytes, {}
        explain = _remembering(lambda x, t: attribute(self.subject, name, x, t, options=own).maps)
        unmeasured: dict[str, list[str]] = {}
        for each in self.measures:
            runs_it_again = not {"explain", "explainer", "cells"}.isdisjoint(each.needs)
            failure: type[Exception] = refusal if runs_it_again else CamhookError
            try:
                value = self._value(each, name, found, explain)
            except failure as error:
                unmeasured.setdefault(_reason(error), []).append(each.name)
            else:
                if value is not None:
                    self.values[name][each.name] = value
            done(1)
        notes += [f"Could not be measured: {', '.join(names)}. {reason}" for reason, names in unmeasured.items()]
        self.notes[name] = tuple(notes)

    def _value(self, each: Metric, name: str, found: Attributed, explain: Callable[..., Tensor]) -> Tensor | None:
        own = self.options.get(name)
        if each.name == "grid_pointing_game":
            assert self.mosaic is not None
            mosaic = self.mosaic
            maps = attribute(self.subject, name, mosaic.images, mosaic.target, options=own).maps
            return each({"maps": maps, "cells": mosaic.cells})
        extra = {key: value for key, value in self.common.items() if key in inspect.signature(each.function).parameters}
        if each.name == "insertion":
            del extra["baseline"]
        maps = found.maps
        if each.name == "completeness":
            if found.total is None:
                return None
            maps = found.total[:, None, None]
            extra |= {"total": "sum", "offset": found.offset}
        inputs = {
            **self.given,
            "model": self.subject.scorer,
            "maps": maps,
            "explain": explain,
            "explainer": self._explainer(name, own),
        }
        return each(inputs, **{**extra, **self.options.get(each.name, {})})

    def _explainer(self, name: str, own: Mapping[str, Any] | None) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        subjects: dict[int, Subject] = {id(self.subject.scorer): self.subject}

        def explainer(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
            assert isinstance(model, Scorer)
            if id(model) not in subjects:
                subjects[id(model)] = self.subject.of(model)  # which keeps the model, and so its id
            return attribute(subjects[id(model)], name, images, target, options=own).maps

        return explainer


def _remembering(explain: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Keep what was explained last: several metrics ask for the same."""
    known: dict[tuple[int, ...], Tensor] = {}

    def explained(images: Tensor, target: Tensor) -> Tensor:
        key = (zlib.crc32(images.detach().cpu().contiguous().numpy().tobytes()), len(images), *target.tolist())
        if key not in known:
            if len(known) > _KEPT:
                known.clear()
            known[key] = explain(images, target.to(images.device))
        return known[key]

    return explained


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {said if len(said) <= 300 else said[:297] + '...'}"
