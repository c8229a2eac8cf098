"""Report of a fit: fidelity of the probe, images and time, as text, JSON and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from camhook.drawing.charts import Chart, draw_charts
from camhook.fitting.epoch import FeatureFacts
from camhook.fitting.fidelity import Confidence, Fidelity, measure
from camhook.fitting.probe import Probe, ProbeInfo
from camhook.fitting.solvers import Solution
from camhook.fitting.state import FitState
from camhook.fitting.targets import Targets
from camhook.text_tables import text_table

__all__ = ["FitReport", "make_report"]

_LISTED = 5  # skipped files that are printed; `skipped` has them all


@dataclass(frozen=True)
class FitReport:
    """Result of a fit; prints as a table.

    Attributes
    ----------
    model, target_layer, pooling, targets, solver : str
        As in `camhook.fitting.probe.ProbeInfo`.
    num_classes, num_features, fidelity
        K, C, and measures on the images held out.
    penalty, curve
        The one used, and (penalty, cross-validated error) of all that were tried.
    class_counts : tuple of int
        Images to fit on with each class; empty where there are no labels.
    fitted, skipped
        Number of images the weights were fitted on, and (file, reason) of those that could not be read.
    seconds, solve_seconds : float
        To read and run the images, and to solve.
    replaced_parameters : int, optional
        Of the model's own head; the probe has (C + 1) K.
    """

    model: str
    target_layer: str
    pooling: str
    targets: str
    solver: str
    num_classes: int
    num_features: int
    fidelity: Fidelity
    penalty: float
    fitted: int
    seconds: float
    curve: tuple[tuple[float, float], ...] = ()
    class_counts: tuple[int, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    solve_seconds: float = 0.0
    replaced_parameters: int | None = None
    class_names: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Images read and run in a second, held-out and skipped ones too."""
        images = self.fitted + self.fidelity.images + len(self.skipped)
        return images / self.seconds if self.seconds > 0 else math.nan

    @property
    def parameters(self) -> int:
        """How many parameters the probe has."""
        return self.num_classes * (self.num_features + 1)

    def summary(self) -> dict[str, float | int]:
        """Return the numbers that go with the probe into its file: those of `fidelity` that were measured."""
        names = ("images", "top1", "top5", "agreement", "r2", "calibration_error")
        return {name: value for name in names if (value := getattr(self.fidelity, name)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """Return everything in types that JSON has; what is not a finite number becomes None."""
        found = {**asdict(self), "images_per_second": self.images_per_second, "parameters": self.parameters}
        return {name: _plain(value) for name, value in found.items()}

    def figure(self) -> Image.Image:
        """Draw what was measured: error by penalty, accuracy by confidence, and R2 of each class."""
        charts, measured = [], self.fidelity
        if self.curve:
            best = (self.penalty, dict(self.curve)[self.penalty]) if self.penalty > 0 else None
            charts.append(Chart([self.curve], "Cross-validated error", "penalty", log_x=True, mark=best))
        if measured.reliability:
            found = [(confidence, accuracy) for confidence, accuracy, _ in measured.reliability]
            title = f"Accuracy (calibration error {_number(measured.calibration_error)})"
            charts.append(Chart([found, [(0.0, 0.0), (1.0, 1.0)]], title, "confidence", dots=True))
        if classes := sorted(value for value in measured.r2_per_class if math.isfinite(value)):
            title = f"R2 of a class's logit (overall {_number(measured.r2)})"
            charts.append(Chart([list(enumerate(classes, 1))], title, "classes, the worst first"))
        shares = {"top-1": measured.top1, "top-5": measured.top5, "agreement": measured.agreement}
        listed = ", ".join(f"{name} {_number(value)}" for name, value in shares.items() if value is not None)
        footer = f"On {measured.images:,} images held out: {listed or 'no shares were measured'}."
        return draw_charts(charts, title=f"Probe on {self.model} at {self.target_layer}", footer=footer)

    def __str__(self) -> str:
        rows = [(name, text) for name, text in self._rows() if text]
        size = f"{self.num_classes:,} classes, {self.num_features:,} features"
        return f"Probe on {self.model} at {self.target_layer}: {size}\n{text_table(rows, indent='  ')}"

    def _rows(self) -> list[tuple[str, str]]:
        measured, counts = self.fidelity, self.class_counts
        finite = [(value, c) for c, value in enumerate(measured.r2_per_class) if math.isfinite(value)]
        worst = f" (worst {min(finite)[0]:.3f}: {self._name(min(finite)[1])})" if finite else ""
        total = self.fitted + measured.images + len(self.skipped)
        tried = f" (of {len(self.curve)}, {self.curve[0][0]:.2g} to {self.curve[-1][0]:.2g})" if self.curve else ""
        replaced = "" if self.replaced_parameters is None else f", in place of {self.replaced_parameters:,}"
        times = f"{self.seconds:.3g} s, solved in {self.solve_seconds:.3g} s"
        speed = f"{self.images_per_second:.3g} images/s ({times})"
        listed = "".join(f"\n    {file}: {reason}" for file, reason in self.skipped[:_LISTED])
        more = f"\n    and {len(self.skipped) - _LISTED:,} more" if len(self.skipped) > _LISTED else ""
        return [
            ("fitted", f"{self.solver} on {self.targets}, pooled by {self.pooling}"),
            ("held out", f"{measured.images:,} images" if measured.images else "none: nothing was measured"),
            ("top-1", _number(measured.top1)),
            ("top-5", _number(measured.top5)),
            ("agreement", _number(measured.agreement)),
            ("R2", _number(measured.r2) + worst),
            ("calibration error", _number(measured.calibration_error)),
            ("penalty", f"{self.penalty:.3g}{tried}"),
            ("images", f"{self.fitted:,}" + (f", {min(counts):,} to {max(counts):,} a class" if counts else "")),
            ("skipped", f"{len(self.skipped):,} of {total:,}{listed}{more}" if self.skipped else ""),
            ("speed", speed if self.seconds > 0 else ""),
            ("parameters", f"{self.parameters:,}{replaced}"),
        ]

    def _name(self, index: int) -> str:
        return self.class_names[index] if self.class_names else f"class {index}"


def make_report(
    facts: FeatureFacts,
    state: FitState,
    solution: Solution,
    *,
    solver: str,
    goal: Targets,
    skipped: Mapping[int, tuple[str, str]],
    seconds: float,
    solve_seconds: float,
) -> tuple[FitReport, Probe]:
    """Measure a solution on the images held out, and return it as a probe with the report."""
    held_out, total, logits = state.holdout, state.total(), goal.kind == "logits"
    scores = held_out.features.double() @ solution.weight.T + solution.bias
    classes: Confidence = "identity" if solver == "ridge" else "softmax" if goal.kind == "labels" else "sigmoid"
    measured = measure(scores, held_out, logits=logits, confidence="softmax" if logits else classes)
    shared: dict[str, Any] = {name: getattr(facts, name) for name in ("model", "target_layer", "pooling")}
    shared |= {"targets": goal.kind, "class_names": goal.class_names, "solver": solver, "penalty": solution.penalty}
    report = FitReport(
        **shared,
        num_classes=goal.num_classes,
        num_features=facts.num_features,
        fidelity=measured,
        fitted=int(total.count),
        seconds=seconds,
        curve=solution.curve,
        class_counts=() if logits else tuple(total.class_counts.tolist()),
        skipped=tuple(skipped[index] for index in sorted(skipped)),
        solve_seconds=solve_seconds,
        replaced_parameters=facts.head_parameters,
    )
    config = dict(facts.preprocessing)
    about: dict[str, Any] = {"layout": facts.layout, "preprocessing": config, "fingerprint": facts.fingerprint}
    info = ProbeInfo(**shared, **about, fidelity=report.summary())
    return report, Probe(solution.weight, solution.bias, info)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
