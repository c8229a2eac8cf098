"""A wrapped model and a probe on its frozen features: the scores of either, accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from camhook.adapters.timm import model_name
from camhook.decompose.decomposition import Accounting
from camhook.engine.capture import Observation, observing
from camhook.engine.explanation import Accounted, check_method
from camhook.engine.features import check_probe, probe_names
from camhook.engine.hooks import evaluating
from camhook.engine.outputs import size_of
from camhook.engine.plan import Plan
from camhook.engine.reader import WrappedModel
from camhook.errors import CamhookError, UnsupportedModelError
from camhook.fitting.probe import Probe
from camhook.fitting.reports import FitReport
from camhook.targets import ClassNames

__all__ = ["ProbedModel"]


class ProbedModel(WrappedModel):
    """A wrapped model that may have a probe, whose scores are then explained beside its own."""

    _method = "auto"
    _probe: Probe | None = None

    @property
    def probe(self) -> Probe | None:
        """The probe on the model's frozen features, if there is one.

        Setting one raises `ProbeMismatchError` if it was fitted on another model, layer, layout or width.
        """
        return self._probe

    @probe.setter
    def probe(self, probe: Probe | None) -> None:
        if probe is not None:
            check_probe(probe, self.model, self.encoder)
        self._probe = probe

    @property
    def class_names(self) -> ClassNames:
        """The names of the classes that are explained by default: the probe's, if it was fitted on labels."""
        uses_probe = self._uses_probe(next(iter(self._plans.values()), None), self._method)
        return probe_names(self._probe, self.model_class_names) if uses_probe else self.model_class_names

    def _uses_probe(self, plan: Plan | None, method: str) -> bool:
        check_method(method)
        if method == "probe" and self._probe is None:
            raise CamhookError("There is no probe: fit one, cam.fit(data), or pass probe= to wrap.")
        if method != "auto" or self._probe is None:
            return method == "probe"
        return self._probe.info.targets != "logits" or (plan is not None and plan.head is None)

    @contextmanager
    def accounted(self, tensor: Tensor, method: str) -> Iterator[Accounted]:
        """Run the model once, in eval mode, and within the block account for its logits, or for a probe's."""
        plan = self.plan_for(size_of(tensor))
        with torch.no_grad():
            if self._uses_probe(plan, method):
                with torch.autocast(tensor.device.type, enabled=False):
                    yield self._account_for_probe(tensor)
                return
            self._check_head(plan)
            with evaluating(self.model), observing(self.model, plan) as observation:
                logits = self.logits_of(self.model(tensor)).detach()
            with torch.autocast(tensor.device.type, enabled=False):
                yield self._account(plan, observation, tensor, logits)

    def _account(self, plan: Plan, observation: Observation, tensor: Tensor, logits: Tensor) -> Accounted:
        account = observation.account(plan, self._twin.module(), tensor, self.logits_of)
        return Accounted(logits, account, self.model_class_names, "model", str(plan.head), plan.target_layer)

    def _check_head(self, plan: Plan) -> None:
        if plan.head is None:
            raise UnsupportedModelError(
                f"{model_name(self.model)} has no head (num_classes=0, an Identity in the classifier's place, or an "
                "encoder), so there is no class score to explain. Its maps need a probe: fit one on labelled images, "
                "cam.fit(data, targets='labels'), or pass probe= to wrap; or give the model a classifier "
                "(model.reset_classifier(...) and trained weights)."
            )

    def _account_for_probe(self, tensor: Tensor) -> Accounted:
        probe = self._probe
        assert probe is not None
        source, _ = self.pooled(tensor, probe.info.pooling)
        account = Accounting(probe.scores, [source], widens=True, dtype=source.positions.dtype)
        names, head = probe_names(probe, self.model_class_names), f"{probe.info.pooling}/linear"
        return Accounted(probe.scores(source.full), account, names, "probe", head, str(self.encoder.point))

    def fit(self, data: Any, *, targets: Any = "labels", pool: Any = "gap", **options: Any) -> FitReport:
        """Fit a probe on the model's frozen features, and take it as this CAM's probe; see `camhook.fitting.fit.fit`.

        Parameters
        ----------
        data
            A folder with a folder of images a class, a Dataset or DataLoader, pairs (images, labels), features.
        targets
            ``"labels"``: the data's classes; ``"logits"``: the model's own scores, for which no labels are needed.
        pool
            ``"gap"``, or ``"attention"``: weighted by the class token's last attention.
        **options
            The solver, weights, checkpoints and the rest.

        Returns
        -------
        FitReport
            How far the probe may be believed, measured on images held out.
        """
        from camhook.fitting.fit import fit

        return fit(self, data, targets=targets, pool=pool, **options)
