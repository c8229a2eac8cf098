"""What comes out of a fit: the report, and the probe that carries it along."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from camhook.adapters.timm import model_name
from camhook.fitting.checkpoints import Progress
from camhook.fitting.fidelity import Confidence, measure
from camhook.fitting.goals import Goal
from camhook.fitting.probe import Probe, ProbeInfo
from camhook.fitting.reports import FitReport
from camhook.fitting.solvers import Solution
from camhook.fitting.statistics import Statistics

if TYPE_CHECKING:
    from camhook.engine.reader import ModelReader

__all__ = ["outcome", "preprocessing_of"]


def outcome(
    cam: ModelReader,
    pool: str,
    solver: str,
    goal: Goal,
    statistics: Statistics,
    solution: Solution,
    done: Progress,
    fingerprint: str,
    *,
    replaced: int | None,
    solve_seconds: float,
) -> tuple[FitReport, Probe]:
    """Measure the solution on what was held out; the parameters are what the report tells."""
    held_out, total = statistics.holdout, statistics.total()
    scores = held_out.features.double() @ solution.weight.T + solution.bias
    logits = goal.kind == "logits"
    encoder = cam.encoder
    report = FitReport(
        model=model_name(cam.model),
        target_layer=str(encoder.point),
        pooling=pool,
        targets=goal.kind,
        solver=solver,
        num_classes=goal.num_classes,
        num_features=solution.weight.shape[1],
        fidelity=measure(scores, held_out, logits=logits, confidence=_confidence(goal, solver)),
        penalty=solution.penalty,
        fitted=int(total.count),
        seconds=done.seconds,
        curve=solution.curve,
        class_counts=() if logits else tuple(total.class_counts.tolist()),
        skipped=tuple(done.skipped[index] for index in sorted(done.skipped)),
        solve_seconds=solve_seconds,
        replaced_parameters=replaced,
        class_names=goal.class_names,
    )
    info = ProbeInfo(
        model=report.model,
        target_layer=report.target_layer,
        layout=encoder.layout.axes,
        pooling=pool,
        targets=goal.kind,
        solver=solver,
        penalty=solution.penalty,
        class_names=goal.class_names,
        preprocessing=preprocessing_of(cam),
        fidelity=report.summary(),
        fingerprint=fingerprint,
    )
    return report, Probe(solution.weight, solution.bias, info)


def preprocessing_of(cam: ModelReader) -> dict[str, Any]:
    """Return timm's preprocessing dictionary for the model's images; empty if it is not known."""
    config = {} if cam.preprocessing is None else cam.preprocessing.config
    return {name: value for name, value in config.items() if name != "is_training"}


def _confidence(goal: Goal, solver: str) -> Confidence:
    """Return what turns the probe's scores to probabilities."""
    if goal.kind == "logits":
        return "softmax"
    if solver == "ridge":
        return "identity"
    return "softmax" if goal.kind == "labels" else "sigmoid"
